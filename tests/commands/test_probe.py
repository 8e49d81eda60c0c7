"""The commands that judge a run: their tables, their files, and that they leave the encoder alone."""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import compose_config
from PIL import Image

from twoview.commands import probe
from twoview.data.image.shapes import shapes
from twoview.encoder.frozen import Frozen, digest
from twoview.errors import UserError
from twoview.evaluate.classify.knn import knn_accuracy
from twoview.evaluate.classify.protocols import crops
from twoview.evaluate.features import extract
from twoview.run.checkpoint import load_encoder, read_checkpoint
from twoview.train import pretrain

ROOT = Path(__file__).parents[2]


@pytest.fixture
def run_folder(finished: Path, tmp_path: Path) -> Path:
    """A copy of the finished run, to write into."""
    return shutil.copytree(finished, tmp_path / "run")


def test_the_real_linear_probe_with_its_base_line(run_folder: Path, tmp_path: Path) -> None:
    before = digest(load_encoder(run_folder))
    script = [sys.executable, ROOT / "scripts" / "linear_probe.py", f"ckpt={run_folder}/last.ckpt", "baseline=true"]
    ended = subprocess.run(script, cwd=tmp_path, capture_output=True, text=True, timeout=240)
    assert ended.returncode == 0, ended.stderr
    for word in ("untrained", "trained", "top-1", "top-5", "chance", "hourglass", "95 % interval"):
        assert word in ended.stdout
    assert str(run_folder / "linear_probe.json") in ended.stdout.replace("\n", "")
    report = json.loads((run_folder / "linear_probe.json").read_text())
    assert report["chance"] == pytest.approx(0.1, abs=0.05)
    assert report["interval"][0] <= report["top1"] <= report["interval"][1]
    assert report["top1"] <= report["top5"] <= 1
    assert len(report["per_class"]) == len(report["classes"]) == 10
    assert 0 <= report["baseline"]["top1"] <= 1
    assert report["encoder_digest"] == before == digest(load_encoder(run_folder))
    assert report["data"] == "shapes"
    assert len(report["protocol_hash"]) == 12
    assert len(report["checkpoint_sha256"]) == 64
    assert {"machine", "versions", "commit", "protocol", "protocol_text"} <= report.keys()
    assert report["frozen"] == {"before": before, "after": before}
    assert report["baseline"]["frozen"]["before"] == report["baseline"]["frozen"]["after"] != before
    for low, high in (report["bootstrap"], report["ridge"]["interval"]):
        assert 0 <= low <= high <= 1
    assert (report["train_size"], report["test_size"]) == (256, 64)
    assert report["holdout_size"] == pytest.approx(26, abs=5)
    assert report["feature_layer"].startswith("h: the encoder's output of 20 dimensions")
    assert report["shape"] == [3, 16, 16]
    assert [path.name for path in tmp_path.iterdir()] == ["run"]  # no folder of Hydra's


def test_knn_is_what_the_function_gives(run_folder: Path, command: Callable[..., Any]) -> None:
    ended = command(f"ckpt={run_folder}", "k=20", "baseline=true", name="knn")
    assert ended.code == 0, ended.err
    report = json.loads((run_folder / "knn.json").read_text())
    encoder = load_encoder(run_folder)
    splits = [shapes(split=split, n_train=256, n_test=64, size=16) for split in ("train", "test")]
    train, test = splits
    assert train is not None
    assert test is not None
    assert train.labels is not None
    assert test.labels is not None
    expected = knn_accuracy(extract(encoder, train), train.labels, extract(encoder, test), test.labels, 20, 0.1, 10)
    assert report["top1"] == pytest.approx(expected)
    assert (report["train_size"], report["test_size"]) == (256, 64)
    assert f"{100 * expected:.2f} %" in ended.out
    assert "untrained" in ended.out


