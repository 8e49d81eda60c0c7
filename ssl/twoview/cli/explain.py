"""One message for a person for whatever goes wrong: what it is, and what there is instead."""

import re

import hydra
import yaml
from hydra.errors import (
    ConfigCompositionException,
    HydraException,
    MissingConfigException,
    OverrideParseException,
)
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from twoview.cli.configs import CHECKOUT, groups
from twoview.cli.schema import unknown_key, unknown_option
from twoview.errors import UserError

_NO_MEMORY = (
    "out of memory",
    "can't allocate memory",
    "Cannot allocate memory",
    "not enough memory",
)  # torch's, libc's
# What libraries and systems say, and what it means for a run.
_OTHERS = {
    "embedded null": "a path holds the null character, which no file can be called by: name another",
    "DataLoader worker": "a process that loads samples has ended (killed, often for want of memory): use fewer of them "
    "(loader.num_workers=1), or none (loader.num_workers=0)",
    **dict.fromkeys(
        ("Connection closed by peer", "Connection reset by peer", "NCCL communicator"),  # of gloo, NCCL
        "another process of the run has ended, and this one cannot go on alone; why stands in that one's message",
    ),
    **dict.fromkeys(
        ("clients joined", "client socket has timed out", "Gloo connectFullMesh failed"),
        "not all processes of the run have met within 5 minutes: see that all were started, on every node, and that "
        "each reaches the first one, by  nc -vz $MASTER_ADDR $MASTER_PORT",
    ),
    "Too many open files": "this shell may open too few files: say  ulimit -n 4096  first, or use fewer loader "
    "processes (loader.num_workers=0)",
    "Resource temporarily unavailable": "the system allows no more processes (ulimit -u): use fewer loader processes "
    "(loader.num_workers=0), or trainer.devices=1",
    **dict.fromkeys(
        ("EADDRINUSE", "ddress already in use"),
        "the port at which the processes of a run meet is in use, by another run perhaps: choose another by the "
        "environment variable MASTER_PORT, or leave it unset",
    ),
    "no kernel image is available": "this torch was not built for this GPU: install one that was (pytorch.org), or say "
    "trainer=cpu",
    **dict.fromkeys(
        ("NVIDIA driver on your system is too old", "driver version is insufficient"),
        "the NVIDIA driver is too old for this torch: update it, install an older torch, or say trainer=cpu",
    ),
    "TORCH_LOGS": "the environment variable TORCH_LOGS cannot be read: unset it",
}


def explain(error: BaseException, command: str = "train") -> str:
    """The message for an error of `command`, whose groups are named where one is asked for that it does not take."""
    if isinstance(error, hydra.errors.InstantiationException) and error.__cause__ is not None:
        return explain(error.__cause__, command)
    if isinstance(error, UserError):  # from a loader's worker, torch wraps the message into the worker's traceback
        return str(error).strip().rpartition(f"{type(error).__name__}: ")[2]
    if isinstance(error, MissingConfigException):
        group, _, option = (error.missing_cfg_file or "").rpartition("/")
        if error.options:
            return unknown_option(group, option, list(error.options))
        return f"there is no configuration {error.missing_cfg_file!r}; the groups are: {', '.join(groups(command))}"
    if isinstance(error, OverrideParseException):
        return f"cannot read {error.override!r}: write key=value (quote lists and blanks: 'key=[1,2]')"
    if isinstance(error, ConfigCompositionException):
        return _explain_composition(error, command)
    if isinstance(error, OmegaConfBaseException):
        return f"configuration: {str(error).splitlines()[0]}"
    if isinstance(error, yaml.YAMLError):
        return _explain_yaml(error)
    if isinstance(error, HydraException):
        return " ".join(str(error).split())
    text = next(
        (line.strip() for line in str(error).splitlines() if line.strip()), "no message"
    )  # what follows is where
    if isinstance(error, MemoryError) or any(words in str(error) for words in _NO_MEMORY):
        return _explain_memory(text, command)
    if meaning := next((meaning for words, meaning in _OTHERS.items() if words in str(error)), None):
        return meaning
    if isinstance(error, OSError):
        return f"{error.strerror or error}: {error.filename}" if error.filename else str(error)
    if text.startswith("Config group override must be"):  # hydra's for null, a number or no name at all
        return (
            f"a group is set to the name of an option, as in data=shapes; the groups are: {', '.join(groups(command))}"
        )
    return f"{type(error).__name__}: {text} (debug=true shows where)"


def _explain_memory(text: str, command: str) -> str:
    wanted = re.search(r"allocate ([\d.]+) (bytes|[KMG]iB)", text)
    size = f"{wanted[1]} {wanted[2]}" if wanted else ""
    if wanted and wanted[2] == "bytes":
        size = f"{float(wanted[1]) / 2**30:.2f} GiB"
    more = f" ({size} more were wanted)" if size else ""
    trains = "a smaller batch_size, smaller images (data.size) or a smaller encoder"
    return f"out of memory{more}: use {trains if command == 'train' else 'a machine with more, or fewer samples'}"


def _explain_yaml(error: yaml.YAMLError) -> str:
    mark = getattr(error, "problem_mark", None)
    name = mark.name if mark is not None else getattr(error, "name", "a configuration")
    line = f", line {mark.line + 1}" if mark is not None else ""
    reason = getattr(error, "problem", None) or getattr(error, "reason", None) or "damaged"
    remedy = ", or restore it with: git checkout configs" if str(CHECKOUT) in str(name) else ""
    return f"{name}{line} is no YAML ({reason}): mend it{remedy}"


def _explain_composition(error: ConfigCompositionException, command: str) -> str:
    cause = error.__cause__
    parent = getattr(cause, "parent_node", None)
    if isinstance(parent, DictConfig) and getattr(cause, "full_key", None):
        path, _, key = str(cause.full_key).rpartition(".")  # type: ignore[union-attr]
        if path.startswith("study.axes"):
            return (
                f"study.axes={{...}} gives new values to what the study varies ({', '.join(map(str, parent))}); to "
                "vary other keys write '~study.axes' '+study.axes={...}'"
            )
        if not path and (places := _below(parent, key)):
            return f"the configuration has no key {key!r} of its own: write {' or '.join(places[:4])}"
        return unknown_key(path, key, (str(k) for k in parent if not str(k).startswith("_") and k != "hydra"))
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if lines and lines[0].startswith("Could not override"):
        group = lines[0].split("'")[1]
        return f"there is no group {group!r}; the groups are: {', '.join(groups(command))}"
    if lines and lines[0].startswith("Ambiguous value"):
        key = lines[0].split("'")[1].partition("=")[0]
        return f"{key} has several values: add -m for a run with each, or write a list as '{key}=[...]'"
    if cause is not None and not isinstance(cause, ConfigCompositionException):
        return f"{lines[0] if lines else ''} {str(cause).splitlines()[0]}".strip()
    return " ".join(lines)


def _below(node: DictConfig, key: str, path: str = "") -> list[str]:
    """The places below a section where there is such a key, with dots."""
    found = []
    for name, value in node.items_ex(resolve=False):
        place = f"{path}.{name!s}" if path else str(name)
        if path and name == key:
            found.append(place)
        if isinstance(value, DictConfig) and name != "hydra":
            found += _below(value, key, place)
    return found
