"""The illnesses of a run: each is a function that looks at its curves and its configuration for the signs.

What an illness needs to be judged (a chance level, a spread, a queue) stands beside it in `OF_LEARNING` and `OTHERS`;
where a run lacks it, as a method without negatives lacks a chance level, the illness is not looked for.

Every limit is a closed form or leaves a wide margin to the runs in `benchmarks/results`, which are healthy: their loss
is at 87 % of chance level or below at the first reading and at 37 to 51 % at the end; medians of three readings never
rise by more than 0.3 % of it; and their contrastive accuracy is 24 to 48 % after an epoch and 81 % at most.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from statistics import median
from typing import Any

from twoview.watch.standstill import values
from twoview.watch.standstill_table import Standstill

FEWEST_STEPS = 50  # by then every healthy run is at 72 % of chance level or below

STUCK = 0.95  # of chance level. Stuck losses in reports of other projects stand within 0.1 % of it
RISE = 0.03  # of chance level, from the lowest: ten times the largest of healthy runs
SPREAD = 0.1  # std of unit features times sqrt(D); its square is 1 - the mean cosine of two images: 0.99 here
SPREADS = ("z_std", "spread", "h_std")  # the curves of that: measured on z, told by the method, measured on h
NARROW = 0.1  # effective rank as a share of the dimension; healthy z have 33 to 52 % (43 to 66 of 128)
BOTTLENECK = 0.2  # rank of z as a share of that of h; healthy ones have 27 to 35 %
SHRUNK = 0.5  # rank as a share of that at the first reading; in healthy runs it triples
EASY = 0.9  # contrastive accuracy
EARLY = 0.1  # share of the epochs (the first epoch at least) in which a healthy run does not come to that
APART = 0.3  # contrastive accuracy less kNN accuracy; 0.11 at most in healthy runs
# The two where the policy lacks crop or colours. CIFAR-10 without jitter, 2 epochs of experiment=cifar10_cpu: 0.75 and
# 0.26, and a linear probe 7 points below that with jitter, whose figures are 0.61 and 0.03.
EASY_WITHOUT, APART_WITHOUT = 0.7, 0.2
NEAR = 2e-3  # relative: a loss that is at a value of its own to three digits
AROUND = 0.05  # where the spread decides
WAITING = 0.5  # share of the time; without waiting, a run is up to 1 / (1 - share) times as fast
USUAL_LR = {"SGD": 0.03, "LARS": 1.0, "AdamW": 1e-3, "Muon": 0.02}  # lr_per_256 of configs/optimizer
LR_RANGE = (1e-3, 10.0)  # times the usual
DECAY = 0.01  # lr x weight decay, the share that a step takes off the weights; 4e-4 at most in experiments
HEALTHY_RUNS = "runs in benchmarks/results"


@dataclass(frozen=True)
class Evidence:
    """A number, the limit that it has passed, and where the limit comes from."""

    what: str
    value: float
    limit: str
    source: str


@dataclass(frozen=True)
class Finding:
    """An illness by name. `remedy` is what to type, or to look at."""

    name: str
    evidence: tuple[Evidence, ...]
    cause: str
    remedy: str


@dataclass(frozen=True)
class Case:
    """A run as the doctor sees it: its readings (rows of `metrics.csv`) and its configuration, {} if that is gone."""

    rows: Sequence[Mapping[str, float]]
    config: Mapping[str, Any]

    def curve(self, name: str) -> list[float]:
        """A column without its empty cells."""
        return [row[name] for row in self.rows if name in row]

    def get(self, path: str, default: Any = None) -> Any:
        """A value of the configuration by its dotted key."""
        node: Any = self.config
        for key in path.split("."):
            if not isinstance(node, Mapping) or node.get(key) is None:
                return default
            node = node[key]
        return node

    @cached_property
    def steps(self) -> int:
        return int(max(self.curve("step")))

    @cached_property
    def ratios(self) -> list[float]:
        """The loss in units of its chance level at that time: log(2B - 1) of SimCLR, log(1 + keys in the queue) of
        MoCo; empty for methods that have none. While the queue fills, the loss rises and this does not. Medians of
        three readings, since one may be that of a single batch.
        """
        ratios = [row["loss"] / row["chance_loss"] for row in self.rows if row.get("chance_loss", 0) > 0]
        return [median(ratios[max(0, i - 2) : i + 1]) for i in range(min(2, max(0, len(ratios) - 1)), len(ratios))]

    @cached_property
    def last(self) -> float:
        return self.ratios[-1] if self.ratios else math.nan

    @cached_property
    def relative_lr(self) -> float | None:
        """The base learning rate in units of what is usual for the optimizer."""
        usual = USUAL_LR.get(str(self.get("optimizer.optimizer._target_", "")).rpartition(".")[2])
        base = self.get("optimizer.lr_per_256")
        return base / usual if usual and base is not None else None

    @cached_property
    def too_early(self) -> bool:
        epochs = max(row["epoch"] for row in self.rows)
        return self.steps < FEWEST_STEPS or epochs <= self.get("optimizer.warmup_epochs", 0)

    @cached_property
    def spread(self) -> tuple[str, list[float]]:
        """How far features are from being one point, and where that was measured; the best curve that there is."""
        return next(((name, curve) for name in SPREADS if (curve := self.curve(name))), ("", []))

    def has(self, need: str) -> bool:
        """Whether the run tells what an illness needs: `chance`, `spread`, or the name of a curve."""
        return bool({"chance": self.ratios, "spread": self.spread[1]}.get(need) or self.curve(need))


def not_finite(case: Case) -> Finding | None:
    bad = [row for row in case.rows if not math.isfinite(row.get("loss", 0.0))]
    if not bad:
        return None
    proof = Evidence("first step whose loss is not finite", bad[0]["step"], "none", "definition")
    if case.get("trainer.precision") == "16-mixed":
        return Finding("NaN", (proof,), "numbers too large for float16", "trainer.precision=bf16-mixed (or 32-true)")
    cause = "too high a learning rate, or an input that is not finite"
    return Finding("NaN", (proof,), cause, f"{_lower_lr(case)}, or a longer optimizer.warmup_epochs")


def too_fast(case: Case) -> Finding | None:
    """The loss has fallen and risen again, and stays up; or never fell, under a rate far from the usual."""
    lowest = min(case.ratios)
    rise = Evidence("rise of loss / chance level", case.last - lowest, f"{RISE} at most", f"0.003 in {HEALTHY_RUNS}")
    factor = case.relative_lr
    rate = Evidence("learning rate / usual", factor or 0.0, f"{LR_RANGE[1]:g} at most", "configs/optimizer")
    fast = factor is not None and factor > LR_RANGE[1]
    if rise.value > RISE:
        proofs: tuple[Evidence, ...] = (rise, rate) if fast else (rise,)
    elif fast and case.last > STUCK:
        proofs = (rate, _stuck(case))
    else:
        return None
    cause = "steps so long that they undo what was learnt"
    return Finding("learning rate too high", proofs, cause, f"{_lower_lr(case)}, or a longer optimizer.warmup_epochs")


def collapse(case: Case) -> Finding | None:
    """All samples have become one point, which no loss without negatives tells."""
    name, spread = case.spread
    if not spread[-1] < SPREAD:  # NaN is no collapse
        return None
    where = {"z_std": "z", "spread": "the method's targets", "h_std": "h"}[name]
    proofs = [
        Evidence(f"std of unit {where} x sqrt(dimension)", spread[-1], f"{SPREAD} at least", "0.99 in health"),
        Evidence("mean cosine of two images", 1 - spread[-1] ** 2, "0.99 at most", "1 - the square of that"),
    ]
    if case.has("chance"):
        proofs.append(Evidence("loss / chance level", case.last, "1: nothing is told apart", "closed form"))
    standing = _standing(case)
    if standing is None or case.has("chance"):
        return Finding("complete collapse", tuple(proofs), *_why_nothing_is_learnt(case))
    proof, row = standing
    return Finding("complete collapse", (*proofs, proof), row.meaning, row.remedy)


def chance_level(case: Case) -> Finding | None:
    if case.last <= STUCK:
        return None
    proofs = [_stuck(case)]
    if case.has("accuracy"):
        accuracy = case.curve("accuracy")[-1]
        proofs.append(Evidence("contrastive accuracy", accuracy, "1 / candidates by guessing", "closed form"))
    return Finding("loss at chance level", tuple(proofs), *_why_nothing_is_learnt(case))


def stands_still(case: Case) -> Finding | None:
    """The loss has come to a value that proves by itself that nothing is learnt, and stays there."""
    standing = _standing(case)
    if standing is None or not standing[1].alone:  # the others are for `collapse`, which knows the spread
        return None
    proof, row = standing
    return Finding("loss stands still", (proof,), row.meaning, f"{row.remedy}; look at {row.look_at}")


def _standing(case: Case) -> tuple[Evidence, Standstill] | None:
    """The value of `twoview.watch.standstill_table` at which the last three readings are, if any."""
    last = case.curve("loss")[-3:]
    for value, row in values(str(case.get("model._target_", "")).rpartition(".")[2], case.get):
        near = (NEAR if row.alone else AROUND) * max(1.0, abs(value))
        if len(last) == 3 and all(abs(loss - value) <= near for loss in last):
            return Evidence("loss", median(last), f"{value:.5g} is {row.formula}", "closed form"), row
    return None


def _stuck(case: Case) -> Evidence:
    source = f"0.37 to 0.51 in {HEALTHY_RUNS}; 1 is ln(candidates)"
    return Evidence("loss / chance level", case.last, f"{STUCK} at most", source)


def _why_nothing_is_learnt(case: Case) -> tuple[str, str]:
    """The cause that the configuration makes likely, and its remedy."""
    temperature, factor = case.get("model.temperature", 0.0), case.relative_lr
    decay = max(case.curve("lr"), default=0.0) * case.get("optimizer.weight_decay", 0.0)
    if temperature > 1:
        cause = f"at temperature {temperature:g} the loss can fall by {2 / temperature:.2g} at most, the logits' range"
        return cause, "model.temperature=0.2"
    if decay > DECAY:
        return f"weight decay takes {decay:.1%} off the weights in a step", "optimizer.weight_decay=1e-4"
    if factor is not None and factor < LR_RANGE[0]:
        usual = case.get("optimizer.lr_per_256") / factor if factor else 0.03
        return "the learning rate is so low that nothing moves", f"optimizer.lr_per_256={usual:g}"
    if factor is not None and factor > LR_RANGE[1]:
        return "too high a learning rate", _lower_lr(case)
    if not case.has("chance"):
        cause = "one point for all samples satisfies a loss without negatives; nothing kept the network from it"
        return cause, f"{_lower_lr(case)}, less optimizer.weight_decay, model.projector.norm=batch"
    return (
        "the two views of an image have nothing in common, or the network ignores its input",
        "look at views.png: both rows must show the same images; then a milder policy (augment.strength=0.5)",
    )


def _lower_lr(case: Case) -> str:
    base, factor = case.get("optimizer.lr_per_256"), case.relative_lr
    if base is None:
        return "a third of optimizer.lr_per_256"
    return f"optimizer.lr_per_256={base / factor if factor and factor > LR_RANGE[1] else base / 3:.2g}"


def narrow(case: Case) -> Finding | None:
    """Features that differ, but along a few directions only."""
    z, h = case.curve("z_effective_rank"), case.curve("h_effective_rank")
    dim = min(case.get("model.projector.out_dim", 0), case.get("quality.images", 0))  # no rank is above either
    if z and z[-1] < NARROW * dim and (z[-1] < BOTTLENECK * h[-1] or z[-1] < SHRUNK * z[0]):
        proofs = (
            Evidence("effective rank of z / dimension", z[-1] / dim, f"{NARROW} at least", "0.33 to 0.52 in health"),
            Evidence("effective rank of z", z[-1], f"{z[0]:.3g} at the first reading", "the same run"),
            Evidence("rank of z / rank of h", z[-1] / h[-1], f"{BOTTLENECK} at least", "0.27 to 0.35 in health"),
        )
        return Finding(
            "dimensional collapse",
            proofs,
            "the projector has a bottleneck, or its weights have aligned",
            "model.projector.hidden_dim=512 model.projector.norm=batch, and less optimizer.weight_decay",
        )
    if len(h) > 1 and h[-1] < SHRUNK * h[0]:
        proof = Evidence("rank of h / that at first", h[-1] / h[0], f"{SHRUNK} at least", "it triples in health")
        cause = "the encoder loses dimensions: too high a learning rate or weight decay, or too weak a policy"
        return Finding("dimensional collapse", (proof,), cause, f"{_lower_lr(case)}, or augment=simclr_cifar")
    return None


def shortcut(case: Case) -> Finding | None:
    """The pretext task is solved early, and what solves it is worth little."""
    lacks = _lacks(case)
    early = max(1.0, EARLY * case.get("epochs", 1))
    within = [row["accuracy"] for row in case.rows if "accuracy" in row and (lacks or row["epoch"] <= early)]
    best, knn = max(within, default=0.0), max(case.curve("knn"), default=None)
    easy, apart = (EASY_WITHOUT, APART_WITHOUT) if lacks and knn is not None else (EASY, APART)
    if best < easy or (knn is not None and best - knn < apart):
        return None
    when = "contrastive accuracy" + ("" if lacks else f" in {early:g} epochs")
    proofs = [Evidence(when, best, f"below {easy}", f"0.48 after an epoch, 0.81 at the end in {HEALTHY_RUNS}")]
    if knn is not None:
        source = f"0.11 in {HEALTHY_RUNS}"
        proofs.append(Evidence("contrastive less kNN accuracy", best - knn, f"{apart} at most", source))
    if lacks:
        cause = f"the policy has no {' and no '.join(lacks)}: two views can be matched by it (SimCLR, section 3.1)"
        return Finding("shortcut", tuple(proofs), cause, "augment=simclr_cifar")
    if not _of_images(case):
        cause = "the views of a sample are nearly the same, or share something that no other sample has"
        return Finding("shortcut", tuple(proofs), cause, "more or stronger operations in augment.ops")
    cause = "the views of an image share something that no other image has, such as its colours, a border or a stamp"
    return Finding("shortcut", tuple(proofs), cause, "look at views.png; augment.strength=1, a wider augment.ops.crop")


def _lacks(case: Case) -> list[str]:
    """Of crop and colour distortion, the two that SimCLR cannot do without (figure 5), what the policy leaves out."""
    if not case.get("augment") or not _of_images(case):
        return []
    ops = [op for op in case.get("augment.ops", {}).values() if op and op.get("p", 1.0) > 0]
    names = [str(op.get("_target_", "")).rpartition(".")[2] for op in ops if op.get("strength", 1.0) != 0]
    if any("Augment" in name for name in names):  # automatic policies have colours of their own
        names.append("ColorJitter")
    kinds = {"RandomResizedCrop": "crop", "ColorJitter": "colour distortion"}
    return [words for name, words in kinds.items() if name not in names]


def _of_images(case: Case) -> bool:
    """False of sounds, texts, tables, and of data of one's own, of which nothing is known."""
    return str(case.get("data._target_") or "twoview.data.image").startswith("twoview.data.image")


