"""Files of samples, alone, in folders or within other files, and found by people's words for them."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from twoview.errors import UserError


class Blob(NamedTuple):
    """A file that lies inside another file, with a name by which a person finds it: the other file and a row."""

    name: str
    data: bytes

    def __str__(self) -> str:
        return self.name


def refuse_pipe(path: Path) -> None:
    """UserError for what is there and is no file: whoever opens a pipe waits for its writer, for ever."""
    if not path.is_file() and path.exists():
        raise UserError(f"{path} is not a file but a folder, a pipe or a device: remove it")


def find_in_folders(folder: Path, suffixes: Sequence[str], what: str) -> tuple[list[Path], list[str]]:
    """The files of these suffixes below a folder, ordered by name, and the class of each: sub-folders that directly
    hold such files are the classes. Without any, the folder's own files and []. `what` they hold, for messages.
    """

    def wanted(name: str) -> bool:
        return not name.startswith(".") and name.lower().endswith(tuple(suffixes))

    try:
        above = {folder.resolve(), *folder.resolve().parents}
        entries = [folder / name for name in sorted(os.listdir(folder)) if not name.startswith(".")]
        # A link back to where it lies is no class. os.path.isdir, because it is quiet about links that lead
        # nowhere.
        folders = [entry for entry in entries if os.path.isdir(entry) and entry.resolve() not in above]
        found = [(entry / name, entry.name) for entry in folders for name in sorted(os.listdir(entry)) if wanted(name)]
    except OSError as error:
        raise UserError(f"cannot list {error.filename}: {error.strerror}") from None
    if found:
        files, names = zip(*found, strict=True)
        return list(files), list(names)
    flat = [entry for entry in entries if wanted(entry.name) and not os.path.isdir(entry)]
    if not flat:
        raise UserError(
            f"no {what} in {folder} nor directly in its sub-folders (looked for {', '.join(suffixes)}): "
            f"set data.root to the folder of your {what}"
        )
    return flat, []


def folder_of_split(root: Path, split: str, train: str, test: str, what: str) -> Path | None:
    """`<root>/<train>` or `<root>/<test>`; with neither there, `root` is the train split. None: no such split."""
    if not root.is_dir():
        raise UserError(f"there is no folder {root}: set data.root to the folder of your {what}")
    has_train, has_test = (root / train).is_dir(), (root / test).is_dir()
    if has_test and not has_train:
        raise UserError(f"{root} has a folder {test!r} but no {train!r}: set data.train to that of your train {what}")
    if split == "test":
        return root / test if has_test else None
    return root / train if has_train else root
