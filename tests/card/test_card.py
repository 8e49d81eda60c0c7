"""The evaluation card: its numbers beside those of the other commands, its files, and what it does with bad input."""

import json
import shutil
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from twoview.card import about, atlas, measures
from twoview.card import page as card_page
from twoview.card.encoders import networks
from twoview.commands import evaluate
from twoview.commands.evaluate import evaluate_command
from twoview.data.image.shapes import shapes
from twoview.evaluate.classify.linear import probe
from twoview.evaluate.features import extract
from twoview.evaluate.subject import subject
from twoview.report import page
from twoview.report.theme import LIGHT, Plot, Theme
from twoview.run.checkpoint import load_encoder, read_checkpoint
from twoview.train import pretrain
from twoview.watch.meter import Meter

Command = Callable[..., Any]

SMALL = ("k=[1,5]", "temperature=[0.1,1]", "strengths=[0.01,0.1]", "fractions=[0.25,1]", "label_seeds=2", "device=cpu")
FEW = ("corruption_images=6", "quality_images=24", "invariance_images=4", "map_images=24")
NONE = ("corruption_images=0", "quality_images=0", "invariance_images=0", "map_images=0", "fractions=[]")


def strict(path: Path) -> dict[str, Any]:
    """JSON as the standard has it: without NaN."""

    def refuse(name: str) -> None:
        raise AssertionError(f"{name} in {path}")

    content: dict[str, Any] = json.loads(path.read_text(), parse_constant=refuse)
    return content


@pytest.fixture(scope="module")
def card(finished: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The card of a run against itself, with every part."""
    import hydra
    from hydra.core.global_hydra import GlobalHydra

    from twoview.cli.configs import CONFIGS

    folder = tmp_path_factory.mktemp("card") / "card"
    GlobalHydra.instance().clear()
    words = [f"ckpt={finished}", f"against={finished}", f"out={folder}", *SMALL, *FEW]
    with (
        hydra.initialize_config_dir(version_base="1.3", config_dir=str(CONFIGS)),
        pytest.MonkeyPatch.context() as patch,
    ):
        patch.setattr(about, "overrides", lambda: words)
        assert evaluate_command(hydra.compose("evaluate", overrides=words)) == 0
    return folder


@pytest.fixture
def drawn_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Figures are drawn for a wide light page alone, where a test looks at something else."""
    whole = page._svg

    def svg(plot: Plot, theme: Theme) -> str:
        return whole(plot, theme) if theme == LIGHT else "data:image/svg+xml,"

    monkeypatch.setattr(page, "_svg", svg)


class Page(HTMLParser):
    """Whether every element is closed, and what a page refers to."""

    VOID = ("meta", "img", "source", "br", "link", "hr")

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.references: list[str] = []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.references += [value or "" for name, value in attrs if name in ("src", "href", "srcset")]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_the_card_has_all_its_files(card: Path) -> None:
    pictures = {path.stem for path in card.glob("*.png")}
    assert pictures == {
        *("knn", "few_labels", "robustness", "calibration", "confusion", "neighbours", "map", "invariance", "curves"),
    }
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in card.glob("*.png"))
    text = (card / "card.html").read_text()
    references = Page(text).references
    assert len(references) == 4 * len(pictures)
    assert all(reference.startswith("data:image/") for reference in references)
    assert "<script" not in text
    assert list(card.glob("projector/**/sprite.png"))
    (metadata,) = card.glob("projector/**/metadata.tsv")
    assert metadata.read_text().startswith("name\tclass\n")


