"""The words of a command line: as people type them, into what Hydra's grammar reads.

Values that are text are text here, whatever characters they hold. What cannot be meant as typed is answered with what
to write.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException

from twoview.cli.program import spelled
from twoview.errors import UserError

# Keys that hold a path or the name of a file: their values are never numbers, lists or anything but text.
TEXT = {
    "against",
    "ckpt",
    "dir",
    "folder",
    "labels",
    "out",
    "query",
    "report",
    "resume",
    "root",
    "run",
    "tensorboard",
    "test",
    "train",
    "weights",
}
# Hydra's flags that take no value, and those that do.
SWITCHES = {"--help", "-h", "--hydra-help", "--multirun", "-m", "--resolve", "--run", "-r", "--shell-completion", "-sc"}
VALUED = {"--cfg": ("job", "hydra", "all"), "-c": ("job", "hydra", "all"), "--package": (), "-p": ()}
INFO = ("all", "config", "defaults", "defaults-tree", "plugins", "searchpath")
FOLDER = ("--config-dir", "-cd")
# The field's names for keys that are called otherwise here; the first that a command has is meant.
CALLED = {
    "arch": ("encoder",),
    "backbone": ("encoder",),
    "batch": ("batch_size",),
    "bs": ("batch_size",),
    "checkpoint_path": ("ckpt", "resume"),
    "ckpt": ("resume",),
    "dataset": ("data",),
    "devices": ("trainer.devices",),
    "gpus": ("trainer.devices",),
    "learning_rate": ("optimizer.lr_per_256", "lr_per_256"),
    "lr": ("optimizer.lr_per_256", "lr_per_256"),
    "max_epochs": ("epochs",),
    "method": ("model",),
    "num_epochs": ("epochs",),
    "num_workers": ("loader.num_workers",),
    "opt": ("optimizer",),
    "output": ("out", "hydra.run.dir"),
    "output_dir": ("out", "hydra.run.dir"),
    "precision": ("trainer.precision",),
    "strength": ("augment.strength",),
    "tau": ("model.temperature", "temperature"),
    "temperature": ("model.temperature",),
    "warmup_epochs": ("optimizer.warmup_epochs",),
    "wd": ("optimizer.weight_decay",),
    "weight_decay": ("optimizer.weight_decay",),
    "workers": ("loader.num_workers",),
}
NOTES = {"optimizer.lr_per_256": "the rate per 256 samples of a batch: optimizer.lr_scaling makes the peak rate of it"}


@dataclass(frozen=True)
class Command:
    """What a command can be told: its keys with their values, and its groups with their options."""

    name: str
    keys: Mapping[str, Any]
    groups: Mapping[str, Sequence[str]]

    @property
    def judges(self) -> bool:
        """Whether it takes the data of a run, where no others are named."""
        return "ckpt" in self.keys and "data" in self.groups

    def has(self, key: str) -> bool:
        top = key.partition(".")[0]
        return top in self.keys or top in self.groups


@dataclass(frozen=True)
class Line:
    """A command line in parts: Hydra's flags, the folder of --config-dir, and words `key=value`."""

    flags: list[str]
    folder: str | None
    words: list[str]

    @property
    def several(self) -> bool:
        return bool({"-m", "--multirun"} & set(self.flags))

    @property
    def help(self) -> bool:
        return bool({"-h", "--help"} & set(self.flags))


def split(typed: Sequence[str]) -> Line:
    """Takes Hydra's flags out of a line, wherever they stand. UserError for a flag that lacks its value."""
    flags: list[str] = []
    folder: str | None = None
    words: list[str] = []
    rest = list(typed)
    while rest:
        word = rest.pop(0)
        flag, equals, value = word.partition("=")
        if word in SWITCHES:
            flags.append(word)
        elif flag in ("--info", "-i"):
            value = value if equals else rest.pop(0) if rest and rest[0] in INFO else "all"
            flags += [flag, value]
        elif flag in VALUED or flag in FOLDER:
            if not equals and not rest:
                raise UserError(f"{word} takes a value behind it")
            value = value if equals else rest.pop(0)
            if flag in FOLDER:
                folder = value
                continue
            if VALUED[flag] and value not in VALUED[flag]:
                raise UserError(f"{flag} {value}: it takes one of {', '.join(VALUED[flag])}")
            flags += [flag, value]
        else:
            words.append(word)
    return Line(flags, folder, words)


