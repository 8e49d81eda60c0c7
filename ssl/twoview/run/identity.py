"""Who a run is: one hash over all that decides its result, which are its configuration, its data and the code."""

import functools
import hashlib
import json
import logging
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from twoview.data.demand import OnDemand
from twoview.data.set import SampleSet
from twoview.errors import UserError
from twoview.run.provenance import versions

log = logging.getLogger(__name__)

LEFT_OUT = {
    # names, places and what is shown
    "name",
    "debug",
    "resume",
    "allow_changes",
    "budget",  # its epochs count
    "trust",
    "data.root",
    "data.unverified",
    "log_every_steps",
    # when something is measured or saved, not what
    "knn.every_epochs",
    "quality.every_epochs",
    "checkpoint",
    "trainer.max_time",
    # how the same numbers are computed, up to rounding
    "channels_last",
    "compile",
    "loader.num_workers",
    "augment.compile",
    "loss.chunk",
    "model.chunk",
    "trainer.accelerator",
    "trainer.devices",
    "trainer.num_nodes",
    "trainer.strategy",
    "trainer.deterministic",
    "trainer.sync_batchnorm",
    "trainer.benchmark",
    # without effect of their own
    "augment.strength",
    "model.fresh_queue",
}


def config_hash(config: Mapping[str, Any]) -> str:
    """12 hex digits over every field of a resolved training configuration that changes the result.

    A field counts unless it is in `LEFT_OUT`, so a new one counts by itself. Left out, and why:

    - `name`, `debug`, `resume`, `allow_changes`, `budget`, `trust`, `log_every_steps`: what a run is called, how it was
      started and what it shows. `data.root` is a path, and `data.unverified` leave to read what lies there: the digest
      of the data stands for that.
    - `checkpoint`, `trainer.max_time`, `every_epochs` of the monitors: when something is saved or measured. What the
      monitors measure counts (`knn.k`, ...): their numbers are part of the result.
    - `channels_last`, `compile`, `augment.compile`, `loss.chunk`, `model.chunk`, `loader.num_workers`, and of the
      trainer accelerator, devices, nodes, strategy, `deterministic` and `benchmark`: the same numbers up to rounding.
      W devices compute what one does, except for batch statistics without `trainer.sync_batchnorm`: what that comes
      to on so many devices is a part of the identity of its own. `trainer.precision` counts as it is written.
    - `augment.strength` acts through the values of the operations that were made from it, which count;
      `model.fresh_queue` is itself a word for one resumption.

    `data.in_memory` counts although it changes no pixel: data in memory and data on demand have digests of two kinds.
    The order of keys counts among the operations of the policy only, which are applied in it; 1 and 1.0 are the same.
    """
    return _short(relevant(config))


