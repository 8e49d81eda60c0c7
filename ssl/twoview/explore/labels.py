"""From a few labelled files to suggestions for all others, and to the files most worth labelling next."""

import csv
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from twoview.errors import UserError, listed
from twoview.evaluate.classify.newton import fit_linear, fit_path
from twoview.stats.intervals import Share, wilson

log = logging.getLogger(__name__)

NAME = ("name", "file", "filename", "path", "image")  # what people call the columns
LABEL = ("label", "class", "category")
STRENGTHS = (100.0, 30.0, 10.0, 3.0, 1.0, 0.3, 0.1, 0.03, 0.01)  # of the L2 penalty
ALONE = 3.0  # where no class has two files, so that none can be held out
FOLDS = 5
CLOSE = 1e-6  # nats to the optimum: enough for a suggestion
CLUSTERS, SMALLEST, NEAR = 500, 5, 20  # TypiClust's: clusters at most, images of one that counts, neighbours


@dataclass(frozen=True)
class Suggestions:
    """`given` int64 (N,): the number of the class that a file was labelled with, -1 for none. `label` (N,): the
    likeliest class, `certainty` (N,): its probability. `right`: the share of labelled files that were named right while
    they were held out; None where none could be.
    """

    classes: tuple[str, ...]
    given: Tensor
    label: Tensor
    certainty: Tensor
    right: Share | None


def read(path: Path, names: Sequence[str]) -> dict[int, str]:
    """The labels in a CSV file, by the rows of `names`. The columns are called `name` and `label`, or there are two
    without a heading; a file is named as in the set, or by its path; rows without a label are passed over. UserError
    for a name that is none of the set's, or of several of its images, and for two labels of one.
    """
    try:
        lines = list(csv.reader(path.read_text(encoding="utf-8-sig").splitlines()))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        reason = getattr(error, "strerror", None) or "it is no CSV text"
        raise UserError(f"labels={path}: cannot be read ({reason})") from None
    file, label, lines = _columns([line for line in lines if line], path)
    rows = {name: row for row, name in enumerate(names)}
    ends: dict[str, list[int]] = {}
    for row, name in enumerate(names):
        ends.setdefault(name.rpartition("/")[2], []).append(row)
    found: dict[int, str] = {}
    unknown: list[str] = []
    for line in lines:
        if max(file, label) >= len(line) or not line[label].strip():
            continue
        name, given = line[file], line[label].strip()
        if name not in rows:
            below = Path(name).as_posix()
            alike = [
                i
                for i in ends.get(Path(name).name, [])
                if below.endswith(f"/{names[i]}") or names[i].endswith(f"/{below}")
            ]
            if len(alike) > 1:
                raise UserError(f"labels={path}: {name} may be {listed([names[i] for i in alike])}: give one of these")
            if not alike:
                unknown.append(name)
                continue
            rows[name] = alike[0]
        row = rows[name]
        if found.setdefault(row, given) != given:
            raise UserError(f"labels={path}: {name} is both {found[row]} and {given}")
    if unknown:
        raise UserError(f"labels={path}: the set has no {listed(unknown, most=3)}; its first image is {names[0]}")
    if len(set(found.values())) < 2:
        raise UserError(
            f"labels={path}: there are {len(set(found.values()))} classes, and two are the least to tell apart"
        )
    return found


def _columns(lines: list[list[str]], path: Path) -> tuple[int, int, list[list[str]]]:
    """The columns of names and labels, and the rows below the heading."""
    head = [cell.strip().lower() for cell in lines[0]] if lines else []
    file = next((head.index(name) for name in NAME if name in head), None)
    label = next((head.index(name) for name in LABEL if name in head), None)
    if file is not None and label is not None:
        return file, label, lines[1:]
    if len(head) == 2 and file is None and label is None:
        return 0, 1, lines
    raise UserError(f"labels={path}: it needs the columns name and label, and has {listed(head) or 'none'}")


