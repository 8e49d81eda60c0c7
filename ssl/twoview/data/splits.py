"""Files sorted into splits and classes, by folders as people have them. What is left out is said."""

import logging
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from twoview.data.files import Blob, tree
from twoview.data.set import stratified_split
from twoview.errors import UserError, listed

log = logging.getLogger(__name__)

TRAIN = ("train", "training")  # what people call a split, the likeliest first
TEST = ("test", "testing", "val", "valid", "validation", "dev", "eval")
NO_LABEL = {"", "-1", "-100", "unlabeled", "unlabelled"}  # what stands where there is no label


class Part(NamedTuple):
    """The samples of one split: the path of each below the root, its file, and its class; `classes` is empty where
    there are none.
    """

    names: list[str]
    files: list[Path | Blob]
    classes: list[str]

    def take(self, rows: Sequence[int]) -> "Part":
        classes = [self.classes[row] for row in rows] if self.classes else []
        return Part([self.names[row] for row in rows], [self.files[row] for row in rows], classes)


def find(
    root: Path,
    suffixes: Sequence[str],
    what: str,
    train: str | None = None,
    test: str | None = None,
    holdout: float | None = None,
    quiet: bool = False,
) -> tuple[Part, Part | None]:
    """The train split and the test split, None where there is none, of the files with these suffixes at `root`: a
    folder of any depth, a zip or tar archive, or a list with one path a line.

    `train` and `test` name the folders of the splits; None: those with a customary name, if there are any. The first
    folder below that of a split is a class, and all deeper ones belong to it; without any folder the samples have no
    classes. `holdout`: the share of each class that becomes the test split where there is none. `what` the files hold
    ("images"), for messages. What is left out is said, unless `quiet`. UserError where there is nothing, or no such
    split.
    """
    everything = tree(root, what)
    wanted = {name: file for name, file in everything.items() if name.lower().endswith(tuple(suffixes))}
    others = [name for name in everything if name not in wanted]
    if not wanted:
        there = f"; it holds {_by_suffix(others)}" if others else ""
        raise UserError(
            f"no {what} in {root} nor in its sub-folders (looked for {listed(list(suffixes), 8)}){there}: "
            f"set data.root to the folder of your {what}"
        )
    place, of_train, of_test, said = _splits(root, list(wanted), train, test, what)
    if said and not quiet:
        log.info("%s", said)
    own, other = (
        _part({name: file for name, file in wanted.items() if name.startswith(below)}, below)
        for below in (place if folder is None else f"{place}{folder}/" for folder in (of_train, of_test))
    )
    used = {*own.names, *other.names}
    parts: tuple[Part, Part | None] = own, None
    if of_test is not None:
        parts = own, other
    elif holdout is not None:
        labels, _ = numbered(own, own, root)
        keep, out = held_out(torch.zeros(len(own.names)) if labels is None else labels, holdout)
        parts = own.take(keep), own.take(out)
    beside = [name for name in wanted if name not in used]
    if (others or beside) and not quiet:
        reasons = [_by_suffix(others)] if others else []
        if beside:
            reasons.append(f"{len(beside):,} outside of the splits and classes ({listed(beside, most=3)})")
        log.warning(
            "%s of %s files at %s are left out: %s",
            f"{len(others) + len(beside):,}",
            f"{len(everything):,}",
            root,
            "; ".join(reasons),
        )
    return parts


def held_out(labels: Tensor, share: float) -> tuple[list[int], list[int]]:
    """The rows of a split without a share of each class, and those of that share; always the same. `labels`: int64
    (N,), all the same where there are none.
    """
    if not 0 < share < 1 or len(labels) < 2:
        raise UserError(f"data.holdout={share} must lie between 0 and 1, and leave samples on both sides")
    keep, out = stratified_split(labels, share, seed=0)
    return keep.tolist(), out.tolist()


def numbered(own: Part, train: Part, where: Path) -> tuple[Tensor | None, tuple[str, ...]]:
    """Labels as numbers, int64 (N,), and the names of the classes: those of the train split, or a test split's own
    where only that has any. None and () without classes.
    """
    known, given = (sorted({name for name in part.classes if not is_no_label(name)}) for part in (train, own))
    if not given:
        return None, ()
    if known and (unknown := set(given) - set(known)):
        raise UserError(
            f"the test split of {where} has classes that the train split has not: {listed(sorted(unknown))}"
        )
    classes = known or given
    number = {name: i for i, name in enumerate(classes)}
    labels = torch.tensor([number.get(name, -1) for name in own.classes])
    if missing := int((labels < 0).sum()):
        log.info("%s of %s samples have no label", f"{missing:,}", f"{len(labels):,}")
    return labels, tuple(classes)