def relevant(config: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a configuration that change the result, with dotted keys."""
    fields = {key: value for key, value in flat(config).items() if not _left_out(key)}
    augment = config.get("augment")
    if not isinstance(augment, Mapping):
        return fields
    orders = {"augment.ops": augment.get("ops")}
    groups = augment["views"] if isinstance(augment.get("views"), list) else []
    orders |= {f"augment.views.{n}.ops": group.get("ops") for n, group in enumerate(groups)}
    return fields | {key: list(ops) for key, ops in orders.items() if isinstance(ops, Mapping) and ops}


def _left_out(key: str) -> bool:
    return key in LEFT_OUT or key.partition(".")[0] in LEFT_OUT


def flat(config: Any, path: str = "") -> dict[str, Any]:
    """Nested containers as one dict with dotted keys."""
    if not isinstance(config, Mapping) or not config:
        return {path: config}
    return {
        k: v for key, value in config.items() for k, v in flat(value, f"{path}.{key}" if path else str(key)).items()
    }


def data_digest(samples: SampleSet) -> str:
    """12 hex digits over samples and labels; of samples that are decoded on demand, over what tells them apart without
    decoding: names and sizes of their files.

    Where the files lie does not enter.
    """
    if not isinstance(samples.samples, OnDemand):
        return samples.digest()[:12]
    labels = None if samples.labels is None else samples.labels.tolist()
    return _short([samples.shape, samples.samples.stamp(), labels])


PACKAGE = Path(__file__).parents[1]
DECIDES = ("data", "augment", "encoder", "losses", "parallel", "optim", "model", "train", "rng.py")  # the weights
SPEAKS = ("train/command.py", "train/config.py", "train/budget.py", "train/summary.py")  # of a run, beside its training


def code_digest() -> str:
    """12 hex digits over the source files that decide a run's weights, with or without a version control."""
    return _digests(PACKAGE)[0]


def surroundings() -> dict[str, str]:
    """What a run's result should not depend on, and is told all the same: versions, and the rest of the code."""
    return {"rest of twoview": _digests(PACKAGE)[1]} | versions()


@functools.cache  # what a process runs is what it found at its start
def _digests(package: Path) -> tuple[str, str]:
    """Of the files that decide weights, and of all others."""
    shas = hashlib.sha256(), hashlib.sha256()
    for path in sorted(package.rglob("*.py")):
        name = path.relative_to(package).as_posix()
        sha = shas[0 if name.split("/")[0] in DECIDES and name not in SPEAKS else 1]
        sha.update(f"{name}\0".encode())
        sha.update(hashlib.sha256(path.read_bytes()).digest())
    return shas[0].hexdigest()[:12], shas[1].hexdigest()[:12]


def statistics_of(sync_batchnorm: bool, devices: int) -> str:
    """Over which samples batch statistics are taken: one device has the global batch anyway."""
    return "global batch" if sync_batchnorm or devices == 1 else f"each of {devices} devices"


@dataclass(frozen=True)
class Identity:
    """What decides a run's result.

    `test` are the samples that its monitors score on, empty without such. `precision` is what `trainer.precision=auto`
    came to on the machine, `statistics` what `trainer.sync_batchnorm` did on so many devices. `after` names the run and
    step that a run with changes went on from; empty for a run that is the same from its start. `weights` are those that
    the encoder started from, empty for random ones. `package` is that of another that the encoder is from, with its
    version.
    """

    config: str
    data: str
    code: str
    precision: str
    after: str = ""
    test: str = ""
    statistics: str = "global batch"
    weights: str = ""
    package: str = ""

    @property
    def run_hash(self) -> str:
        """12 hex digits over all of it: equal for runs that are the same run."""
        return _short(asdict(self))

    def stored(self) -> dict[str, Any]:
        """As plain values, for the checkpoint and the summary, with the `surroundings`, which do not count."""
        return asdict(self) | {"run_hash": self.run_hash, "surroundings": surroundings()}


def follow(
    identity: Identity, config: Mapping[str, Any], checkpoint: Mapping[str, Any], path: Path, allow_changes: bool
) -> Identity:
    """The identity of a run that goes on from a checkpoint.

    UserError that lists what differs, unless `allow_changes`; other surroundings are told.
    """
    about = checkpoint["twoview"]
    before = about.get("identity")
    if not isinstance(before, dict):
        raise UserError(f"{path} is damaged: it does not say with which data and code it was trained")
    changes = differences(about["config"], config)
    for name, what in (("data", "training samples differ"), ("test", "test samples differ"), ("code", "code differs")):
        if before.get(name) != getattr(identity, name):
            changes.append(f"the {what}")
    for name, what in (("precision", "precision"), ("statistics", "batch statistics of"), ("package", "encoder of")):
        if before.get(name, "") != getattr(identity, name):
            changes.append(f"{what} {getattr(identity, name)} instead of {before.get(name)}")
    then = before.get("surroundings")
    then = then if isinstance(then, dict) else {}
    present = surroundings().items()
    unlike = [f"{name} {value} instead of {then.get(name)}" for name, value in present if then.get(name) != value]
    if unlike:
        log.info("going on with other software than before: %s", "; ".join(unlike))
    identity = replace(identity, weights=str(before.get("weights", "")))
    if not changes:
        return replace(identity, after=str(before.get("after", "")))
    said = "; ".join(changes[:6]) + (f"; and {len(changes) - 6} more" if len(changes) > 6 else "")
    if not allow_changes:
        raise UserError(
            f"{path} is of another run: {said}. allow_changes=true goes on all the same, with a result that is of "
            "neither run"
        )
    step = checkpoint["global_step"]
    log.info("going on from step %s with changes: %s", step, said)
    return replace(identity, after=f"{before.get('run_hash')}@{step}")


BESIDE = {
    "data": "training samples",
    "test": "test samples",
    "code": "code of twoview",
    "precision": "precision",
    "statistics": "batch statistics",
    "after": "run gone on from",
    "weights": "weights started from",
    "package": "package of the encoder",
}


def apart(*identities: Mapping[str, Any], but: Collection[str] = ()) -> list[str]:
    """What stored identities differ in beside their configurations, in words; what none of them tells is among it.

    Results that are apart so are compared only where a flag says so. `but` names parts that may differ.
    """
    unlike = []
    for part, what in BESIDE.items():
        nothing = "" if part in ("weights", "package") else None  # most runs have none of these
        values = [identity.get(part, nothing) for identity in identities]
        if part not in but and (None in values or any(value != values[0] for value in values)):
            unlike.append(what)
    return unlike


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """What changes the result between two configurations, as "key=value instead of value"."""
    old, new = relevant(before), relevant(now)
    keys = [*new, *(key for key in old if key not in new)]
    return [
        f"{key}={_word(new, key)} instead of {_word(old, key)}"
        for key in keys
        if key not in old or key not in new or _plain(old[key]) != _plain(new[key])
    ]


def _word(fields: Mapping[str, Any], key: str) -> str:
    value = fields.get(key, "nothing")
    return value if isinstance(value, str) else json.dumps(value, default=str)


def _short(value: Any) -> str:
    text = json.dumps(_plain(value), sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def _plain(value: Any) -> Any:
    """With whole numbers written in one way."""
    if isinstance(value, Mapping):
        return {str(key): _plain(v) for key, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value