def suggest(features: Tensor, labels: Mapping[int, str]) -> Suggestions:
    """The class of every row of the features (N, D), by logistic regression on the labelled ones. The strength of its
    penalty has the least cross-entropy on labelled files that are held out, so that certainties can be believed.
    """
    classes = tuple(sorted(set(labels.values())))
    rows = torch.tensor(sorted(labels), device=features.device)
    numbers = torch.tensor([classes.index(labels[row]) for row in rows.tolist()], device=features.device)
    strength, right = chosen(features[rows], numbers, len(classes))
    head = fit_linear(features[rows], numbers, len(classes), strength, tol=CLOSE)
    certainty, label = torch.cat([head.logits(part).softmax(1) for part in features.split(4096)]).max(1)
    given = torch.full((len(features),), -1)
    given[rows.cpu()] = numbers.cpu()
    return Suggestions(classes, given, label.cpu(), certainty.cpu(), right)


def chosen(x: Tensor, labels: Tensor, classes: int) -> tuple[float, Share | None]:
    """The strength with the least cross-entropy on held-out folds, and the share that is named right with it."""
    fold = folds(labels)
    if int(fold.max()) < 1:
        return ALONE, None
    loss, right = torch.zeros(len(STRENGTHS), dtype=torch.float64), torch.zeros(len(STRENGTHS), dtype=torch.long)
    for held in (fold == number for number in range(int(fold.max()) + 1)):
        for i, head in enumerate(fit_path(x[~held], labels[~held], classes, STRENGTHS, tol=CLOSE)):
            log_p = head.logits(x[held]).log_softmax(1)  # (B, classes)
            loss[i] -= float(log_p.gather(1, labels[held, None]).sum())
            right[i] += int((log_p.argmax(1) == labels[held]).sum())
    best = int(loss.argmin())
    return STRENGTHS[best], wilson(int(right[best]), int((fold >= 0).sum()))


def folds(labels: Tensor) -> Tensor:
    """The fold (N,) in which each is held out: those of a class in turn; -1 for the only one of its class."""
    fold = torch.full_like(labels, -1)
    for label in labels.unique():
        members = (labels == label).nonzero().flatten()
        if len(members) > 1:
            fold[members] = torch.arange(len(members), device=labels.device) % FOLDS
    return fold


def worth_labelling(x: Tensor, labelled: Sequence[int], count: int, seed: int = 0) -> list[int]:
    """The `count` rows (N, D) to label next, by TypiClust (Hacohen et al., "Active learning on a budget: opposite
    strategies suit high and low budgets", ICML 2022): of as many clusters as there will be labels, those without
    labelled rows, the largest first; and of each the most typical row, whose neighbours are nearest.
    """
    from sklearn.cluster import KMeans
    from sklearn.neighbors import NearestNeighbors

    points = x.double().cpu().numpy()
    count = min(count, len(points) - len(labelled))
    k = min(len(labelled) + count, CLUSTERS, len(points))
    if count < 1:
        return []
    member = torch.from_numpy(KMeans(k, n_init=1, random_state=seed).fit_predict(points)).long()
    size = member.bincount(minlength=k)
    taken = torch.zeros(len(points), dtype=torch.bool)
    taken[list(labelled)] = True
    typical = torch.zeros(len(points), dtype=torch.float64)
    for cluster in range(k):
        rows = (member == cluster).nonzero().flatten()
        near = min(NEAR, len(rows) - 1)
        if near > 0:
            away, _ = NearestNeighbors(n_neighbors=near + 1).fit(points[rows]).kneighbors(points[rows])
            typical[rows] = 1 / torch.from_numpy(away[:, 1:].mean(1)).clamp_min(1e-12)
    picked: list[int] = []
    while len(picked) < count:
        has = member[taken].bincount(minlength=k)
        left = member[~taken].bincount(minlength=k) > 0
        order = sorted(
            left.nonzero().flatten().tolist(), key=lambda c: (int(has[c]), int(size[c] < SMALLEST), -int(size[c]), c)
        )
        rows = ((member == order[0]) & ~taken).nonzero().flatten()
        picked.append(int(rows[typical[rows].argmax()]))
        taken[picked[-1]] = True
    return picked
