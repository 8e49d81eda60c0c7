"""The table of values at which the loss of each method may stand still: what each of them means, and what to do.

All values are closed forms; their derivations are in the docstrings of `twoview.losses`. To add a method, add a row.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

Get = Callable[..., Any]  # a value of the configuration by its dotted key: get("model.prototypes", 512)

FAR = "the two views of an image have nothing in common, or the learning rate is far off"
SEE_VIEWS = "look at views.png; a milder policy (augment.strength=0.5); a third of optimizer.lr_per_256"
SPREAD = "spread (the std of unit z x sqrt(D)) and the effective rank of h: the loss alone tells nothing"


@dataclass(frozen=True)
class Standstill:
    """A value of the loss, by the formula that people know and as a function of the configuration.

    `collapsed`: all samples have become one point (or one prototype). `alone`: the value proves it by itself, as log K
    to three digits does; where it is False a healthy run may come by, and the doctor asks for the spread of z too.
    `examples`: settings that people use, as configurations, for the page.
    """

    formula: str
    value: Callable[[Get], float]
    collapsed: bool
    alone: bool
    meaning: str
    remedy: str
    look_at: str
    examples: tuple[Mapping[str, Any], ...]


def _pairs(get: Get) -> float:
    return math.log(2 * get("batch_size") - 1)


def _uniform(formula: str, key: str, remedy: str, sizes: tuple[int, ...], what: str) -> Standstill:
    return Standstill(
        formula,
        lambda get: math.log(get(key)),
        True,
        True,
        f"{what} are uniform: no sample is told from another",
        remedy,
        "the entropy of the targets: at its maximum, the same logarithm",
        tuple({key: size} for size in sizes),
    )


TABLE: dict[str, tuple[Standstill, ...]] = {
    "SimCLR": (
        Standstill(
            "ln(2N - 1)",
            _pairs,
            False,
            True,
            f"a view's partner is not told from the other 2N - 2 views: {FAR}, or the network has collapsed",
            SEE_VIEWS,
            "the contrastive accuracy; a spread of z that is healthy proves nothing here",
            ({"batch_size": 256}, {"batch_size": 512}, {"batch_size": 4096}),
        ),
    ),
    "DCL": (
        Standstill(
            "ln(2N - 2)",
            lambda get: math.log(2 * get("batch_size") - 2),
            False,
            True,
            f"a view's partner is not told from the negatives: {FAR}, or a collapse. (A healthy loss may be below 0.)",
            SEE_VIEWS,
            "the contrastive accuracy",
            ({"batch_size": 256}, {"batch_size": 512}),
        ),
    ),
    "SupCon": (
        Standstill(
            "ln(2N - 1)",
            _pairs,
            False,
            True,
            f"classes are not told apart: {FAR}, or a collapse. (The floor is not 0 but the logarithm of the positives "
            "of a row: 3.9 for ten classes in 256 images of two views)",
            SEE_VIEWS,
            "the accuracy, and whether the labels are the right ones",
            ({"batch_size": 256}, {"batch_size": 512}),
        ),
    ),
    "MoCo": (
        Standstill(
            "ln(K + 1)",
            lambda get: math.log(get("model.queue_size") + 1),
            False,
            True,
            f"the key is not told from the K of a full queue: {FAR}, or a collapse",
            SEE_VIEWS,
            "the contrastive accuracy; while the queue fills, the value rises with it",
            ({"model.queue_size": 4096}, {"model.queue_size": 65536}),
        ),
    ),
    "MoCoV3": (
        Standstill(
            "4 T ln N",
            lambda get: 4 * get("model.temperature") * math.log(get("batch_size")),
            False,
            True,
            f"a query's key is not told from the other keys of the batch: {FAR}, or a collapse",
            SEE_VIEWS,
            "the contrastive accuracy",
            ({"batch_size": 256, "model.temperature": 0.2}, {"batch_size": 4096, "model.temperature": 0.2}),
        ),
    ),
    "NNCLR": (
        Standstill(
            "ln N",
            lambda get: math.log(get("batch_size")),
            False,
            True,
            f"a neighbour does not find its sample's other view among N: {FAR}, or a collapse",
            SEE_VIEWS,
            "neighbour_similarity (1: copies) and neighbour_itself (a queue longer than the data set)",
            ({"batch_size": 256}, {"batch_size": 512}, {"batch_size": 4096}),
        ),
    ),
    "BYOL": (
        Standstill(
            "4",
            lambda get: 4.0,
            False,
            False,
            "predictions and targets are independent: 2 for each direction. Normal at the start",
            "wait; if it stays: a lower momentum of the teacher for short runs (0.97), a higher learning rate",
            SPREAD,
            ({},),
        ),
        Standstill(
            "0",
            lambda get: 0.0,
            True,
            False,
            "predictions equal their targets. With a spread near 0: every image has become one point",
            "the predictor must be there, and not in the teacher; batch norm in projector and predictor; a third of "
            "optimizer.lr_per_256",
            SPREAD,
            ({},),
        ),
    ),
    "SimSiam": (
        Standstill(
            "0",
            lambda get: 0.0,
            False,
            False,
            "predictions and projections are independent. Normal at the start",
            "wait; if it stays: a higher learning rate",
            SPREAD,
            ({},),
        ),
        Standstill(
            "-1",
            lambda get: -1.0,
            True,
            False,
            "predictions equal their targets. With a spread near 0: every image has become one point. Healthy runs end "
            "between -0.85 and -0.95",
            "a third of optimizer.lr_per_256; batch norm at the end of the projector and none at that of the "
            "predictor; the stop-gradient must be there",
            SPREAD,
            ({},),
        ),
    ),
    "BarlowTwins": (
        Standstill(
            "D",
            lambda get: get("model.scale", 1.0) * get("model.projector.out_dim"),
            True,
            True,
            "the projections are constant over the batch: no dimension correlates with anything",
            "a third of optimizer.lr_per_256, less weight decay; no normalisation after the last layer is needed",
            SPREAD,
            (
                {"model.projector.out_dim": 2048},
                {"model.projector.out_dim": 2048, "model.scale": 0.1},
                {"model.projector.out_dim": 8192},
            ),
        ),
        Standstill(
            "w D (D - 1)",
            lambda get: (
                get("model.scale", 1.0)
                * get("model.weight", 0.0051)
                * get("model.projector.out_dim")
                * (get("model.projector.out_dim") - 1)
            ),
            True,
            True,
            "all dimensions are copies of one",
            "a wider or deeper projector; batch norm between its layers; a third of optimizer.lr_per_256",
            "the effective rank of z: 1",
            ({"model.projector.out_dim": 2048}, {"model.projector.out_dim": 2048, "model.scale": 0.1}),
        ),
    ),
    "VICReg": (
        Standstill(
            "0.99 v",
            lambda get: get("model.variance", 25.0) * 0.99,
            True,
            True,
            "the variance term alone, at its maximum: all projections of the batch are one point",
            "a larger weight of the variance (solo-learn's 25 is 50 here), a third of optimizer.lr_per_256, no weight "
            "decay on the projector's last layer",
            "the three terms: invariance 0 with variance 24.75 is a collapse, variance 0 with covariance falling is "
            "health",
            ({"model.variance": 25.0}, {"model.variance": 50.0}),
        ),
    ),
    "SwAV": (
        _uniform(
            "ln K",
            "model.prototypes",
            "model.epsilon=0.03, a longer model.frozen_epochs, a smaller learning rate, fewer local views; batch and "
            "queue together should hold at least K samples",
            (512, 3000),
            "assignments and predictions",
        ),
    ),
    "DINO": (
        _uniform(
            "ln K",
            "model.prototypes",
            "a lower model.teacher_temperature (0.02 to 0.04), a longer model.frozen_epochs; the teacher must have no "
            "gradient",
            (2048, 4096, 65536),
            "targets and predictions",
        ),
        Standstill(
            "0",
            lambda get: 0.0,
            True,
            True,
            "all samples have the same one prototype: the centre does not follow the teacher's outputs",
            "model.centre_momentum=0.9; a teacher_temperature that is not below 0.04 while the centre is young",
            "the entropy of the targets: 0",
            ({},),
        ),
    ),
    "ReSSL": (
        _uniform(
            "ln K",
            "model.queue_size",
            "model.teacher_temperature well below model.student_temperature (0.04 and 0.1), a lower model.momentum in "
            "short runs",
            (4096, 65536),
            "the similarities to the queue",
        ),
    ),
    "WMSE": (
        Standstill(
            "2",
            lambda get: 2.0,
            False,
            True,
            f"whitened views are independent: {FAR}",
            SEE_VIEWS,
            "the condition number of the covariance of z: a factorisation that fails is how this method collapses",
            ({},),
        ),
    ),
    "LeJEPA": (
        Standstill(
            "0.402 w N",
            lambda get: 0.4019 * get("model.weight", 0.05) * get("batch_size"),
            True,
            True,
            "all projections are 0. Near that point the gradient vanishes, so it stays",
            "a larger model.weight, a lower learning rate; no weight decay on the projector's last layer",
            "sigreg: 1.05 for a Gaussian, 0.402 N in a collapse",
            ({"batch_size": 256, "model.weight": 0.02}, {"batch_size": 256, "model.weight": 0.05}),
        ),
    ),
    "CorInfoMax": (
        Standstill(
            "-2 ln(eps)",
            lambda get: -2 * math.log(get("model.eps", 1e-8)),
            True,
            True,
            "the projections of the batch are one point: their covariance is eps alone",
            "a smaller model.weight of the invariance, a third of optimizer.lr_per_256",
            "information: 2 ln D where z is isotropic",
            ({"model.eps": 1e-8}, {"model.eps": 1e-6}),
        ),
    ),
    "MMCR": (
        Standstill(
            "-sqrt(N)",
            lambda get: -math.sqrt(get("batch_size")),
            True,
            True,
            "all centroids are one vector. With many views this is *below* the value of random ones",
            "a third of optimizer.lr_per_256, batch norm in the projector, a larger batch",
            SPREAD,
            ({"batch_size": 32}, {"batch_size": 256}),
        ),
    ),
}
