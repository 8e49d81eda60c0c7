"""ReSSL: the similarities of a view to other samples are to be those that the teacher sees."""

from typing import NamedTuple

import torch.nn.functional as F
from torch import Tensor

from twoview.losses.inputs import check_positive, check_rows, in_float32


class Relation(NamedTuple):
    """Scalars: the `loss`, and the mean `entropy` of the teacher's distributions (its lower bound), no gradient."""

    loss: Tensor
    entropy: Tensor


@in_float32
def relational(
    student: Tensor,
    teacher: Tensor,
    queue: Tensor,
    student_temperature: float = 0.1,
    teacher_temperature: float = 0.04,
) -> Relation:
    """Cross-entropy of two softmaxes over the queue (ReSSL, arXiv 2107.09282, equations 3 to 5).

    `student`, `teacher` (N, D): the strong and the weak view of the same samples; `queue` (K, D): earlier outputs of
    the teacher. All of any scale. The teacher's target is softmax(cosine / `teacher_temperature`) over the K entries,
    a constant; the student predicts it at `student_temperature`. The sample itself is not among the candidates. Not
    symmetric.

    Closed values: log K where all similarities are equal (collapse), with an entropy of log K; a student without
    knowledge is at log K or a little above. Raises ValueError for unfit shapes or temperatures, and where the teacher's
    is not the lower one: a target flatter than the prediction teaches nothing.
    """
    check_rows(student, teacher)
    check_positive(student_temperature=student_temperature, teacher_temperature=teacher_temperature)
    if not teacher_temperature < student_temperature:
        raise ValueError(
            f"teacher_temperature={teacher_temperature} must be below {student_temperature}, the student's"
        )
    if queue.ndim != 2 or queue.shape[1] != student.shape[1] or len(queue) == 0:
        raise ValueError(f"queue must be (K, {student.shape[1]}) with K >= 1, not {tuple(queue.shape)}")
    a, b, candidates = (F.normalize(x, dim=1) for x in (student, teacher.detach(), queue.detach()))
    target = b @ candidates.T / teacher_temperature  # (N, K)
    q = target.softmax(dim=1)
    loss = -(q * F.log_softmax(a @ candidates.T / student_temperature, dim=1)).sum(dim=1).mean()
    return Relation(loss, -(q * F.log_softmax(target, dim=1)).sum(dim=1).mean())
