"""`twoview explore` on a folder of made images, from training to the page and the tables beside it."""

import csv
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import SMALLEST, Ended, compose_config
from PIL import Image

from twoview.data.image.folder import image_folder
from twoview.evaluate.features import extract
from twoview.explore.gallery import thumbnail
from twoview.explore.neighbours import others
from twoview.run.checkpoint import load_encoder
from twoview.train import pretrain

Command = Callable[..., Ended]

N, SIDE = 40, 16


def made(rng: np.random.Generator, warm: bool) -> np.ndarray:
    """A bright disc on a dark ground of another colour, uint8 (SIDE, SIDE, 3)."""
    y, x = np.mgrid[:SIDE, :SIDE]
    inside = np.hypot(y - rng.uniform(5, 11), x - rng.uniform(5, 11)) < rng.uniform(3, 6)
    ground, disc = ((70, 20, 10), (250, 200, 60)) if warm else ((10, 20, 70), (60, 200, 250))
    pixels = np.where(inside[..., None], disc, ground) + rng.normal(0, 12, (SIDE, SIDE, 3))
    return pixels.clip(0, 255).astype(np.uint8)


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Forty images in a flat folder, three copies of the third, and one of noise."""
    folder, rng = tmp_path_factory.mktemp("own") / "my photos", np.random.default_rng(0)
    folder.mkdir()
    for i in range(N):
        Image.fromarray(made(rng, warm=i % 2 == 0)).save(folder / f"{i:02}.png")
    for i in range(3):
        shutil.copy(folder / "02.png", folder / f"copy {i}.png")
    Image.fromarray(rng.integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)).save(folder / "odd.png")
    return folder


@pytest.fixture(scope="module")
def run(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "run"
    words = ["data=image_folder", f"data.root='{photos}'", *SMALLEST, "model.projector.hidden_dim=16"]
    words += ["batch_size=16", "epochs=4", "trainer=cpu", "knn=null", "quality=null"]
    pretrain.run(compose_config(*words), folder)
    return folder


@pytest.fixture
def own(run: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(run, tmp_path / "run"))


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_the_page_and_the_tables(own: Path, photos: Path, command: Command) -> None:
    ended = command(f"ckpt={own}", name="explore")
    assert ended.code == 0, ended.err
    images = {row["name"]: row for row in rows(own / "explore" / "images.csv")}
    assert set(images) == {path.name for path in photos.iterdir()}
    copies = {"02.png", "copy 0.png", "copy 1.png", "copy 2.png"}
    group = images["02.png"]["duplicate_group"]
    assert group
    assert copies <= {name for name, row in images.items() if row["duplicate_group"] == group}
    assert images["copy 1.png"]["nearest"] in copies
    assert max(images.values(), key=lambda row: float(row["deviation"]))["name"] == "odd.png"
    page = (own / "explore" / "explore.html").read_text()
    assert "<script" not in page
    assert page.count('src="data:image/png;base64,') == page.count("<img") > N / 2
    assert "copy 2.png" in page
    pq = pytest.importorskip("pyarrow.parquet")
    for name in ("images", "neighbours"):
        text, table = rows(own / "explore" / f"{name}.csv"), pq.read_table(own / "explore" / f"{name}.parquet")
        assert table.column_names == list(text[0])
        assert table.num_rows == len(text)
        assert table["name"].to_pylist() == [row["name"] for row in text]


def test_neighbours_are_those_of_the_features(own: Path, photos: Path, command: Command) -> None:
    assert command(f"ckpt={own}", "k=3", "out=found", name="explore").code == 0
    samples = image_folder(photos, "train")
    assert samples is not None
    near = others(extract(load_encoder(own), samples, batch_size=256), 3)
    found = rows(Path("found") / "neighbours.csv")
    assert [row["name"] for row in found] == [name for name in samples.names for _ in range(3)]
    assert [row["neighbour"] for row in found] == [samples.names[row] for row in near.rows.flatten().tolist()]
    np.testing.assert_allclose([float(row["similarity"]) for row in found], near.similarity.flatten(), atol=1e-5)


def test_an_image_of_another_size_outside_of_the_set_finds_its_like(
    own: Path, photos: Path, tmp_path: Path, command: Command
) -> None:
    """A wide image with one of the set in its middle comes to the size of training; and one of the set by its name."""
    (tmp_path / "else where").mkdir()
    wide = Image.new("RGB", (SIDE + 14, SIDE))
    wide.paste(Image.open(photos / "07.png"), (7, 0))
    wide.save(tmp_path / "else where" / "wide.png")
    ended = command(f"ckpt={own}", "query=[else where/wide.png,11.png]", name="explore")
    assert ended.code == 0, ended.err
    found = rows(own / "explore" / "queries.csv")
    first = {row["query"]: row["name"] for row in found if row["rank"] == "1"}
    assert first["else where/wide.png"] == "07.png"
    assert first["11.png"] != "11.png"
    assert "else where/wide.png: 07.png (1.000)" in ended.out
    assert command(f"ckpt={own}", "query=else where", "out=second", name="explore").code == 0
    assert {row["query"] for row in rows(Path("second") / "queries.csv")} == {"else where/wide.png"}


def test_a_folder_that_was_not_trained_on(own: Path, photos: Path, tmp_path: Path, command: Command) -> None:
    """Its images come to the size of training by themselves."""
    for i in range(4):
        path = tmp_path / "new" / "deep" / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.open(photos / f"0{i}.png").resize((40, 50)).save(path)
    ended = command(f"ckpt={own}", "data=new", name="explore")
    assert ended.code == 0, ended.err
    assert {row["name"] for row in rows(own / "explore_new" / "images.csv")} == {f"deep/{i}.png" for i in range(4)}
    assert command(f"ckpt={own}", "data=new", "out=features.npz", name="embed").code == 0
    assert np.load("features.npz")["name"].tolist() == [f"deep/{i}.png" for i in range(4)]


def test_names_of_any_letters_come_through(own: Path, photos: Path, tmp_path: Path, command: Command) -> None:
    here = tmp_path / "here"
    here.mkdir()
    names = ['<b>&"1".png', "ü, 'x'.png", "=1+1.png", "tab\there.png", os.fsdecode(b"\xff.png")]
    try:
        for i, name in enumerate(names):
            shutil.copy(photos / f"0{i}.png", here / name)
    except OSError:
        pytest.skip("this file system takes no such names")
    (tmp_path / "labels.csv").write_text("name,label\n\"ü, 'x'.png\",a\n=1+1.png,<i>\n", encoding="utf-8")
    words = [f"ckpt={own}", f"data.root={here}", "out=found", "labels=labels.csv", "projector=5"]
    for _ in range(2):  # the second time with kept features
        ended = command(*words, name="explore")
        assert ended.code == 0, ended.err
    found = [row["name"] for row in rows(Path("found") / "images.csv")]
    assert sorted(found) == sorted(name.encode("utf-8", "replace").decode() for name in names)
    for kind in ("npz", "parquet", "safetensors"):
        assert command(*words[:2], f"format={kind}", f"out=f.{kind}", name="embed").code == 0
    page = Path("found/explore.html").read_text(encoding="utf-8")
    assert "&lt;b&gt;&amp;" in page
    assert "<b>" not in page
    assert "<i>" not in page


def test_features_are_kept_until_an_image_or_the_encoder_changes(
    own: Path, photos: Path, tmp_path: Path, command: Command
) -> None:
    here = Path(shutil.copytree(photos, tmp_path / "here"))
    words = [f"ckpt={own}", f"data.root={here}", "out=found"]
    assert "are those kept" not in command(*words, name="explore").out
    with np.load("found/features.npz") as file:
        assert file["name"].tolist() == sorted(path.name for path in here.iterdir())
        assert file["features"].shape == (len(file["name"]), load_encoder(own).dim)
    before = rows(Path("found") / "images.csv")
    again = command(*words, "query=07.png", name="explore")
    assert again.code == 0, again.err
    assert "features are those kept in found/features.npz" in again.out
    assert rows(Path("found") / "images.csv") == before
    assert rows(Path("found") / "queries.csv")
    Image.fromarray(255 - np.asarray(Image.open(here / "05.png"))).save(here / "05.png")
    assert "are those kept" not in command(*words, name="explore").out
    assert rows(Path("found") / "images.csv") != before
    assert not Path("found/queries.csv").exists()
    (tmp_path / "found" / "features.npz").write_bytes(b"PK no archive")
    assert command(*words, name="explore").code == 0


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["query=nowhere.jpg"], "query=nowhere.jpg: there is no such file, and the set has no image of that name"),
        (["k=0"], "k=0 must be at least 1"),
        (["duplicates=1.5"], "duplicates=1.5 is a likeness"),
        (["search=slow"], "search='slow' is not one of exact, faiss"),
        (["out=no/such/folder"], "cannot write no/such/folder: No such file or directory; name another folder by out="),
        (["query=empty"], "query=empty: there is no image in it"),
    ],
)
def test_bad_words_end_in_one_message(own: Path, command: Command, tmp_path: Path, words: list[str], says: str) -> None:
    (tmp_path / "empty").mkdir()
    assert says in command(f"ckpt={own}", *words, name="explore").error
    assert not (own / "explore").exists()


def test_a_few_pixels_are_enlarged_as_they_are_and_many_reduced() -> None:
    import io

    small = torch.zeros(3, 8, 8)
    small[:, :4] = 1
    png = Image.open(io.BytesIO(thumbnail(small)))
    assert (png.format, png.size) == ("PNG", (112, 112))
    assert np.array_equal(np.unique(np.asarray(png)), [0, 255])
    jpeg = Image.open(io.BytesIO(thumbnail(torch.rand(1, 200, 100))))
    assert (jpeg.format, jpeg.size, jpeg.mode) == ("JPEG", (56, 112), "RGB")


def test_a_few_labels_become_suggestions_and_a_list_to_go_on_with(own: Path, command: Command) -> None:
    """Warm discs have even numbers. The list that the page asks to fill in is taken back as it is."""
    assert command(f"ckpt={own}", "next=4", name="explore").code == 0
    asked = rows(own / "explore" / "to_label.csv")
    assert [set(row) for row in asked] == [{"name", "label"}] * 4
    assert {
        row["name"]: int(row["label_next"]) for row in rows(own / "explore" / "images.csv") if row["label_next"]
    } == {row["name"]: rank for rank, row in enumerate(asked, start=1)}
    known = {f"{i:02}.png": ("warm", "cold")[i % 2] for i in range(10)}
    Path("few labels.csv").write_text("name,label\n" + "".join(f"{name},{label}\n" for name, label in known.items()))
    ended = command(f"ckpt={own}", "labels=few labels.csv", "next=3", name="explore")
    assert ended.code == 0, ended.err
    images = rows(own / "explore" / "images.csv")
    assert {row["name"]: row["given"] for row in images if row["given"]} == known
    right = [
        row["suggestion"] == ("warm", "cold")[int(row["name"][:2]) % 2] for row in images if row["name"][0].isdigit()
    ]
    assert sum(right) > 0.9 * N
    assert all(0.5 <= float(row["certainty"]) <= 1 for row in images)
    again = rows(own / "explore" / "to_label.csv")
    assert {row["name"]: row["label"] for row in again if row["label"]} == known
    assert len(again) == len(known) + 3
    assert "Suggested labels" in (own / "explore" / "explore.html").read_text()
    assert command(f"ckpt={own}", f"labels={own}/explore/to_label.csv", name="explore").code == 0


def test_the_projector_has_the_names(own: Path, photos: Path, command: Command) -> None:
    ended = command(f"ckpt={own}", "projector=20", name="explore")
    assert ended.code == 0, ended.err
    (metadata,) = (own / "explore" / "projector").glob("**/metadata.tsv")
    head, *lines = [line.split("\t") for line in metadata.read_text().splitlines()]
    assert head == ["name", "cluster", "duplicate_group"]
    names = [line[0] for line in lines]
    assert len(names) == 20
    assert set(names) <= {path.name for path in photos.iterdir()}
    (vectors,) = metadata.parent.glob("tensors.tsv")
    samples = image_folder(photos, "train")
    assert samples is not None
    h = extract(load_encoder(own), samples, batch_size=256)
    found = np.loadtxt(vectors, delimiter="\t")
    np.testing.assert_allclose(found, h[[samples.names.index(name) for name in names]], atol=1e-5)
    again = command(f"ckpt={own}", "projector=5", name="explore")
    assert "warning" not in again.out.lower()
    assert len(vectors.read_text().splitlines()) == 5
