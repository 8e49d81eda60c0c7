"""What a study compares: arms, each of which is a run with a few more overrides on its command line.

A study is one of the classes below, described by a file in `configs/study/`. It knows nothing of training: it turns
the configuration of a run into a list of arms. Unless a class says otherwise, the first arm is that run unchanged,
the reference.
"""

import itertools
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from twoview.cli.schema import found
from twoview.errors import UserError

_BARE = re.compile(r"(?!(null|true|false|nan|inf)$)[a-z_][a-z0-9_.]*", re.IGNORECASE)  # needs no quotes

Base = Mapping[str, Any]  # the configuration of a run, in plain containers


@dataclass(frozen=True)
class Arm:
    """A run of a study, whatever its seed. `place` is its position in the study, by axis."""

    name: str
    overrides: tuple[str, ...]
    place: dict[str, Any]


@dataclass(frozen=True)
class Axis:
    """What a study varies. `label` is its name for people; `values` are in the order of the page."""

    key: str
    label: str
    values: list[Any]


@dataclass(frozen=True)
class Plan:
    """The arms and axes of a study. `kind` says how it is drawn: curve, grid, compose or categories."""

    kind: str
    axes: list[Axis]
    arms: list[Arm]
    reference: str  # name of the arm that the others are compared with
    fields: dict[str, Any] = field(default_factory=dict)


class Study:
    """Base of the studies. `seeds` is a list of seeds, or their number, counted from 0."""

    def __init__(self, name: str, title: str, seeds: int | list[int] = 3) -> None:
        self.name, self.title = name, title
        self.seeds = list(range(seeds)) if isinstance(seeds, int) else list(seeds)
        if not self.seeds or len(set(self.seeds)) != len(self.seeds) or not all(0 <= s < 2**32 for s in self.seeds):
            raise UserError(f"study.seeds must be a number of at least 1 or a list of different ones, not {seeds}")

    def plan(self, base: Base) -> Plan:
        """The arms of the study of runs like `base`."""
        raise NotImplementedError


class Axes(Study):
    """Base of the studies of keys. `axes`: values by key. `labels`: what a key is called on the page, by key."""

    def __init__(
        self,
        name: str,
        title: str,
        axes: dict[str, list[Any]],
        labels: dict[str, str] | None = None,
        seeds: int | list[int] = 3,
    ) -> None:
        super().__init__(name, title, seeds)
        self.axes, self.labels = _checked(axes), labels or {}


class Curve(Axes):
    """Accuracy over the values of a key, or of several keys, each varied alone while the others stay as they are.

    The reference is the run as it is: its own value of each key is on the curve anyway.
    """

    def plan(self, base: Base) -> Plan:
        own = {key: value_of(base, key) for key in self.axes}
        one = len(self.axes) == 1
        name = _name(own) if one else "as it is"
        arms = [Arm(name, (), own)]
        for key, values in self.axes.items():
            arms += [Arm(_name({key: v}), (override(key, v),), {key: v}) for v in values if v != own[key]]
        axes = []
        for key, values in self.axes.items():
            shown = values if own[key] in values else [own[key], *values]
            if all(isinstance(v, int | float) for v in shown):
                shown = sorted(shown)
            axes.append(Axis(key, self.labels.get(key, key), shown))
        if one:  # the reference in its place on the curve
            order = axes[0].values
            arms.sort(key=lambda arm: order.index(arm.place[axes[0].key]))
        return Plan("curve", axes, arms, name)


class Grid(Axes):
    """All combinations of the values of some keys; a key may be a group, as `model: [simclr, moco]`.

    The reference is the combination that is the run as it is, or else the first.
    """

    def plan(self, base: Base) -> Plan:
        places = [dict(zip(self.axes, values, strict=True)) for values in itertools.product(*self.axes.values())]
        # Groups first: their keys can be set only once they are chosen.
        arms = [
            Arm(
                _name(place),
                tuple(override(k, v) for k, v in sorted(place.items(), key=lambda item: "." in item[0])),
                place,
            )
            for place in places
        ]
        own = {key: value_of(base, key, None) for key in self.axes}
        reference = next((arm for arm in arms if arm.place == own), arms[0])
        axes = [Axis(key, self.labels.get(key, key), values) for key, values in self.axes.items()]
        return Plan("grid", axes, arms, reference.name)


