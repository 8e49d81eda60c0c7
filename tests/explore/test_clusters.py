"""Clusters and maps: planted ones are found, continuous features are called so, and scikit-learn agrees."""

import io

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.metrics import adjusted_rand_score, silhouette_score
from torch import Tensor

from twoview.data.image.pixels import Pixels, draw
from twoview.data.set import SampleSet
from twoview.explore import clusters, plane
from twoview.explore.gallery import Gallery


def planted(sizes: tuple[int, ...], spread: float = 0.1) -> tuple[Tensor, Tensor]:
    """Rows about the corners of a simplex, in mixed order, and the corner of each."""
    generator = torch.Generator().manual_seed(0)
    corner = torch.cat([torch.full((n,), i) for i, n in enumerate(sizes)])
    corner = corner[torch.randperm(len(corner), generator=generator)]
    noise = spread * torch.randn(len(corner), 12, generator=generator)
    return torch.eye(12)[corner] + noise, corner


@pytest.mark.parametrize("method", ["kmeans", "hdbscan"])
def test_planted_clusters_are_found_and_their_number(method: str) -> None:
    x, corner = planted((20, 60, 35, 41, 27))
    found = getattr(clusters, method)(x)
    assert adjusted_rand_score(corner, found.member) > 0.99
    assert [len(rows) for rows in found.typical] == [60, 41, 35, 27, 20]
    assert found.clear
    inside = found.member >= 0
    assert found.silhouette == pytest.approx(
        silhouette_score(x[inside].numpy(), found.member[inside].numpy()), abs=1e-6
    )


def test_the_first_of_a_cluster_is_nearest_to_its_centre() -> None:
    x, _ = planted((30, 40))
    found = clusters.kmeans(x, 2)
    assert found.tried == {}
    for number, rows in enumerate(found.typical):
        assert sorted(rows) == (found.member == number).nonzero().flatten().tolist()
        away = (x[rows] - x[rows].mean(0)).norm(dim=1)
        assert (away.diff() >= 0).all()


def test_what_is_continuous_is_not_called_clusters() -> None:
    x = torch.randn(400, 12, generator=torch.Generator().manual_seed(1))
    found = clusters.kmeans(x)
    assert not found.clear
    assert len(found.typical) == clusters.PARTS
    assert max(found.tried.values()) < clusters.STRUCTURE


@pytest.mark.parametrize("n", [3, 5, 9])
def test_a_handful_of_images_has_clusters_too(n: int) -> None:
    for found in (clusters.kmeans(torch.randn(n, 4)), clusters.hdbscan(torch.randn(n, 4))):
        assert sorted(row for rows in found.typical for row in rows) == (found.member >= 0).nonzero().flatten().tolist()


def test_a_map_of_principal_components_is_the_first_two_of_them() -> None:
    x, _ = planted((9, 9))
    name, places = plane.places(x, "pca")
    assert name == "principal components"
    assert torch.equal(places, x[:, :2])


def test_umap_keeps_planted_clusters_apart() -> None:
    pytest.importorskip("umap")
    x, corner = planted((40, 40, 40))
    name, places = plane.places(x, "auto")
    assert name == "UMAP"
    assert adjusted_rand_score(corner, clusters.kmeans(places, 3).member) > 0.99
    assert torch.equal(places, plane.places(x, "umap")[1])  # a seed, a map


def test_places_lie_on_the_canvas_and_an_odd_one_pushes_none_together() -> None:
    points = torch.rand(500, 2, dtype=torch.float64)
    odd = torch.tensor([[0.0, 900.0]], dtype=torch.float64)
    pixels = plane.on_canvas(torch.cat([points, odd]))
    assert (pixels >= plane.APART // 2).all()
    assert (pixels <= torch.tensor([plane.WIDTH, plane.HEIGHT]) - plane.APART // 2).all()
    assert pixels[:500, 1].double().std() > plane.HEIGHT / 6
    order = points[:, 0].argsort()
    assert (pixels[order, 0].diff() >= 0).all()  # x to the right
    assert pixels[points[:, 1].argmax(), 1] < pixels[points[:, 1].argmin(), 1]  # y upwards


def test_images_on_the_map_do_not_overlap() -> None:
    pixels = torch.randint(0, 600, (300, 2), generator=torch.Generator().manual_seed(0))
    chosen = plane.with_room(pixels, range(300))
    placed = pixels[chosen]
    gaps = (placed[:, None] - placed).abs().amax(2)  # (M, M), Chebyshev
    assert (gaps + 10_000 * torch.eye(len(chosen), dtype=torch.long) >= plane.APART).all()
    left = sorted(set(range(300)) - set(chosen))
    assert ((pixels[left][:, None] - placed).abs().amax(2) < plane.APART).any(1).all()  # there was room for no other


def test_the_picture_of_a_map_shows_images_where_they_lie() -> None:
    colours = torch.tensor([[255, 0, 0], [0, 255, 0], [0, 0, 255], [9, 9, 9]], dtype=torch.uint8)
    images = colours[:, :, None, None].expand(-1, -1, 8, 8).contiguous()
    gallery = Gallery({"train": SampleSet("four", images, None, (), Pixels((0.5,) * 3, (0.5,) * 3), draw=draw)})
    points = torch.tensor([[0.0, 0], [1, 1], [1, 0], [0, 0]])
    shown = np.asarray(Image.open(io.BytesIO(plane.picture(points, gallery, range(4)))))
    at = plane.on_canvas(points)
    for row in range(3):
        x, y = at[row].tolist()
        assert shown[y, x].tolist() == [*colours[row].tolist(), 255]
    assert shown[plane.HEIGHT // 2, plane.WIDTH // 2, 3] == 0
