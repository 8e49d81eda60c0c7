"""What methods refuse before the first step, each in one line."""

import math

from twoview.errors import UserError
from twoview.losses import SingularError

# What a batch needs where a loss is made of statistics over it.
STATISTICS = 3, "over 2 samples every correlation is 1 or -1; the sources use 256 and more"


def check_temperature(value: float, name: str = "temperature") -> float:
    if not 0 < value < math.inf:
        raise UserError(f"model.{name} must be positive, not {value}")
    return value


def check_weight(value: float, name: str, most: float = math.inf) -> float:
    """A number of a loss that may be 0, at most `most` and always finite."""
    if not (0 <= value <= most and value < math.inf):
        bound = "not negative and finite" if most == math.inf else f"within [0, {most:g}]"
        raise UserError(f"model.{name} must be {bound}, not {value}")
    return value


def check_count(value: int, name: str, most: int) -> int:
    """How often a step does something."""
    if not 1 <= value <= most:
        raise UserError(f"model.{name} must be within [1, {most}], not {value}")
    return value


def check_sharper(teacher: float, student: float, name: str = "teacher_temperature") -> None:
    if not teacher < student:
        raise UserError(
            f"model.{name}={teacher} must be below model.student_temperature={student}: a target that is "
            "flatter than the prediction teaches nothing"
        )


def lost_dimensions(error: SingularError, step: int) -> UserError:
    """Of a factorisation that fails in training: what to tell."""
    return UserError(
        f"step {step}: {error}. The projections have lost a dimension or are not finite, mostly by too high a learning "
        "rate, a projector that is too wide for the batch, or half precision. Nothing was written since: the last "
        "checkpoint is a good one; go on from it with a lower optimizer.lr_per_256"
    )
