"""From features to answers: what of a set of images is there twice, what is odd, and what is like what."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from twoview.errors import UserError
from twoview.evaluate.classify.knn import Neighbours
from twoview.evaluate.describe.components import principal
from twoview.explore import clusters, duplicates, labels, neighbours, outliers, plane, table
from twoview.explore.gallery import Gallery
from twoview.report.plots import ALIKE
from twoview.report.projector import write_projector
from twoview.rng import permutation

COMPONENTS = 50  # principal components in which clusters and maps are looked for
SAID = ("name", "label", "given", "suggestion", "cluster", "duplicate_group")  # in the projector
DENSE = 20  # of them for HDBSCAN: in more dimensions no region is dense


@dataclass(frozen=True)
class Query:
    """An image whose nearest were looked for, itself left out where it is one of the set."""

    name: str
    picture: bytes
    rows: list[int]
    similarity: list[float]


@dataclass
class Found:
    """All that was found in the images of a gallery."""

    gallery: Gallery
    near: Neighbours  # of each image, itself left out
    strangers: float  # mean cosine of two different images
    limit: float  # cosine from which on two images are near duplicates
    groups: list[duplicates.Group]
    distance: Tensor  # (N,) to the k-th neighbour
    deviation: Tensor  # (N,) of its logarithm
    clusters: clusters.Clusters
    map: str  # the method that made the places
    places: Tensor  # (N, 2)
    suggestions: labels.Suggestions | None  # where some files have labels
    next: list[int]  # rows most worth labelling
    queries: list[Query] = field(default_factory=list)


def explore(gallery: Gallery, features: Tensor, given: Mapping[int, str], config: Mapping[str, Any]) -> Found:
    """Looks through the features (N, D) of the images of a gallery, of which some are `given` labels. UserError for
    fewer than three images, and where all are one and the same to the encoder.
    """
    if len(features) < 3:
        raise UserError(f"there are {len(features)} images, and nothing can be said of fewer than 3")
    strangers = neighbours.strangers(features)
    if strangers > ALIKE:
        raise UserError(
            f"all images are the same to this encoder (mean cosine {strangers:.6f}): its training collapsed; "
            "twoview doctor says why"
        )
    near = neighbours.others(features, config["k"], config["search"])
    limit = strangers + config["duplicates"] * (1 - strangers)
    distance = outliers.distances(near)
    points, _ = principal(F.normalize(features.double(), dim=1), COMPONENTS)
    if config["method"] == "kmeans":
        parts = clusters.kmeans(points, config["clusters"], config["seed"])
    else:
        parts = clusters.hdbscan(points[:, :DENSE], config["seed"])
    method, places = plane.places(points, config["map"], config["seed"])
    return Found(
        gallery=gallery,
        near=near,
        strangers=strangers,
        limit=limit,
        groups=duplicates.groups(near, limit),
        distance=distance,
        deviation=outliers.deviations(distance),
        clusters=parts,
        map=method,
        places=places,
        suggestions=labels.suggest(features, given) if given else None,
        next=labels.worth_labelling(points, sorted(given), config["next"], config["seed"]),
    )


def look_up(
    found: Found,
    features: Tensor,
    outside: Gallery | None,
    asked: Tensor,
    inside: Sequence[str],
    config: Mapping[str, Any],
) -> None:
    """Adds the nearest images of those `outside` the set, whose features are `asked` (Q, D), and of those `inside`, by
    their names.
    """
    if outside is not None:
        nearest = neighbours.search(features, asked, config["k"], config["search"])
        for i, name in enumerate(outside.names):
            rows, similarity = nearest.rows[i].tolist(), nearest.similarity[i].tolist()
            found.queries.append(Query(name, outside.picture(i), rows, similarity))
    for name in inside:
        row = found.gallery.names.index(name)
        rows, similarity = found.near.rows[row].tolist(), found.near.similarity[row].tolist()
        found.queries.append(Query(name, found.gallery.picture(row), rows, similarity))


def write_tables(folder: Path, found: Found) -> None:
    """`images`: a row for each image. `neighbours`: for each image its nearest ones. `queries`: the same of queries.
    `to_label`: the files most worth labelling, below those that have labels, to be filled in and given back.
    """
    gallery, near = found.gallery, found.near
    table.write(folder / "images", columns(found))
    k = near.rows.shape[1]
    table.write(
        folder / "neighbours",
        {
            "name": [name for name in gallery.names for _ in range(k)],
            "rank": list(range(1, k + 1)) * len(gallery),
            "neighbour": [gallery.names[row] for row in near.rows.flatten().tolist()],
            "similarity": near.similarity.flatten().tolist(),
        },
    )
    if found.next:
        table.write(folder / "to_label", to_label(found))
    if found.queries:
        each = [
            (q.name, n, *pair)
            for q in found.queries
            for n, pair in enumerate(zip(q.rows, q.similarity, strict=True), 1)
        ]
        table.write(
            folder / "queries",
            {
                "query": [one[0] for one in each],
                "rank": [one[1] for one in each],
                "name": [gallery.names[one[2]] for one in each],
                "similarity": [one[3] for one in each],
            },
        )


def write_projection(folder: Path, found: Found, features: Tensor, count: int) -> None:
    """At most `count` images for TensorBoard's projector, with the names of their files and their clusters."""
    rows = permutation(len(found.gallery), 0, 0, "projector")[:count].sort().values
    known = columns(found)
    said = {name: [_text(known[name][row]) for row in rows.tolist()] for name in SAID if name in known}
    images = found.gallery.pixels(rows.tolist())
    write_projector(folder, features[rows.to(features.device)].cpu(), said, images)


