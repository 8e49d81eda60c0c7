"""The command finetune: what it reports, and bad words."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from twoview.data.image.shapes import shapes
from twoview.encoder.frozen import digest
from twoview.evaluate.classify.finetune import Tuning, fit
from twoview.evaluate.features import extract
from twoview.run.checkpoint import load_encoder

CPU = torch.device("cpu")


def test_the_command_reports(finished: Path, tmp_path: Path, command: Callable[..., Any]) -> None:
    words = [f"ckpt={finished}", "out=f.json", "epochs=2", "batch_size=64", "label_fraction=0.5", "baseline=true"]
    before = digest(load_encoder(finished))
    ended = command(*words, name="finetune")
    assert ended.code == 0, ended.err
    report = json.loads((tmp_path / "f.json").read_text())
    for word in ("untrained", "trained", "top-1", "95 % interval", "chance", "hourglass"):
        assert word in ended.out
    assert 115 <= report["train_size"] <= 141
    assert report["baseline"]["train_size"] == report["train_size"]
    assert report["test_size"] == 64
    assert report["interval"][0] <= report["top1"] <= report["interval"][1]
    assert report["top1"] <= report["top5"] <= 1
    assert len(report["per_class"]) == len(report["classes"]) == 10
    assert report["encoder_digest"] == before
    assert (report["epochs"], report["label_fraction"], report["seed"]) == (2, 0.5, 0)
    assert report["losses"] != report["baseline"]["losses"]
    assert len(report["protocol_hash"]) == 12
    assert {"machine", "versions", "commit", "protocol", "checkpoint_sha256", "lr"} <= report.keys()
    assert command(*words, name="finetune").code == 0
    again = json.loads((tmp_path / "f.json").read_text())
    assert {**again, "seconds": 0, "total_seconds": 0, "baseline": 0} == {
        **report,
        "seconds": 0,
        "total_seconds": 0,
        "baseline": 0,
    }
    assert command(*words, "seed=1", name="finetune").code == 0
    assert json.loads((tmp_path / "f.json").read_text())["protocol_hash"] != report["protocol_hash"]


def test_the_protocol_says_what_it_is(finished: Path, command: Callable[..., Any], tmp_path: Path) -> None:
    """Accuracy of the model that comes out, scored another way."""
    assert command(f"ckpt={finished}", "out=f.json", "epochs=1", "precision=float32", name="finetune").code == 0
    report = json.loads((tmp_path / "f.json").read_text())
    loaded = [shapes(split=split, n_train=256, n_test=64, size=16) for split in ("train", "test")]
    train, test = loaded
    assert train is not None
    assert test is not None
    assert test.labels is not None
    model, _ = fit(load_encoder(finished), train, Tuning(1, 128, 0.05, 0), CPU)
    assert report["top1"] == float((extract(model, test).argmax(1) == test.labels).double().mean())


def pictures(root: Path, splits: tuple[str, ...], labelled: bool) -> str:
    for split in splits:
        for i in range(8):
            folder = root / split / (f"class{i % 2}" if labelled else "")
            folder.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (16, 16), (30 * i, 0, 0)).save(folder / f"{i}.png")
    return f"data.root={root}"


def test_images_on_demand_give_the_same(finished: Path, tmp_path: Path, command: Callable[..., Any]) -> None:
    words = [f"ckpt={finished}", "data=image_folder", pictures(tmp_path / "set", ("train", "test"), labelled=True)]
    reports = []
    for memory in ("true", "false"):
        ended = command(*words, f"data.in_memory={memory}", "out=f.json", "epochs=2", name="finetune")
        assert ended.code == 0, ended.err
        reports.append(json.loads((tmp_path / "f.json").read_text()))
    assert reports[0]["losses"] == reports[1]["losses"]


def test_data_that_cannot_be_learned_are_named(finished: Path, tmp_path: Path, command: Callable[..., Any]) -> None:
    def error(*words: str) -> str:
        return command(f"ckpt={finished}", "data=image_folder", "out=f.json", *words, name="finetune").error

    plain = pictures(tmp_path / "plain", ("train", "test"), labelled=False)
    assert "plain has no labels in its train split" in error(plain)
    assert "single has no test split" in error(pictures(tmp_path / "single", ("train",), labelled=True))
    few = pictures(tmp_path / "few", ("train", "test"), labelled=True)
    assert re.search(r"leaves the class class0 without an image, of which there are 4: use at least 0\.25", error(
        few, "label_fraction=0.1"
    ))  # fmt: skip
    assert "none can be held out: use more images, or give a single value" in error(
        few, "label_fraction=0.25", "lr_per_256=[0.1,0.2]"
    )
    assert not (tmp_path / "f.json").exists()


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ([], r"which run\? .*ckpt="),
        (["ckpt=nowhere/last.ckpt"], r"there is no checkpoint nowhere/last\.ckpt"),
        (["ckpt={run}", "label_fraction=0"], r"label_fraction must lie above 0 and at most be 1, not 0"),
        (["ckpt={run}", "label_fraction=1.5"], r"label_fraction must lie above 0 and at most be 1, not 1\.5"),
        (["ckpt={run}", "label_fraction=10%"], r"label_fraction='10%' is not a number|cannot read"),
        (["ckpt={run}", "epochs=0"], r"epochs must be at least 1"),
        (["ckpt={run}", "batch_size=1"], r"batch_size at least 2"),
        (["ckpt={run}", "lr_per_256=[]"], r"lr_per_256 must be one or more positive numbers"),
        (["ckpt={run}", "lr_per_256=0.1"], r"lr_per_256=0\.1 is not a list of a number"),
        (["ckpt={run}", "holdout=1"], r"holdout must lie between 0 and 1"),
        (["ckpt={run}", "seed=-1"], r"seed=-1 must lie in"),
        (["ckpt={run}", "precision=int8"], r"precision='int8' is not one of auto, float32"),
        (["ckpt={run}", "device=gpu"], r"device='gpu' is not one of auto, cpu, cuda"),
        (["ckpt={run}", "encoder_of=teacher"], r"holds no teacher"),
        (["ckpt={run}", "out=no/such/folder/x.json"], r"cannot write no/such/folder/x\.json: No such file"),
        (["ckpt={run}", "data=cifar11"], r"cifar11.*cifar10"),
        (["ckpt={run}", "invented=1"], r"has no key 'invented'"),
    ],
)
def test_bad_words(finished: Path, command: Callable[..., Any], words: list[str], says: str) -> None:
    error = command(*(word.format(run=finished) for word in words), name="finetune").error
    assert re.search(says, error), error