def test_the_last_knn_of_the_run_and_of_the_script_agree(run_folder: Path, command: Callable[..., Any]) -> None:
    assert command(f"ckpt={run_folder}", name="knn").code == 0
    summary = json.loads((run_folder / "summary.json").read_text())
    assert json.loads((run_folder / "knn.json").read_text())["top1"] == pytest.approx(summary["knn"]["final"])


@pytest.mark.parametrize("form", ["", "/last.ckpt", "/encoder.safetensors"])
def test_every_form_of_a_run_gives_the_same_score(run_folder: Path, command: Callable[..., Any], form: str) -> None:
    assert command(f"ckpt={run_folder}{form}", "strengths=[0.01]", "out=x.json", name="linear_probe").code == 0
    report = json.loads((run_folder.parent / "x.json").read_text())
    again = command(f"ckpt={run_folder}", "strengths=[0.01]", "out=y.json", name="linear_probe")
    other = json.loads((run_folder.parent / "y.json").read_text())
    assert again.code == 0
    for key in ("top1", "top5", "per_class", "encoder_digest", "protocol_hash"):
        assert report[key] == other[key]


def test_the_base_line_is_the_encoder_at_step_0(finished: Path) -> None:
    judged = probe.Subject(load_encoder(finished), None, None, torch.device("cpu"))  # type: ignore[arg-type]
    untrained = judged.untrained()
    assert digest(untrained) == digest(judged.untrained())
    assert digest(untrained) != digest(judged.encoder)
    assert not any(parameter.requires_grad for parameter in untrained.parameters())


@pytest.mark.parametrize("name", ["simclr", "moco", "dinov2", "fast"])
def test_published_protocols_by_name(run_folder: Path, command: Callable[..., Any], name: str) -> None:
    before = digest(load_encoder(run_folder))
    ended = command(f"ckpt={run_folder}", f"protocol={name}", "epochs=2", name="linear_probe")
    assert ended.code == 0, ended.err
    assert f"({name})" in ended.out
    report = json.loads((run_folder / f"linear_probe_{name}.json").read_text())
    assert not (run_folder / "linear_probe.json").exists()
    assert report["protocol"] == name
    assert report["epochs"] == 2
    assert report["frozen"] == {"before": before, "after": before}
    assert (report["holdout_size"] > 0) == (name == "dinov2")
    assert "ridge" not in report


@pytest.mark.parametrize("name", ["linear_probe", "knn"])
def test_images_of_another_size_need_force(run_folder: Path, command: Callable[..., Any], name: str) -> None:
    other = [f"ckpt={run_folder}", "data=shapes", "data.n_train=60", "data.n_test=30", "data.size=24"]
    error = command(*other, name=name).error
    assert "trained on samples of 3 x 16 x 16, shapes has samples of 3 x 24 x 24" in error
    assert "force=true" in error
    ended = command(*other, "force=true", name=name)
    assert ended.code == 0, ended.err
    assert "trained on samples of 3 x 16 x 16" in ended.out + ended.err


def test_an_encoder_that_changes_while_it_is_probed_gives_no_result(
    run_folder: Path, command: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def drifting(encoder: Frozen, *args: Any) -> Any:
        take = crops(encoder, *args)

        def drifts(index: torch.Tensor, epoch: int) -> torch.Tensor:
            encoder.preprocess.mean += 1e-3
            return take(index, epoch)

        return drifts

    monkeypatch.setattr(probe, "crops", drifting)
    error = command(f"ckpt={run_folder}", "protocol=moco", "epochs=1", name="linear_probe").error
    assert "the encoder changed while it was judged" in error
    assert not list(run_folder.glob("linear_probe*.json"))


def test_other_data_go_to_a_file_of_their_own(run_folder: Path, command: Callable[..., Any]) -> None:
    words = ["data=shapes", "data.n_train=60", "data.n_test=30", "data.size=16", "data.seed=5", "k=5"]
    assert command(f"ckpt={run_folder}", *words, name="knn").code == 0
    report = json.loads((run_folder / "knn_shapes.json").read_text())
    assert (report["train_size"], report["test_size"]) == (60, 30)
    assert not (run_folder / "knn.json").exists()


def test_an_encoder_that_changes_while_it_is_read_is_noticed(finished: Path) -> None:
    class Drifting(torch.nn.Module):
        dim = 2

        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("count", torch.zeros(1))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            self.count += 1
            return x.mean(dim=(2, 3))[:, :2]

    images = shapes(split="train", n_train=10, n_test=10, size=16)
    assert images is not None
    judged = probe.Subject(Frozen(Drifting(), images.preprocess), images, images, torch.device("cpu"))
    with pytest.raises(UserError, match="the encoder changed"):
        judged.features()


# What ends in one message.


def pictures(root: Path, splits: tuple[str, ...], labelled: bool) -> str:
    for split in splits:
        for i in range(8):
            folder = root / split / (f"class{i % 2}" if labelled else "")
            folder.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (16, 16), (30 * i, 0, 0)).save(folder / f"{i}.png")
    return f"data.root={root}"