def is_no_label(value: object) -> bool:
    """Whether it stands for a label that is not known, as a value of a column or the name of a folder."""
    return value is None or str(value).strip().lower() in NO_LABEL


def _part(files: dict[str, Path | Blob], below: str) -> Part:
    folders = {name: name[len(below) :].rpartition("/")[0].partition("/")[0] for name in files}
    if any(folders.values()):
        files = {name: file for name, file in files.items() if folders[name]}
    return Part(list(files), list(files.values()), [folders[name] for name in files if folders[name]])


def _splits(
    root: Path, names: list[str], train: str | None, test: str | None, what: str
) -> tuple[str, str | None, str | None, str]:
    """The folder in which the splits lie ("" or "a/b/"), the names of their folders in it (None: no such folder), and
    what is to be said of this choice.
    """
    if train or test:
        has = [folder is not None and any(name.startswith(f"{folder}/") for name in names) for folder in (train, test)]
        if train and not has[0]:
            raise UserError(f"{root} has no folder {train!r} with {what}: set data.train to that of your train {what}")
        if not train:
            train = _known(names, "", TRAIN)[0] if _known(names, "", TRAIN) else None
            if has[1] and not train:
                raise UserError(f"{root} has a folder {test!r} but no 'train': set data.train to that of your {what}")
        return "", train, test if has[1] else (None if test else _labelled(names, "", _known(names, "", TEST))), ""
    place = ""
    while True:
        trains, tests = _known(names, place, TRAIN), _known(names, place, TEST)
        tops = _folders(names, place)
        if trains and (tests or len(tops) == len(trains)):
            break
        if tests and len(tops) == len(tests):
            raise UserError(
                f"{root} has a folder {tests[0]!r} but no 'train': set data.train to that of your train {what}"
            )
        if len(tops) != 1 or any("/" not in name[len(place) :] for name in names if name.startswith(place)):
            return "", None, None, _said_of_classes(names)
        place += f"{tops[0]}/"
    chosen = _labelled(names, place, tests)
    if chosen is None or tests == ["test"]:
        return place, trains[0], chosen, ""
    rest = [name for name in tests if name != chosen]
    more = f", not {listed(rest)}" if rest else ""
    return place, trains[0], chosen, f"the test split is {chosen}{more} (data.test names another)"


def _said_of_classes(names: list[str]) -> str:
    """What is to be said where folders are taken for classes that may be something else."""
    classes = _folders(names, "")
    below = {name: _folders(names, f"{name}/") for name in classes}
    splits = {*TRAIN, *TEST}
    named = [name for name in classes if splits & set(re.split(r"[^a-z]+", name.lower()))]
    if named:
        return f"{listed(named)} {'is' if len(named) == 1 else 'are'} taken for classes; data.train=... names a split"
    within = sorted({folder for folders in below.values() for folder in folders if _split_word(folder) in splits})
    if within:
        return f"{listed(within)} within classes are taken for parts of these, not for splits"
    if len(classes) == 1 and len(below[classes[0]]) > 1:
        return (
            f"{classes[0]} is taken for the only class, with {len(below[classes[0]])} folders in it "
            f"({listed(below[classes[0]], most=3)}): data.train={classes[0]} takes those for classes"
        )
    return ""


def _split_word(folder: str) -> str:
    """The word for a split in the name of a folder, as in Train, training_set, test-images and val2017."""
    return re.sub(r"[^a-z]*(set|images?|imgs?|data|split|\d+)$", "", folder.lower())


def _folders(names: list[str], place: str) -> list[str]:
    """The folders in a place that hold samples."""
    below = (name[len(place) :] for name in names if name.startswith(place))
    return list(dict.fromkeys(name.partition("/")[0] for name in below if "/" in name))


def _known(names: list[str], place: str, words: Sequence[str]) -> list[str]:
    """Those that have one of these names, whatever its case, in order of the words."""
    tops = _folders(names, place)
    return [top for word in words for top in tops if _split_word(top) == word]


def _labelled(names: list[str], place: str, tests: list[str]) -> str | None:
    """The first with class folders, else the first: published test splits often come without labels."""
    deep = (
        test
        for test in tests
        if any(name.startswith(f"{place}{test}/") and name.count("/") > place.count("/") + 1 for name in names)
    )
    return next(deep, tests[0] if tests else None)


def _by_suffix(names: list[str]) -> str:
    """How many files of each suffix, with the first."""
    groups: dict[str, list[str]] = {}
    for name in names:
        groups.setdefault(os.path.splitext(name)[1].lower() or "without a suffix", []).append(name)
    most = sorted(groups.items(), key=lambda item: -len(item[1]))
    return listed([f"{len(found):,} {suffix} ({found[0]})" for suffix, found in most], most=5)
