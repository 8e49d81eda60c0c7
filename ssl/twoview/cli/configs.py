"""Where configurations lie: twoview's own, and those of the person at the keyboard beside them."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from twoview.cli.words import quoted
from twoview.errors import UserError

PACKAGE = Path(__file__).resolve().parents[1]
INSTALLED, CHECKOUT = PACKAGE / "configs", PACKAGE.parents[1] / "configs"  # of a wheel, and at the top of the sources
CONFIGS = INSTALLED if INSTALLED.is_dir() else CHECKOUT
HERE = Path("configs")  # in the working directory: one's own


class File(NamedTuple):
    """A file of a composed configuration, and the section that it fills ("" for the whole)."""

    path: Path
    section: str


def own_folders(named: str | None = None) -> list[Path]:
    """Folders with configurations of one's own: `named` by --config-dir, and `configs` of the working directory."""
    if named is not None and not Path(named).is_dir():
        raise UserError(f"there is no folder {named}; --config-dir names one with configurations of your own")
    found = [Path(named).resolve()] if named is not None else []
    here = HERE.resolve()
    return found + [here] * (here.is_dir() and here not in (*found, CONFIGS))


def search_words(folders: Sequence[Path]) -> list[str]:
    """Words that let Hydra look into these folders after twoview's own."""
    return [f"hydra.searchpath=[{','.join(quoted(f'file://{folder}') for folder in folders)}]"] if folders else []


def check_choices(choices: dict[str, Any], folders: Sequence[Path]) -> None:
    """UserError for an option of one's own that is chosen but hidden by another of the same name."""
    for group, option in choices.items():
        files = [path for folder in (CONFIGS, *folders) if (path := folder / group / f"{option}.yaml").is_file()]
        for hidden in files[1:]:
            if hidden.read_bytes() != files[0].read_bytes():
                raise UserError(f"{group}={option} is taken from {files[0]}, not from {hidden}: rename the latter")


def groups(command: str | None = None, folders: Sequence[Path] = ()) -> list[str]:
    """The configuration groups, which are the folders of `configs/`; with `command`, those that the command takes."""
    if command is None:
        return sorted({path.name for folder in (CONFIGS, *folders) for path in folder.iterdir() if path.is_dir()})
    return sorted(set(_groups(command)))


def _groups(command: str) -> Iterator[str]:
    for entry in _read(command).get("defaults", []):
        if isinstance(entry, str) and entry != "_self_":
            yield from _groups(entry)
        elif isinstance(entry, dict):
            yield from (str(key) for key in entry if not str(key).startswith("override "))


def keys(command: str) -> dict[str, Any]:
    """The keys of a command outside of its groups, with their values."""
    found: dict[str, Any] = {}
    content = _read(command)
    for entry in content.get("defaults", []):
        if isinstance(entry, str) and entry != "_self_":
            found |= keys(entry)
    return found | {key: value for key, value in content.items() if key not in ("defaults", "hydra")}


def _read(command: str) -> dict[str, Any]:
    content = yaml.safe_load((CONFIGS / f"{command}.yaml").read_text())
    return content if isinstance(content, dict) else {}


def options(group: str, folders: Sequence[Path] = ()) -> list[str]:
    """What a group can be set to, which are the files of its folder."""
    return sorted({path.stem for folder in (CONFIGS, *folders) for path in (folder / group).glob("*.yaml")})


class Composed(NamedTuple):
    """The configuration of a command, what Hydra itself is told, and the files that both were composed of."""

    config: DictConfig
    hydra: DictConfig
    files: list[File]


def compose(command: str, words: Sequence[str], folders: Sequence[Path] = ()) -> Composed:
    """Composes a command's configuration with words as `meant` gives them. Leaves Hydra as it was: this works in a
    program that is a Hydra application itself.
    """
    words = [*search_words(folders), *words]
    with _hydra_aside(), initialize_config_dir(version_base="1.3", config_dir=str(CONFIGS)):
        composed = hydra_compose(command, overrides=words, return_hydra_config=True)
        defaults = GlobalHydra.instance().config_loader().compute_defaults_list(command, words, RunMode.RUN).defaults
    files = []
    for entry in defaults:
        paths = [path for folder in (CONFIGS, *folders) if (path := folder / f"{entry.config_path}.yaml").is_file()]
        files += [File(paths[0], entry.package or "")] if paths else []
    config = OmegaConf.masked_copy(composed, [str(key) for key in composed if key != "hydra"])
    return Composed(config, composed.hydra, files)


@contextmanager
def _hydra_aside() -> Iterator[None]:
    """Without the one Hydra that a process can have; it is back afterwards."""
    outer, GlobalHydra.instance().hydra = GlobalHydra.instance().hydra, None
    try:
        yield
    finally:
        GlobalHydra.instance().hydra = outer