def test_the_numbers_are_those_of_the_other_commands(card: Path, finished: Path, command: Command) -> None:
    found = strict(card / "card.json")
    assert command(f"ckpt={finished}", "out=p.json", "baseline=true", SMALL[2], name="linear_probe").code == 0
    oracle = json.loads(Path("p.json").read_text())
    for mine, theirs in ((found["linear"]["run"], oracle), (found["linear"]["untrained"], oracle["baseline"])):
        for key in ("top1", "interval", "per_class", "confusion", "ece", "l2", "protocol_hash"):
            assert mine[key] == theirs[key], key
        assert mine["ridge"] == theirs["ridge"]
    assert found["encoders"]["run"]["checkpoint_sha256"] == oracle["checkpoint_sha256"]
    for k, row in zip((1, 5), found["knn"]["run"]["grid"], strict=True):
        assert command(f"ckpt={finished}", "out=k.json", f"k={k}", "temperature=0.1", name="knn").code == 0
        assert row[0] == pytest.approx(json.loads(Path("k.json").read_text())["top1"])


def test_frozen_and_traceable(card: Path) -> None:
    found = strict(card / "card.json")
    for name in ("run", "untrained", "other"):
        proof = found["encoders"][name]["frozen"]
        assert proof["before"] == proof["after"]
    digests = [found["encoders"][name]["frozen"]["before"] for name in ("run", "untrained", "other")]
    assert digests[0] == digests[2] != digests[1]
    text = (card / "card.html").read_text()
    for part in (
        digests[0][:16],
        found["linear"]["run"]["protocol_hash"],
        found["versions"]["torch"],
        "evaluate ckpt=",
    ):
        assert part in text
    assert found["missing"] == {}


@pytest.mark.parametrize("model", ["simclr", "moco"])
def test_the_untrained_networks_are_those_that_the_run_started_from(
    compose: Callable[..., Any], tiny: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model: str
) -> None:
    first: dict[str, torch.Tensor] = {}

    def hook(self: Meter, trainer: Any, module: torch.nn.Module) -> None:
        original(self, trainer, module)
        first.update({name: value.clone() for name, value in module.state_dict().items()})

    original = Meter.on_train_start
    monkeypatch.setattr(Meter, "on_train_start", hook)
    words = [f"model={model}", *tiny, *(["model.queue_size=64"] if model == "moco" else [])]
    pretrain.run(compose(*words, "seed=3", "epochs=1", "loader.max_batches=1", "knn=null", "quality=null"), tmp_path)
    config = compose(f"ckpt={tmp_path}", name="evaluate")
    torch.manual_seed(99)  # whatever was drawn before
    encoder, projector = networks(config, subject(evaluate._for_subject(config), labelled=False), None)["untrained"]
    for name, network in (("encoder", encoder.encoder), ("projector", projector)):
        ours = network.state_dict()
        assert ours
        assert all(torch.equal(value, first[f"{name}.{key}"]) for key, value in ours.items()), name


def test_a_run_is_not_better_than_itself(card: Path) -> None:
    found = strict(card / "card.json")
    for score in ("linear", "knn"):
        same = found["paired"][score]["other"]
        assert (same["difference"], same["p"], same["only_first"], same["only_second"]) == (0, 1, 0, 0)
        low, high = same["interval"]
        assert low == pytest.approx(-high)
    for part in ("quality", "invariance"):
        assert found[part]["other"] == found[part]["run"]
    own, other = found["robustness"]["run"], found["robustness"]["other"]
    assert own["accuracy"] == other["accuracy"]
    assert other["difference"]["mean"] == 0
    assert found["quality"]["run"]["z"] != found["quality"]["untrained"]["z"]
    assert "is not told apart" in (card / "card.html").read_text()


def test_fewer_labels_are_nested_in_the_whole(card: Path) -> None:
    quarter, whole = strict(card / "card.json")["few_labels"]["fractions"]
    assert quarter["images"] < 0.3 * whole["images"]
    assert len(quarter["run"]["values"]) == 2
    low, high = quarter["run"]["interval"]
    assert low <= quarter["run"]["mean"] <= high
    assert whole["run"]["values"] == [strict(card / "card.json")["linear"]["run"]["top1"]]
    assert whole["run"]["interval"] == strict(card / "card.json")["linear"]["run"]["interval"]