class Compose(Study):
    """The heat map of SimCLR's figure 5: single operations on the diagonal, pairs of them off it.

    As in the paper an operation changes one view and leaves the other as it is; those in `both` (the crop) change both
    views, each with its own random numbers. Operations are applied in the order of `ops`, so a pair has one cell, and
    with their own `p`. `reference` is the name of one of them.
    """

    def __init__(
        self,
        name: str,
        title: str,
        ops: dict[str, Any],
        both: list[str],
        reference: str,
        seeds: int | list[int] = 1,
    ) -> None:
        super().__init__(name, title, seeds)
        if len(ops) < 2:
            raise UserError(f"study.ops needs two operations or more to compose, not {len(ops)}")
        for what, names in (("both", both), ("reference", [reference])):
            for op in names:
                if op not in ops:
                    raise UserError(f"study.{what} names {op!r}, which is not in study.ops: {', '.join(ops)}")
        self.ops, self.both, self.reference = ops, both, reference

    def plan(self, base: Base) -> Plan:
        arms = []
        for first, second in itertools.combinations_with_replacement(self.ops, 2):
            named = {first: self.ops[first], second: self.ops[second]}  # one operation where the two are the same
            only_one = {op: None for op in named if op not in self.both}
            views = [{"count": 1}, {"count": 1, "ops": only_one}] if only_one else None
            overrides = ("~augment.ops", f"+augment.ops={value(named)}", f"augment.views={value(views)}")
            arms.append(Arm(" + ".join(named), overrides, {"first": first, "second": second}))
        names = list(self.ops)
        return Plan("compose", [Axis("first", "", names), Axis("second", "", names)], arms, self.reference)


class LeaveOneOut(Study):
    """The policy without each of its operations, or of those that `ops` names. A step from one kind of data to another
    (`ToLogMel`) stays: without it the operations behind would have nothing to work on.
    """

    def __init__(self, name: str, title: str, ops: list[str] | None = None, seeds: int | list[int] = 3) -> None:
        super().__init__(name, title, seeds)
        self.ops = ops

    def plan(self, base: Base) -> Plan:
        policy = _operations(base)
        for op in self.ops or []:
            if op not in policy:
                raise UserError(f"study.ops names {op!r}, which the policy lacks; it has: {', '.join(policy)}")
        chosen = [op for op in policy if not _turns(base, op)] if self.ops is None else self.ops
        if not chosen:
            raise UserError("the policy has no operation that could be left out; choose another by augment=...")
        arms = [Arm("the whole policy", (), {"left out": "nothing"})]
        arms += [Arm(f"without {op}", _without(base, op), {"left out": op}) for op in chosen]
        return Plan("categories", [Axis("left out", "left out", ["nothing", *chosen])], arms, "the whole policy")


class AddOne(Study):
    """The policy with one more operation, after its own. `ops` describes the operations by name. One on waves comes
    before the policy makes spectrograms of them.
    """

    def __init__(self, name: str, title: str, ops: dict[str, Any], seeds: int | list[int] = 3) -> None:
        super().__init__(name, title, seeds)
        if not ops:
            raise UserError("study.ops has no operation to add")
        self.ops = ops

    def plan(self, base: Base) -> Plan:
        policy = _operations(base)
        for op in self.ops:
            if op in policy:
                raise UserError(f"study.ops names {op!r}, which the policy has already; leave one of the two out")
        arms = [Arm("the policy", (), {"added": "nothing"})]
        arms += [Arm(f"with {op}", _with(base, op, how), {"added": op}) for op, how in self.ops.items()]
        return Plan("categories", [Axis("added", "added", ["nothing", *self.ops])], arms, "the policy")


def _kind(how: Mapping[str, Any]) -> str | None:
    """The kind of data that an operation changes."""
    return getattr(found(how["_target_"]), "kind", None)


