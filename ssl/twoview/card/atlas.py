"""What the features look like: neighbours of test images, a map in two dimensions, and TensorBoard's projector."""

import logging
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from twoview.card.measures import RUN, Encoder, Judged
from twoview.data.set import SampleSet
from twoview.errors import UserError
from twoview.evaluate.describe.components import principal
from twoview.report.projector import write_projector
from twoview.rng import permutation

log = logging.getLogger(__name__)

QUERIES, NEIGHBOURS = 10, 5
PICTURES = 14  # on a map
PERPLEXITY = 30.0  # of t-SNE: the usual one


class Shown(NamedTuple):
    """A test sample with its nearest training samples for each encoder: pictures (C, H, W) in [0, 1], and whether the
    class of a neighbour is that of the query (None without labels).
    """

    query: Tensor
    name: str
    neighbours: dict[str, list[tuple[Tensor, bool | None]]]


def sheet(judged: Judged) -> list[Shown]:
    """One test sample of each class, of ten classes at most, or ten samples where there are no labels. UserError for
    samples that cannot be drawn.
    """
    draw = judged.train.draw
    if draw is None:
        raise UserError(f"the samples of {judged.train.name} cannot be drawn")
    shown = []
    for i in _queries(judged.test, judged.config["seed"]):
        label = None if judged.test.labels is None else int(judged.test.labels[i])
        beside = {}
        for name, encoder in judged.encoders.items():
            assert encoder.neighbours is not None
            index = encoder.neighbours.rows[i, :NEIGHBOURS].cpu()
            labels = [None] * len(index) if judged.train.labels is None else judged.train.labels.cpu()[index].tolist()
            right = [None if label is None or near is None else near == label for near in labels]
            beside[name] = list(zip(draw(judged.train.fetch(index)).cpu(), right, strict=True))
        title = "" if label is None else judged.test.classes[label]
        shown.append(Shown(draw(judged.test.fetch(torch.tensor([i])))[0].cpu(), title, beside))
    return shown


def _queries(test: SampleSet, seed: int) -> list[int]:
    order = permutation(len(test), seed, 0, "queries")
    if test.labels is None:
        return order[:QUERIES].tolist()
    firsts: dict[int, int] = {}
    for i in order.tolist():
        firsts.setdefault(int(test.labels[i]), i)
    classes = sorted(firsts)
    chosen = [classes[round(j * (len(classes) - 1) / max(1, QUERIES - 1))] for j in range(min(QUERIES, len(classes)))]
    return [firsts[c] for c in sorted(set(chosen))]


class Map(NamedTuple):
    """Points (M, 2) of test images, by the method that found them."""

    method: str
    points: Tensor
    labels: Tensor | None
    note: str
    pictures: list[tuple[int, Tensor]] = []  # noqa: RUF012 - of a tuple: some points, far from each other, as images


def maps(judged: Judged) -> dict[str, list[Map]]:
    """For each encoder the principal components of its unit features, and t-SNE where scikit-learn is installed."""
    index = judged.some(judged.config["map_images"], "map")
    labels = None if judged.test.labels is None else judged.test.labels.cpu()[index]
    draw = judged.test.draw
    found: dict[str, list[Map]] = {}

    def with_pictures(name: str, one: Map) -> Map:
        if draw is None or name != RUN:
            return one
        rows = _far_apart(one.points, PICTURES)
        images = draw(judged.test.fetch(index[torch.tensor(rows)])).cpu()
        return one._replace(pictures=list(zip(rows, images, strict=True)))

    for name, encoder in judged.encoders.items():
        x = F.normalize(encoder.test[index.to(encoder.test.device)].double().cpu(), dim=1)
        points, share = principal(x, 50)
        note = f"{100 * float(share[:2].sum()):.0f} % of the variance"
        found[name] = [with_pictures(name, Map("principal components", points[:, :2], labels, note))]
        if (further := _neighbour_map(points, judged.config["seed"])) is not None:
            there = Map(*further, labels, "distances between groups mean little")
            found[name].append(with_pictures(name, there))
    return found


def _far_apart(points: Tensor, count: int) -> list[int]:
    """At most `count` rows of (M, 2): the one nearest to the middle, then always the one farthest from all so far."""
    scaled = (points - points.mean(0)) / points.std(0).clamp(min=1e-12)
    chosen = [int(scaled.square().sum(1).argmin())]
    distance = torch.full((len(points),), float("inf"), dtype=points.dtype)
    while len(chosen) < min(count, len(points)):
        distance = torch.minimum(distance, (scaled - scaled[chosen[-1]]).square().sum(1))
        chosen.append(int(distance.argmax()))
    return chosen


def _neighbour_map(points: Tensor, seed: int) -> tuple[str, Tensor] | None:
    """t-SNE (van der Maaten & Hinton, JMLR 2008), where scikit-learn is installed."""
    if len(points) < 10:
        return None
    try:
        from sklearn.manifold import TSNE
    except ImportError:
        return None
    perplexity = min(PERPLEXITY, (len(points) - 1) / 3)
    spread = float(points[:, 0].std())
    if spread == 0:  # one and the same point
        return None
    placed = TSNE(
        perplexity=perplexity, init=(points[:, :2] / spread * 1e-4).float().numpy(), random_state=seed
    ).fit_transform(points.float().numpy())
    return "t-SNE", torch.as_tensor(placed).double()


def projector(judged: Judged, encoder: Encoder, folder: Path) -> None:
    """Features of test images with their names, classes and pictures, for `tensorboard --logdir <folder>`."""
    index = judged.some(judged.config["map_images"], "map")
    images = None if judged.test.draw is None else judged.test.draw(judged.test.fetch(index)).cpu()
    columns = {"name": [judged.test.names[row] for row in index.tolist()]}
    if (labels := judged.test.labels) is not None:
        columns["class"] = [judged.test.classes[c] for c in labels.cpu()[index].tolist()]
    write_projector(folder, encoder.test.cpu()[index], columns, images)