def meant(words: Sequence[str], command: Command, several: bool = False) -> list[str]:
    """The words as Hydra is to read them. UserError with the line to type where they cannot be meant as they are."""
    reasons: list[str] = []
    notes: list[str] = []
    found: list[str] = []
    rest = list(words)
    while rest:
        word = rest.pop(0)
        if rest[1:] and rest[0] == "=":  # key = value
            reasons.append("there are no blanks around the equals sign")
            word, rest = f"{word}={rest[1]}", rest[2:]
        elif word.startswith("-") and len(word.lstrip("-")) > 1:
            reasons.append(f"{word.partition('=')[0]}: keys are written without dashes")
            key, equals, value = word.lstrip("-").partition("=")
            key = key.replace("-", "_")
            if not equals:
                takes = bool(rest) and not rest[0].startswith("--") and "=" not in rest[0]
                value = rest.pop(0) if takes else "true" if isinstance(command.keys.get(key), bool) else "<value>"
            word = f"{key}={value}"
        elif "=" not in word and not word.startswith("~"):
            word, reason = _bare(word, rest, command)
            reasons.append(reason)
        key, equals, value = word.partition("=")
        if equals and key and not command.has(key) and key in CALLED:
            for name in CALLED[key]:
                if command.has(name) or name.startswith("hydra."):
                    reasons.append(f"{command.name} has no key {key}")
                    notes += [NOTES[name]] if name in NOTES else []
                    word = f"{name}={value}"
                    break
        found.append(word)
    if reasons:
        more = f"  ({'; '.join(notes)})" if notes else ""
        raise UserError(f"{'; '.join(dict.fromkeys(reasons))}. Write:  {spelled(command.name, *found)}{more}")
    read = [w for word in found for w in _data(word, command)]
    if command.judges and not any(word.startswith(("data=", "+data=")) for word in read):
        read = [f"+{word}" if word.startswith("data.") else word for word in read]  # keys of the run's own data
    return [readable(word, several) for word in read]


def _bare(word: str, rest: list[str], command: Command) -> tuple[str, str]:
    """What a word without `=` may be meant as, taking a value from `rest` where it is the next word; and why not as it
    is.
    """
    if command.has(word):
        takes = bool(rest) and "=" not in rest[0] and not rest[0].startswith("-") and not command.has(rest[0])
        return f"{word}={rest.pop(0) if takes else '<value>'}", f"cannot read {word!r}: write key=value"
    owners = [group for group, known in command.groups.items() if word.lower() in known]
    if owners:
        return f"{owners[0]}={word.lower()}", f"{word!r} is an option of {owners[0]}"
    if "/" in word or Path(word).expanduser().exists():
        path = Path(word).expanduser()
        is_run = path.suffix in (".ckpt", ".safetensors") or (path / "last.ckpt").exists()
        key = next((key for key in ("ckpt", "run") if key in command.keys), None)
        if key is None and ("resume" in command.keys or "data" in command.groups):
            key = "resume" if is_run and "resume" in command.keys else "data"
        if key:
            return f"{key}={word}", f"cannot read {word!r}: write key=value"
    raise UserError(
        f"cannot read {word!r}: write key=value (quote lists and blanks: 'key=[1,2]'); --help lists the keys"
    )


def _data(word: str, command: Command) -> list[str]:
    """`data=<path>` names a folder of images or of Parquet files, an archive or a list; all other words stay."""
    key, _, value = word.partition("=")
    if key != "data" or "data" not in command.groups or value in command.groups["data"]:
        return [word]
    text = value[1:-1] if _is_quoted(value) else value
    path = Path(text).expanduser()
    if path.is_dir() or path.suffix.lower() in (".zip", ".tar", ".gz", ".tgz", ".txt"):
        kind = "parquet" if any(path.glob("*.parquet")) or any(path.glob("*/*.parquet")) else "image_folder"
        return [f"data={kind}", f"data.root={quoted(str(path))}"]
    if "/" in text or text.startswith(("~", ".")) or path.exists():
        what = f"{text} is no folder" if path.exists() else f"there is no folder {text}"
        known = ", ".join(command.groups["data"])
        raise UserError(
            f"data={text}: {what}. Give a folder of images or of Parquet files, a zip or tar archive of images, a list "
            f"of them (.txt), or one of {known}"
        )
    return [word]


def quoted(text: str) -> str:
    """`text` as a quoted value of Hydra's grammar, which reads backslashes only before a quote and at the end."""
    return "'" + re.sub(r"(\\*)('|$)", lambda m: m[1] * 2 + ("\\'" if m[2] else ""), text) + "'"


def readable(word: str, several: bool = False) -> str:
    """A word `key=value` such that Hydra reads a value that is text as this text.

    `several`: values with commas are lists of values, one for each run (-m).
    """
    key, equals, value = word.partition("=")
    if not equals or not key or value in ("", "null") or "${" in value or _is_quoted(value):
        return word
    try:
        read = OverridesParser.create().parse_override(word)
    except HydraException:
        return word if value[0] in "[{" and not _is_text(key) else f"{key}={quoted(value)}"
    if not _is_text(key) or (read.is_sweep_override() and several):
        return word
    plain = None if read.is_sweep_override() else read.value()
    if plain == value or (isinstance(plain, list | dict) and not Path(value).exists()):
        return word
    return f"{key}={quoted(value)}"


def _is_text(key: str) -> bool:
    return key.rpartition(".")[2].lstrip("+") in TEXT


def _is_quoted(value: str) -> bool:
    return len(value) > 1 and value[0] == value[-1] and value[0] in "'\""