def _turns(base: Base, op: str) -> bool:
    """Whether an operation makes another kind of data of what it gets."""
    node = base["augment"]["ops"].get(op)
    return node is not None and bool(getattr(found(node["_target_"]), "makes", ""))


def _with(base: Base, op: str, how: Any) -> tuple[str, ...]:
    """Overrides that add an operation: last, or before the step that turns its kind of data into another."""
    own = base["augment"]["ops"]
    kind = _kind(how)
    step = next((name for name in own if _turns(base, name) and _kind(own[name]) == kind), None)
    if step is None:
        return (f"+augment.ops.{op}={value(how)}",)
    at = list(own).index(step)
    ops = dict([*list(own.items())[:at], (op, how), *list(own.items())[at:]])
    return ("~augment.ops", f"+augment.ops={value(ops)}")


def _operations(base: Base) -> list[str]:
    """The names of the operations of a policy and of its views."""
    names = list(base["augment"]["ops"])
    for group in base["augment"].get("views") or []:
        names += [op for op in group.get("ops") or {} if op not in names]
    return names


def _without(base: Base, op: str) -> tuple[str, ...]:
    """Overrides that take an operation out of a policy and of all its views."""
    overrides = [f"~augment.ops.{op}"] if op in base["augment"]["ops"] else []
    groups = base["augment"].get("views") or []
    if any(op in (group.get("ops") or {}) for group in groups):
        kept = [{**g, "ops": {name: how for name, how in (g.get("ops") or {}).items() if name != op}} for g in groups]
        overrides.append(f"augment.views={value(kept)}")
    return tuple(overrides)


def value_of(base: Base, key: str, *default: Any) -> Any:
    """The value of a dotted key; for a group the name of its option, from `base["choices"]`."""
    if key in base.get("choices", {}):
        return base["choices"][key]
    node: Any = base
    for part in key.split("."):
        if not isinstance(node, Mapping) or part not in node:
            if default:
                return default[0]
            policy = ", ".join(base["augment"]["ops"])
            there = f"its policy has: {policy}" if key.startswith("augment.ops.") else "a study varies what there is"
            raise UserError(f"study.axes names {key}, which the run lacks; {there}")
        node = node[part]
    return node


def override(key: str, what: Any) -> str:
    """`key=value` for the command line."""
    return f"{key}={value(what)}"


def value(what: Any) -> str:
    """A plain value in the grammar of Hydra's command line."""
    if what is None or isinstance(what, bool):
        return {None: "null", True: "true", False: "false"}[what]
    if isinstance(what, Mapping):
        return "{" + ",".join(f"{key}:{value(inner)}" for key, inner in what.items()) + "}"
    if isinstance(what, list | tuple):
        return "[" + ",".join(map(value, what)) + "]"
    if isinstance(what, str) and not _BARE.fullmatch(what):
        return "'" + re.sub(r"(\\*)('|$)", lambda m: m[1] * 2 + ("\\'" if m[2] else ""), what) + "'"
    return str(what)


def _checked(axes: dict[str, list[Any]]) -> dict[str, list[Any]]:
    if not axes or not all(axes.values()):
        raise UserError("study.axes needs a key with its values, as {augment.strength: [0, 0.5, 1]}")
    for key, values in axes.items():
        if key == "seed":
            raise UserError("seeds are a dimension of every study: give their number as study.seeds")
        if any(isinstance(v, float) and not math.isfinite(v) for v in values):
            raise UserError(f"study.axes.{key}={values} must be finite")
        if any(values.count(v) > 1 for v in values):
            raise UserError(f"study.axes.{key}={values} names a value twice")
    return axes


def _name(place: Mapping[str, Any]) -> str:
    """The short name of an arm: the last part of each key, or two where one says too little (`jitter.p`)."""
    return ", ".join(f"{_short(key)}={value(what)}" for key, what in place.items())


def _short(key: str) -> str:
    parts = key.split(".")
    return ".".join(parts[-2:]) if "ops" in parts[:-2] else parts[-1]