@pytest.mark.parametrize("name", ["linear_probe", "knn"])
def test_data_that_cannot_be_scored_are_named(
    run_folder: Path, tmp_path: Path, command: Callable[..., Any], name: str
) -> None:
    def error(*words: str) -> str:
        return command(f"ckpt={run_folder}", "data=image_folder", *words, name=name).error

    unlabelled = error(pictures(tmp_path / "plain", ("train", "test"), labelled=False))
    assert "plain has no labels in its train split" in unlabelled
    assert "data=" in unlabelled
    assert "single has no test split" in error(pictures(tmp_path / "single", ("train",), labelled=True))
    assert "there is no folder" in error("data.root=nowhere")
    assert not list(run_folder.glob("*.json.part"))


def test_images_with_other_channels_are_refused(run_folder: Path, tmp_path: Path, command: Callable[..., Any]) -> None:
    checkpoint = read_checkpoint(run_folder)
    checkpoint["twoview"]["preprocess"] |= {"mean": [0.5], "std": [0.5]}
    torch.save(checkpoint, run_folder / "last.ckpt")
    error = command(f"ckpt={run_folder}", name="knn").error
    assert "the encoder does not take the samples of shapes: images of 3 channels, but mean and std of 1" in error


@pytest.mark.parametrize("name", ["linear_probe", "knn"])
@pytest.mark.parametrize(
    ("words", "says"),
    [
        ([], r"which run\? .*ckpt="),
        (["ckpt=nowhere/last.ckpt"], r"there is no checkpoint nowhere/last\.ckpt"),
        (["ckpt={run}/metrics.csv"], r"metrics\.csv cannot be read as a checkpoint"),
        (["ckpt={run}", "device=gpu"], r"device='gpu' is not one of auto, cpu, cuda"),
        (["ckpt={run}", "device=3"], r"device=3"),
        (["ckpt={run}", "baseline=perhaps"], r"baseline='perhaps'"),
        (["ckpt={run}", "out=no/such/folder/x.json"], r"cannot write no/such/folder/x\.json"),
        (["ckpt={run}", "data=cifar11"], r"cifar11.*cifar10"),
        (["ckpt={run}", "data=shapes", "data.n_train=many"], r"data\.n_train='many'"),
        (["ckpt={run}", "+data=3"], r"name of an option, as in data=shapes"),
        (["ckpt={run}", "invented=1"], r"has no key 'invented'"),
        (["ckpt=3"], r"ckpt=3|there is no checkpoint 3"),
    ],
)
def test_bad_words_to_a_probe(
    run_folder: Path, command: Callable[..., Any], name: str, words: list[str], says: str
) -> None:
    error = command(*(word.format(run=run_folder) for word in words), name=name).error
    assert re.search(says, error), error


