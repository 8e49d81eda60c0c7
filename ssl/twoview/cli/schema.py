"""From configurations to objects. What a section holds is checked before anything is built: the signature of what a
`_target_` names is the schema of its keys.
"""

import difflib
import inspect
import types
import typing
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal, Union

import hydra
from omegaconf import OmegaConf

from twoview.cli.trust import is_trusted, remedy
from twoview.errors import UserError

MOST = 40  # names that a message lists
_NO_MEMORY = ("out of memory", "allocate", "Storage size calculation overflowed", "array is too big")


def build(node: Mapping[str, Any], **arguments: Any) -> Any:
    """The object that a section with a `_target_` describes, its constructor called with its keys and `arguments`.

    With `_partial_: true` the constructor itself comes back, its keys filled in.
    """
    try:
        # Arguments do not pass through Hydra, which would take data classes among them for configurations.
        factory = hydra.utils.instantiate(OmegaConf.create(dict(node)), _partial_=True, _convert_="all")
        return factory if node.get("_partial_") else factory(**arguments)
    except hydra.errors.InstantiationException as error:  # Hydra's envelope for what a constructor raised
        raise _refusal(node, error.__cause__ or error) from error
    except (MemoryError, OverflowError, RuntimeError, TypeError, ValueError) as error:  # torch's and Lightning's
        raise _refusal(node, error) from error


def _refusal(node: Mapping[str, Any], error: BaseException) -> UserError:
    """What a constructor says of values that it cannot take, with their names."""
    if isinstance(error, UserError):
        return error
    memory = isinstance(error, MemoryError) or any(words in str(error) for words in _NO_MEMORY)
    reason = "they ask for more memory than there is" if memory else (str(error).splitlines() or [""])[0]
    values = ", ".join(f"{path}={value}" for path, value in _leaves(node))
    return UserError(f"{str(node.get('_target_')).rpartition('.')[2]} takes other values than {values}: {reason}")


def _leaves(node: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in node.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{above}{key}.")
        elif not str(key).startswith("_"):
            yield f"{above}{key}", value


def check(node: Any, path: str = "") -> None:
    """Raises UserError for the first key that no constructor takes and the first value of a wrong type, in `node` and
    below.
    """
    if isinstance(node, list | tuple):
        for value in node:
            check(value, path)
    if isinstance(node, int) and not -(2**63) <= node < 2**63:  # torch's integers, and all that a run can count
        raise UserError(f"{path} is a number of {len(str(abs(node)))} digits: give one that fits into 64 bits")
    if not isinstance(node, Mapping):
        return
    if "_target_" in node:
        _check_arguments(node, path)
    for key, value in node.items():
        check(value, f"{path}.{key}" if path else str(key))


def check_keys(config: Mapping[str, Any], keys: Mapping[str, Any]) -> None:
    """Raises UserError for the first value of a wrong type of a command's own keys, which are annotated in `keys`."""
    for key, hint in keys.items():
        if key in config:
            if not fits(config[key], hint):
                raise UserError(f"{key}={config[key]!r} is not {words(hint)}")
            check(config[key], key)


def _check_arguments(node: Mapping[str, Any], path: str) -> None:
    target = _target(node, path)
    takes = target.__init__ if inspect.isclass(target) else target
    parameters = [p for p in inspect.signature(takes).parameters.values() if p.name != "self"]
    hints = typing.get_type_hints(takes)
    open_ended = any(p.kind is p.VAR_KEYWORD for p in parameters)
    known = {p.name for p in parameters if p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)}
    for key, value in node.items():
        if key == "_partial_":
            _check_value(value, bool, f"{path}.{key}")
        if key in ("_target_", "_partial_", "_convert_", "_recursive_"):
            continue
        if key not in known and not open_ended:
            raise UserError(unknown_key(path, str(key), known & set(node) | _plain(parameters, hints)))
        if key in hints:
            _check_value(value, hints[key], f"{path}.{key}")