def test_corruptions_are_those_of_the_same_classifier(card: Path) -> None:
    found = strict(card / "card.json")["robustness"]
    assert found["images"] == 6
    shares = [x for row in found["run"]["accuracy"].values() for x in row]
    assert len(shares) == 13 * 5
    assert found["run"]["mean"] == pytest.approx(sum(shares) / len(shares))
    assert all(round(6 * x, 6) % 1 == 0 for x in shares)


@pytest.mark.usefixtures("drawn_once")
def test_no_test_image_is_called_by_a_stranger_name(card: Path, tmp_path: Path) -> None:
    """Names from data and paths are text, whatever is in them."""
    hostile = strict(card / "card.json") | {"name": "<script>alert(1)</script>", "classes": ["$x_1$ & <b>"] * 10}
    for part in ("robustness", "invariance", "few_labels", "knn"):
        del hostile[part]
    card_page.write(tmp_path, hostile, {})
    text = (tmp_path / "card.html").read_text()
    Page(text)
    assert "<script" not in text
    assert "<b>" not in text


def test_other_data_is_refused(
    finished: Path, compose: Command, command: Command, tiny: list[str], tmp_path: Path
) -> None:
    other = tmp_path / "other"
    pretrain.run(compose(*tiny, "data.n_test=32", "epochs=1", "knn=null", "loader.max_batches=1"), other)
    ended = command(f"ckpt={finished}", f"against={other}", *SMALL, *NONE, name="evaluate")
    assert "its test split (shapes, 32 images) is not this run's (shapes, 64)" in ended.error
    assert "data=..." in ended.error
    assert not (finished / "card").exists()


@pytest.mark.usefixtures("drawn_once")
def test_a_run_of_other_code_is_compared_on_demand_only(finished: Path, command: Command, tmp_path: Path) -> None:
    checkpoint = read_checkpoint(finished)
    checkpoint["twoview"]["identity"]["code"] = "of old"
    checkpoint["twoview"]["config"]["epochs"] = 7
    torch.save(checkpoint, tmp_path / "last.ckpt")
    words = [f"ckpt={finished}", "against=last.ckpt", "out=card", *SMALL, *NONE]
    error = command(*words, name="evaluate").error
    assert "against=last.ckpt: code of twoview of the two runs differ" in error
    assert "across=true" in error
    assert command(*words, "across=true", name="evaluate").code == 0
    told = strict(tmp_path / "card" / "card.json")["caveats"]
    assert "The other run differs: epochs=7 instead of 2; another code of twoview." in told


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["ckpt=null"], "which run"),
        (["transfer=[cifra100]"], "Did you mean cifar100?"),
        (["transfer=[shapes]"], "trained on samples of 3 x 16 x 16, shapes has samples of 3 x 32 x 32"),
        (["k=[0]"], "k=[0]"),
        (["temperature=[]"], "temperature=[]"),
        (["fractions=[1.5]"], "fractions=[1.5]"),
        (["label_seeds=0"], "label_seeds=0"),
        (["corruption_images=-1"], "corruption_images=-1"),
        (["strengths=[]"], "strengths"),
        (["holdout=1"], "holdout=1"),
        (["against=nowhere.ckpt"], "nowhere.ckpt"),
        (["across=perhaps"], "across='perhaps' is not true or false"),
        (["map_images=many"], "map_images='many' is not a whole number"),
    ],
)
def test_mistakes_are_said_at_once(finished: Path, command: Command, words: list[str], told: str) -> None:
    ended = command(f"ckpt={finished}", "device=cpu", *words, name="evaluate")
    assert told in ended.error