def _text(value: Any) -> str:
    return "" if value is None else str(value)


def columns(found: Found) -> dict[str, Sequence[Any]]:
    """What is known of each image."""
    gallery, near = found.gallery, found.near
    group: list[int | None] = [None] * len(gallery)
    for number, one in enumerate(found.groups, start=1):
        for row in one.rows:
            group[row] = number
    ranks = {row: rank for rank, row in enumerate(found.next, start=1)}
    known: dict[str, Sequence[Any]] = {"name": gallery.names, "split": gallery.splits}
    if gallery.classes:
        known["label"] = [label or None for label in gallery.labels()]
    return (
        known
        | {
            "nearest": [gallery.names[row] for row in near.rows[:, 0].tolist()],
            "nearest_similarity": near.similarity[:, 0].tolist(),
            "duplicate_group": group,
            "distance": found.distance.tolist(),
            "deviation": found.deviation.tolist(),
            "outlier": (found.deviation > outliers.FAR).tolist(),
            "cluster": [None if number < 0 else number + 1 for number in found.clusters.member.tolist()],
            "x": found.places[:, 0].tolist(),
            "y": found.places[:, 1].tolist(),
            "label_next": [ranks.get(row) for row in range(len(gallery))],
        }
        | ({} if found.suggestions is None else suggested(found.suggestions))
    )


def suggested(by: labels.Suggestions) -> dict[str, Sequence[Any]]:
    """The columns of labels: those given, and for each image the likeliest class with its probability."""
    return {
        "given": [None if number < 0 else by.classes[number] for number in by.given.tolist()],
        "suggestion": [by.classes[number] for number in by.label.tolist()],
        "certainty": by.certainty.tolist(),
    }


def to_label(found: Found) -> dict[str, Sequence[Any]]:
    """The files that have labels, and then those to label next, with what they are likely to be."""
    by = found.suggestions
    done = [] if by is None else (by.given >= 0).nonzero().flatten().tolist()
    rows = [*done, *found.next]
    columns: dict[str, Sequence[Any]] = {
        "name": [found.gallery.names[row] for row in rows],
        "label": [*(by.classes[by.given[row]] for row in done if by is not None), *([None] * len(found.next))],
    }
    return columns if by is None else columns | {"suggestion": [by.classes[by.label[row]] for row in rows]}


def spread(n: int, count: int) -> list[int]:
    """`count` rows of n, evenly apart."""
    return torch.linspace(0, n - 1, min(n, count)).round().long().tolist()