def _check_value(value: Any, hint: Any, path: str) -> None:
    arguments = typing.get_args(hint)
    if typing.get_origin(hint) in (dict, Mapping) and isinstance(value, Mapping) and "_target_" not in value:
        for key, inner in value.items():
            _check_value(inner, arguments[1], f"{path}.{key}")
    elif not fits(value, hint):
        raise UserError(f"{path}={value!r} is not {words(hint)}")


def _plain(parameters: Iterable[inspect.Parameter], hints: Mapping[str, Any]) -> set[str]:
    """Parameters that a configuration can give: those that hold plain values."""
    return {p.name for p in parameters if fits(p.default, hints.get(p.name, Any)) and p.default is not p.empty}


def _target(node: Mapping[str, Any], path: str) -> Callable[..., Any]:
    if not isinstance(node["_target_"], str):
        raise UserError(f"{path}._target_={node['_target_']!r} is not the name of a class or function")
    if not node["_target_"].startswith(("twoview.", "torch.optim.")) and not is_trusted(node["_target_"]):
        raise UserError(f"{path}._target_={node['_target_']} is no part of twoview.{remedy(node['_target_'])}")
    return found(node["_target_"], f"{path}._target_=")


def found(target: str, key: str = "") -> Callable[..., Any]:
    """What a path leads to, its module imported; UserError where it leads nowhere."""
    try:
        there: Callable[..., Any] = hydra.utils.get_object(target)
    except Exception as error:  # hydra wraps whatever the import of the module raised
        reason = " ".join(str(error).splitlines()[:2])
        raise UserError(f"{key}{target} cannot be imported: {reason}") from error
    return there


def unknown_key(path: str, key: str, known: Iterable[str]) -> str:
    known = sorted(known)
    spoken = {_letters(name): name for name in known}
    close = [spoken[name] for name in difflib.get_close_matches(_letters(key), spoken, n=MOST)]
    hint = f" Did you mean {close[0]}?" if close else ""
    shown = known if len(known) <= MOST else sorted(close[:6]) or known[:MOST]  # a list that nobody reads helps nobody
    rest = f" and {len(known) - len(shown)} more" if len(shown) < len(known) else ""
    return f"{path or 'the configuration'} has no key {key!r}.{hint} It has: {', '.join(shown)}{rest}"


def unknown_option(group: str, option: str, known: Iterable[str]) -> str:
    return unknown_key(group, option, known).replace("has no key", "has no option", 1)


def _letters(name: str) -> str:
    """A name without what people write differently: SimCLR, sim_clr and simclr are one."""
    return name.lower().replace("-", "").replace("_", "")


def fits(value: Any, hint: Any) -> bool:
    """Whether a plain value from a configuration can be passed where `hint` is annotated."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any:
        return True
    if origin in (Union, types.UnionType):
        return any(fits(value, a) for a in arguments)
    if origin is Literal:
        return value in arguments and type(value) in {type(a) for a in arguments}
    if hint is None or hint is type(None):
        return value is None
    if hint is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool)
    if hint in (bool, str):
        return isinstance(value, hint)
    if isinstance(value, Mapping) and "_target_" in value:
        return True  # an object of its own, checked on its own
    if origin in (list, tuple, Sequence) or hint in (list, tuple):
        element = arguments[0] if arguments else Any
        return isinstance(value, list | tuple) and all(fits(v, element) for v in value)
    if origin in (dict, Mapping) or hint is dict:
        return isinstance(value, Mapping)
    return not isinstance(value, str | int | float | bool | list | Mapping) and value is not None


def words(hint: Any) -> str:
    """What `fits` accepts for a hint, for a message."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (Union, types.UnionType):
        return " or ".join(words(a) for a in arguments)
    if origin is Literal:
        return "one of " + ", ".join(str(a) for a in arguments)
    if origin in (list, tuple, Sequence):
        return f"a list of {words(arguments[0]) if arguments else 'values'}"
    names = {int: "a whole number", float: "a number", bool: "true or false", str: "text", type(None): "null"}
    return names.get(hint, f"a section with a _target_ ({getattr(hint, '__name__', hint)})")
