"""A policy as a person turns it: the controls of its operations, and the policy that they describe.

A policy is a section `augment` of the configuration, as plain containers in which `${augment.strength}` may still
stand, so that what is copied follows the strength as the original does.
"""

import copy
import inspect
import math
import typing
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import yaml

from twoview.cli import schema
from twoview.errors import UserError

FOLLOWS = "${augment.strength}"
TOP = 2.0  # of the slider of the strength
PLAIN = ("_target_", "_partial_", "_convert_", "_recursive_")

Policy = dict[str, Any]


def linked(policy: Policy) -> Policy:
    """A policy as a run stores it, in which every operation's `strength` that is the policy's follows it again."""
    found = copy.deepcopy(policy)
    for op in found["ops"].values():
        if "strength" in op and op["strength"] == found.get("strength"):
            op["strength"] = FOLLOWS
    return found


def resolved(policy: Policy) -> Policy:
    """The policy with its strength put in wherever something follows it."""
    strength = policy.get("strength")

    def put(node: Any) -> Any:
        if isinstance(node, Mapping):
            return {key: put(value) for key, value in node.items()}
        if isinstance(node, list):
            return [put(value) for value in node]
        return strength if node == FOLLOWS else node

    found: Policy = put(policy)
    return found


def controls(policy: Policy) -> list[dict[str, Any]]:
    """What can be turned of each operation, for the page. `kind` is number, integer, flag, choice, text or range (two
    numbers); `low` and `high` are the ends of a slider, beyond which values can still be typed.
    """
    found = []
    for name, node in policy["ops"].items():
        target = schema.found(node["_target_"])
        hints = typing.get_type_hints(target.__init__)
        keys = []
        for parameter in inspect.signature(target).parameters.values():
            value = node.get(parameter.name, parameter.default)
            control = _control(resolved({"strength": policy.get("strength"), "": value})[""], hints.get(parameter.name))
            if control:
                keys.append({"key": parameter.name, "follows": value == FOLLOWS} | control)
        about = " ".join((inspect.getdoc(target) or "").split("\n\n")[0].split())
        found.append({"name": name, "class": target.__name__, "about": about, "keys": keys})
    return found


def _control(value: Any, hint: Any) -> dict[str, Any] | None:
    kinds = {hint, *typing.get_args(hint)}
    if typing.get_origin(hint) is Literal:
        return {"kind": "choice", "value": value, "options": list(typing.get_args(hint))}
    if bool in kinds:
        return {"kind": "flag", "value": value}
    if int in kinds and float not in kinds and (value is None or isinstance(value, int)):
        return {"kind": "integer", "value": value}
    if float in kinds and isinstance(value, int | float) and math.isfinite(value):
        return {"kind": "number", "value": value} | _ends(value, value)
    if isinstance(value, list | tuple) and len(value) == 2 and all(isinstance(x, int | float) for x in value):
        whole = all(isinstance(x, int) for x in value)
        return {"kind": "range", "value": list(value), "whole": whole} | _ends(min(value), max(value))
    if str in kinds and isinstance(value, str):
        return {"kind": "text", "value": value}
    return None


def _ends(low: float, high: float) -> dict[str, float]:
    """Of a slider: shares have theirs, everything else goes to twice its value."""
    return {"low": 2 * low if low < 0 else 0, "high": 1 if high <= 1 else 2 * high}


def turned(policy: Policy, wishes: Mapping[str, Any]) -> Policy:
    """The policy with `wishes` of the page: `strength`, and by the name of an operation whether it is `on` and other
    `values` of its keys. UserError for anything else: no page can name a class.
    """
    found = copy.deepcopy(policy)
    if (strength := wishes.get("strength")) is not None:
        found["strength"] = strength
    known = {op["name"]: {control["key"] for control in op["keys"]} for op in controls(policy)}
    for name, wish in _mapping(wishes.get("ops", {}), "ops").items():
        if name not in known:
            raise UserError(f"the policy has no operation {name!r}; it has: {', '.join(known)}")
        for key, value in _mapping(_mapping(wish, name).get("values", {}), name).items():
            if key not in known[name]:
                raise UserError(f"{name} has no key {key!r} to turn; it has: {', '.join(sorted(known[name]))}")
            found["ops"][name][key] = value
        if not wish.get("on", True):
            del found["ops"][name]
    schema.check(resolved(found), "augment")
    return found


def _mapping(node: Any, name: str) -> Mapping[str, Any]:
    if not isinstance(node, Mapping):
        raise UserError(f"{name}={node!r} is no table of values")
    return node


def file_of(policy: Policy) -> str:
    """The policy as `configs/augment/mine.yaml`."""
    return "# A policy of one's own: save it as configs/augment/mine.yaml and use augment=mine.\n" + yaml.dump(
        policy, Dumper=_Dumper, sort_keys=False, width=110
    )


class _Dumper(yaml.SafeDumper):
    """Lists of values on one line, sections below each other."""


def _flow(dumper: yaml.SafeDumper, values: Sequence[Any]) -> yaml.Node:
    return dumper.represent_sequence("tag:yaml.org,2002:seq", values, flow_style=True)


_Dumper.add_representer(list, _flow)


def words_of(before: Policy, after: Policy) -> list[str]:
    """What makes `after` of `before` on the command line, a word for each change."""
    words = []
    if before.get("strength") != after.get("strength"):
        words.append(f"augment.strength={_text(after['strength'])}")
    for name, node in before["ops"].items():
        if name not in after["ops"]:
            words.append(f"~augment.ops.{name}")
            continue
        for key, value in after["ops"][name].items():
            if key not in PLAIN and (key not in node or node[key] != value):
                words.append(f"{'' if key in node else '+'}augment.ops.{name}.{key}={_text(value)}")
    return words


def _text(value: Any) -> str:
    if isinstance(value, list):
        return f"[{','.join(map(_text, value))}]"
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