def queue(case: Case) -> Finding | None:
    size, filled = case.get("model.queue_size", 0), case.curve("queue_filled")[-1]  # the mean over the last reading
    if filled >= 0.95:
        return None
    proof = Evidence("keys in the queue / its size", filled, "1 long before the end", f"1 in {HEALTHY_RUNS}")
    cause = f"the run is shorter than its queue of {size:,} keys, and a loss that rises with it tells nothing"
    full = 2 ** max(0, int(math.log2(max(1.0, filled * size))))
    return Finding("queue not filled", (proof,), cause, f"model.queue_size={full}, or more epochs")


def input_bound(case: Case) -> Finding | None:
    shares = case.curve("waiting")[1:]  # the first reading has the start of the loader in it
    share = median(shares) if shares else 0.0
    if share <= WAITING:
        return None
    proof = Evidence("share of the time waiting for batches", share, f"{WAITING} at most", "definition: half the time")
    cause = f"images come too slowly: without waiting the run is up to {1 / max(1e-3, 1 - share):.1f} times as fast"
    workers = 2 * max(1, case.get("loader.num_workers", 1))
    return Finding("input-bound", (proof,), cause, f"loader.num_workers={workers}, or smaller images (data.size)")


@dataclass(frozen=True)
class Illness:
    """`look` finds its signs, or None. `needs`: what the run has to tell, see `Case.has`. `early`: also looked for in
    the first steps.
    """

    look: Callable[[Case], Finding | None]
    needs: tuple[str, ...] = ()
    early: bool = False


# Of these the first that is found explains the others.
OF_LEARNING = (
    Illness(not_finite, ("loss",), early=True),
    Illness(too_fast, ("chance",)),
    Illness(collapse, ("spread",)),
    Illness(chance_level, ("chance",)),
    Illness(stands_still, ("loss",)),
    Illness(narrow, ("h_effective_rank",)),
)
OTHERS = (
    Illness(shortcut, ("accuracy",)),
    Illness(queue, ("queue_filled",), early=True),
    Illness(input_bound, ("waiting",), early=True),
)