@pytest.mark.parametrize(
    ("name", "word", "says"),
    [
        ("knn", "k=0", "k must be at least 1"),
        ("knn", "k=many", "k='many'"),
        ("knn", "k=null", "k=None"),
        ("knn", "temperature=0", "temperature positive"),
        ("knn", "temperature=warm", "temperature='warm'"),
        ("linear_probe", "strengths=[]", "one or more positive numbers"),
        ("linear_probe", "strengths=[0]", "one or more positive numbers"),
        ("linear_probe", "strengths=5", "strengths=5"),
        ("linear_probe", "holdout=1.5", "between 0 and 1"),
        ("linear_probe", "holdout=half", "holdout='half'"),
        ("linear_probe", "seed=x", "seed='x'"),
        ("linear_probe", "protocol=sgd", "protocol='sgd' is not one of convex, simclr, moco, dinov2, fast"),
        ("linear_probe", "epochs=3", "protocol=convex goes to the optimum and has no epochs"),
        ("linear_probe", "epochs=2.5", "epochs=2.5"),
        ("linear_probe", "force=perhaps", "force='perhaps'"),
    ],
)
def test_bad_numbers_to_a_probe(run_folder: Path, command: Callable[..., Any], name: str, word: str, says: str) -> None:
    assert says in command(f"ckpt={run_folder}", word, name=name).error


# Curves.


def test_curves_are_drawn(run_folder: Path, command: Callable[..., Any]) -> None:
    pytest.importorskip("matplotlib")
    assert command(f"run={run_folder}", name="plot_run").code == 0
    with Image.open(run_folder / "curves.png") as picture:
        assert min(picture.size) > 300


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ([], "which run?"),
        (["run=nowhere"], "there is no nowhere/metrics.csv"),
        (["run={run}", "out=no/such/folder.png"], "no/such/folder.png"),
        (["run={run}", "out=curves.exe"], "curves.exe"),
    ],
)
def test_bad_words_to_the_plot(run_folder: Path, command: Callable[..., Any], words: list[str], says: str) -> None:
    pytest.importorskip("matplotlib")
    assert says in command(*(word.format(run=run_folder) for word in words), name="plot_run").error


def test_a_damaged_metrics_file_is_named(run_folder: Path, command: Callable[..., Any]) -> None:
    pytest.importorskip("matplotlib")
    (run_folder / "metrics.csv").write_text("step,epoch,loss\nthree,1,2.0\n")
    assert "metrics.csv" in command(f"run={run_folder}", name="plot_run").error


@pytest.mark.parametrize("name", ["probe", "knn", "embed", "finetune"])
def test_a_run_knows_its_data_wherever_it_is_judged_and_a_moved_set_is_named(
    run_of_photos: Path, command: Callable[..., Any], name: str
) -> None:
    more = {"finetune": ["epochs=1", "batch_size=4"], "probe": ["strengths=[0.1]"]}.get(name, [])
    here = run_of_photos / "photos"
    words = [f"ckpt={run_of_photos / 'run'}", "out=result", *more]
    assert command(*words, name=name).code == 0  # from another folder than the training's
    here.rename(run_of_photos / "elsewhere")
    assert f"there is no folder {here}: set data.root to the folder of your images" in command(*words, name=name).error
    assert command(*words, f"data.root={run_of_photos / 'elsewhere'}", name=name).code == 0
    assert "data has no key 'rot'. Did you mean root?" in command(*words, "data.rot=x", name=name).error


@pytest.fixture
def run_of_photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `photos`, and `run`, which was trained there on a relative path."""
    folder = tmp_path_factory.mktemp("place")
    for number in range(16):
        path = folder / "photos" / ("train" if number < 12 else "test") / "ab"[number % 2] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8), (10 * number, 99, 200)).save(path)
    before = os.getcwd()
    try:
        os.chdir(folder)
        config = compose_config(
            "data=image_folder", "data.root=photos", "batch_size=4", "epochs=1", "trainer=cpu", "knn=null",
            "quality=null", "loader.num_workers=0", "model.projector.hidden_dim=8", "encoder=small",
            "encoder.widths=[4,4,4,4]",
        )  # fmt: skip
        pretrain.run(config, folder / "run")
    finally:
        os.chdir(before)
    return folder