def test_a_place_that_cannot_be_written(finished: Path, command: Command, tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("")
    assert "taken" in command(f"ckpt={finished}", "out=taken/card", *SMALL, *NONE, name="evaluate").error


def test_the_lack_of_the_extra_is_said_first(finished: Path, command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    import importlib.util

    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *a: None if name == "jinja2" else find(name, *a))
    assert "pip install 'twoview[report]'" in command(f"ckpt={finished}", name="evaluate").error


@pytest.mark.usefixtures("drawn_once")
def test_images_without_labels_get_all_that_needs_none(finished: Path, command: Command, tmp_path: Path) -> None:
    for i in range(40):
        path = tmp_path / "plain" / f"{i}.png"
        path.parent.mkdir(exist_ok=True)
        pixels = torch.randint(0, 256, (16, 16, 3), generator=torch.Generator().manual_seed(i), dtype=torch.uint8)
        Image.fromarray(pixels.numpy()).save(path)
    words = ("data=image_folder", f"data.root={tmp_path / 'plain'}", "out=card", *SMALL, *FEW)
    ended = command(f"ckpt={finished}", *words, name="evaluate")
    assert ended.code == 0, ended.err
    found = strict(tmp_path / "card" / "card.json")
    assert set(found["missing"]) == {"linear", "knn", "few_labels", "robustness"}
    assert {"quality", "invariance", "doctor"} <= found.keys()
    assert {"neighbours.png", "map.png", "invariance.png"} <= {p.name for p in (tmp_path / "card").iterdir()}
    text = (tmp_path / "card" / "card.html").read_text()
    assert "has no labels" in text
    assert (found["train_size"], found["test_size"]) == (36, 4)


@pytest.mark.usefixtures("drawn_once")
def test_other_data_is_tried_with_the_same_features(
    finished: Path, command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sets = tuple(shapes(n_train=96, n_test=40, size=16, seed=7, split=split) for split in ("train", "test"))
    monkeypatch.setattr("twoview.commands.evaluate._elsewhere", lambda config, name: sets)
    words = (f"ckpt={finished}", "transfer=[shapes]", "out=card", *SMALL, *NONE)
    ended = command(*words, name="evaluate")
    assert ended.code == 0, ended.err
    found = strict(tmp_path / "card" / "card.json")["transfer"]["shapes"]
    assert (found["classes"], found["train"], found["test"]) == (10, 96, 40)
    encoder = load_encoder(finished)
    x, y = (extract(encoder, images) for images in sets)
    alone = probe(x, sets[0].labels, y, sets[1].labels, 10, [0.01, 0.1], 0.1, 0)
    assert found["linear"]["run"]["top1"] == alone.top1
    gap = alone.top1 - found["linear"]["untrained"]["top1"]
    assert found["paired"]["linear"]["untrained"]["difference"] == pytest.approx(gap)
    assert "On other data" in (tmp_path / "card" / "card.html").read_text()


@pytest.mark.usefixtures("drawn_once")
def test_fewer_test_images_than_classes(finished: Path, command: Command, tmp_path: Path) -> None:
    words = ("data=shapes", "data.n_train=128", "data.n_test=4", "data.size=16", "out=card", *SMALL, *NONE)
    ended = command(f"ckpt={finished}", *words, name="evaluate")
    assert ended.code == 0, ended.err
    text = (tmp_path / "card" / "card.html").read_text()
    assert "4 test images for 10 classes" in text
    assert "–" in text  # classes without an accuracy


def damaged(finished: Path, folder: Path, value: float) -> Path:
    shutil.copytree(finished, folder)
    checkpoint = torch.load(folder / "last.ckpt", weights_only=True)
    for name, weight in checkpoint["state_dict"].items():
        if name.startswith("encoder.") and weight.is_floating_point() and "running_var" not in name:
            weight.fill_(value)
    torch.save(checkpoint, folder / "last.ckpt")
    return folder


@pytest.mark.usefixtures("drawn_once")
def test_a_collapsed_encoder_is_called_that(finished: Path, command: Command, tmp_path: Path) -> None:
    run = damaged(finished, tmp_path / "collapsed", 0.0)
    ended = command(f"ckpt={run}", *SMALL, *FEW[1:2], *NONE[:1], *NONE[2:], name="evaluate")
    assert ended.code == 0, ended.err
    found = strict(run / "card" / "card.json")
    assert "tells nothing apart" in found["caveats"][0]
    assert found["linear"]["run"]["top1"] <= 2 / 10


def test_features_that_are_not_numbers_end_it(finished: Path, command: Command, tmp_path: Path) -> None:
    run = damaged(finished, tmp_path / "nan", float("nan"))
    assert "NaN" in command(f"ckpt={run}", *SMALL, *NONE, name="evaluate").error


def judged(n: int = 96, m: int = 40) -> measures.Judged:
    """Encoders of random features; `run` sees the class, `untrained` hardly."""
    train, test = (shapes(n_train=n, n_test=m, size=8, split=split) for split in ("train", "test"))
    assert train is not None
    assert test is not None
    generator = torch.Generator().manual_seed(0)
    encoders = {}
    for name, signal in (("run", 4.0), ("untrained", 0.5)):
        sides = [
            torch.randn(len(s), 12, generator=generator) + signal * torch.nn.functional.one_hot(s.labels, 12).float()
            for s in (train, test)
            if s.labels is not None
        ]
        encoders[name] = measures.Encoder(torch.nn.Identity(), None, *sides)  # type: ignore[arg-type]
    config = {"k": [1, 5], "temperature": [0.1], "strengths": [0.1], "holdout": 0.2, "seed": 0, "map_images": 30}
    return measures.Judged(train, test, encoders, config, torch.device("cpu"))


def test_the_better_features_win() -> None:
    case = judged()
    measures.neighbours(case)
    found = {"linear": measures.linear(case), "knn": measures.knn(case)}
    gaps = measures.differences(case.right)
    for score in ("linear", "knn"):
        assert found[score]["run"]["top1"] > found[score]["untrained"]["top1"] + 0.2
        gap = gaps[score]["untrained"]
        assert gap["difference"] == pytest.approx(found[score]["run"]["top1"] - found[score]["untrained"]["top1"])
        assert gap["p"] < 0.01
        assert gap["interval"][0] > 0


def test_the_sheet_shows_one_query_of_each_class_and_marks_its_neighbours() -> None:
    case = judged()
    measures.neighbours(case)
    sheet = atlas.sheet(case)
    assert [one.name for one in sheet] == list(case.test.classes)
    marks = [right for one in sheet for _, right in one.neighbours["run"]]
    assert len(marks) == 50
    assert sum(marks) > sum(right for one in sheet for _, right in one.neighbours["untrained"])  # type: ignore[misc]


def test_the_map_is_of_principal_components() -> None:
    x = torch.randn(200, 2, generator=torch.Generator().manual_seed(0)).double() @ torch.diag(
        torch.tensor([5.0, 1.0]).double()
    )
    turn = torch.linalg.qr(torch.randn(6, 6, generator=torch.Generator().manual_seed(1)).double()).Q[:2]
    points, share = atlas.principal(x @ turn + 3, 2)
    centred = x - x.mean(0)
    assert share[0] == pytest.approx(float(points[:, 0].square().sum() / centred.square().sum()))
    mine, theirs = ((p[:, None] - p).norm(dim=2) for p in (points, x))  # of all pairs
    assert torch.allclose(mine, theirs, atol=1e-9)
    assert float(points[:, 0].var()) > float(points[:, 1].var())
    flat, _ = atlas.principal(torch.ones(20, 5).double(), 2)
    assert flat.shape == (20, 2)
    assert bool(flat.isfinite().all())


def test_infinities_do_not_reach_the_file() -> None:
    plain = about.finite({"a": [float("nan"), 1.0, (float("inf"), 2)], 3: {"b": None, "c": True}})
    assert plain == {"a": [None, 1.0, [None, 2]], "3": {"b": None, "c": True}}
