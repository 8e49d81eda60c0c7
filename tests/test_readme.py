"""Every command and every example of the README and the pages in docs/ runs, shortened by overrides."""

import re
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
import torch
import torchvision
from conftest import ROOT, TINY, Ended
from PIL import Image

from twoview.train.budget import Cost

PAGES = {path: path.read_text() for path in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))}
TEXT = "\n\n".join(PAGES.values())
BLOCKS = re.findall(r"```(\w*)\n(.*?)```", TEXT, flags=re.DOTALL)
LINES = [line.split("  #")[0].strip() for kind, block in BLOCKS if kind == "" for line in block.splitlines()]
COMMANDS = sorted({line for line in LINES if line.startswith("python ")})
INLINE = sorted(set(re.findall(r"`(python (?:train|scripts|benchmarks)[^`]+)`", TEXT)))


def photos(folder: Path) -> None:
    rng = np.random.default_rng(0)
    for i in range(8):
        path = folder / "photos" / f"{i}.png"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (40, 50, 3), dtype=np.uint8)).save(path)


def shards(folder: Path) -> None:
    photos(folder)
    (folder / "shards").mkdir()
    rows = [{"bytes": path.read_bytes(), "path": path.name} for path in sorted((folder / "photos").iterdir())]
    table = pyarrow.table({"img": rows, "label": [0, 1] * 4})
    pyarrow.parquet.write_table(table, folder / "shards" / "train-00000-of-00001.parquet")


def own_package(folder: Path) -> None:
    (folder / "my_package.py").write_text(
        "from torch import nn\n\n\nclass Net(nn.Sequential):\n    dim = 4\n\n    def __init__(self):\n"
        "        super().__init__(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())\n"
    )
    config = folder / "configs" / "encoder" / "mine.yaml"
    config.parent.mkdir(parents=True)
    config.write_text("_target_: my_package.Net\n")


def shortened(script: str, words: list[str], run: Path) -> list[str]:
    """The words of a command with what makes it short behind them, and with a real run in place of `<date>`."""
    words = [re.sub(r"runs/[\w-]+/<date>|<run>|runs/demo/latest", str(run), word) for word in words]
    words = [word for word in words if word != "compile=true"]  # tests/train/test_compiled.py
    if script == "preview_augment":
        return [*words, "data=shapes", "data.n_train=40", "data.n_test=2", "data.size=16", "images=2"]
    if script == "ablate_augment" and words[0].startswith("report="):
        return words
    if script == "ablate_augment":  # whole studies: tests/ablate
        return [*words, *(word for word in TINY if not word.startswith("knn")), "dry_run=true", "judge.profile=4"]
    if script == "evaluate":
        few = ["corruption_images=8", "quality_images=16", "invariance_images=8", "map_images=16", "label_seeds=1"]
        return [*words, *few, "fractions=[1.0]", "k=[5]", "temperature=[0.1]", "strengths=[0.01]"]
    if script == "finetune":
        return [*words, "epochs=1", "label_fraction=0.5"]
    if script == "verify_resume" or {"experiment=letter", "experiment=banking77"} & {
        *words
    }:  # tests/commands/test_verify.py, tests/cli
        return [*words, "--cfg", "job"]
    if script == "selftest":
        return [*words, "devices=cpu", "world=1"]  # with more: tests/selftest/test_selftest.py
    if any(word.startswith(("ckpt=", "run=", "--", "resume=")) and word != "resume=auto" for word in words):
        return words
    keep = {word.split("=")[0].split(".")[0] for word in words if word.startswith(("data=", "encoder="))}
    tiny = [word for word in TINY if word.split("=")[0].split(".")[0] not in keep and not word.startswith("batch_size")]
    if "data=parquet" in words:
        tiny.append("data.size=16")
    if "encoder=resnet50" in words:
        words = [word.replace("encoder=resnet50", "encoder=resnet18") for word in words]
    if "experiment=cifar10_paper" in words:  # its keys are those of a ResNet
        tiny = [word for word in tiny if not word.startswith("encoder")] + ["encoder=resnet18"]
    size = 16 if any("moco" in word for word in words) else 4  # MoCo's eight groups need two samples each
    one_step = ["epochs=1", "loader.max_batches=1", "loader.num_workers=0", "optimizer.warmup_epochs=0"]
    return [*words, *tiny, f"batch_size={size}", *one_step]


@pytest.mark.parametrize("line", [*COMMANDS, *(line for line in INLINE if line not in COMMANDS)])
@pytest.mark.usefixtures("undrawn")
def test_command_of_the_readme_runs(
    line: str, command: Callable[..., Ended], finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # What a trial measures is held by tests/train/test_budget.py
    monkeypatch.setattr("twoview.ablate.budget.measured", lambda *_: Cost(fixed=1.0, step=0.1, reading=0.0, steps=4))
    run = Path(shutil.copytree(finished, tmp_path / "run"))
    script, *words = shlex.split(line)[1:]
    assert (ROOT / script).is_file()
    name = Path(script).stem
    if name in (
        "runs",
        "battery",
        "soak",
        "reproduce",
        "run",
        "tables",
        "speakers",
        "texts",
        "pairs",
    ):  # tests/run/test_runs.py, tests/faults, tests/test_tables_benchmark.py
        return
    if "format=huggingface" in words:  # tests/commands/test_export_huggingface.py
        return
    if "encoder=timm" in line:
        pytest.importorskip("timm", reason="the extra `timm` is not installed")
    if "photos" in line:
        photos(tmp_path)
    if "labels.csv" in line:
        (tmp_path / "labels.csv").write_text("name,label\n0.png,cat\n1.png,dog\n")
    if "shards" in line:
        shards(tmp_path)
    if "resnet18.pth" in line:
        torch.save(torchvision.models.resnet18().state_dict(), tmp_path / "resnet18.pth")
    if "my_package" in line:
        own_package(tmp_path)
        monkeypatch.syspath_prepend(tmp_path)  # as Python does with the working directory
    for place in (word.removeprefix("report=") for word in words if word.startswith("report=")):
        shutil.copytree(ROOT / place, tmp_path / place)
    ended = command(*shortened(name, words, run), name=name)
    assert ended.code == 0 or (name, ended.code) == ("doctor", 3), ended.err  # a run of 8 steps is too early to judge


def test_readme_names_commands() -> None:
    assert len(COMMANDS) >= 5


@pytest.mark.parametrize("code", [block for kind, block in BLOCKS if kind == "python" and "runs/demo/latest" in block])
def test_example_of_the_readme_runs(code: str, finished: Path) -> None:
    namespace: dict[str, Any] = {}
    exec(code.replace("runs/demo/latest", str(finished)), namespace)
    assert tuple(namespace["h"].shape) == (2000, namespace["encoder"].dim)


def test_targets_of_make_exist() -> None:
    makefile = (ROOT / "Makefile").read_text()
    for target in set(re.findall(r"make ([a-z-]+)", TEXT)):
        assert re.search(rf"^{target}:", makefile, flags=re.MULTILINE), f"make {target}"


def test_the_readme_is_read_in_one_sitting() -> None:
    assert len(PAGES[ROOT / "README.md"].splitlines()) <= 150


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_and_pictures_lead_somewhere(page: Path) -> None:
    for link in re.findall(r"\]\(([^)#]+)[^)]*\)", PAGES[page]):
        if not link.startswith("http"):
            assert (page.parent / link).exists(), link


def test_the_layout_is_the_tree_as_built() -> None:
    package = ROOT / "ssl" / "twoview"
    rooms = re.findall(r"^  (\w+)/ +\S", PAGES[ROOT / "docs" / "layout.md"], flags=re.MULTILINE)
    assert sorted(rooms) == sorted(path.name for path in package.iterdir() if (path / "__init__.py").exists())


def test_options_of_the_readme_are_those_there_are() -> None:
    table = {
        row[0]: set(re.findall(r"`([\w]+)`", row[1])) for row in re.findall(r"^\| `(\w+)` \| (`.*?) \|", TEXT, re.M)
    }
    for group in (path.name for path in (ROOT / "configs").iterdir() if path.is_dir()):
        assert table[group] == {path.stem for path in (ROOT / "configs" / group).glob("*.yaml")}, group
