"""Whatever is typed wrongly ends in one message that names it and the remedy, in exit code 1, and leaves no folder."""

import os
import re
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from twoview.cli.configs import groups, options

ROOT = Path(__file__).parents[2]

# What is typed after a healthy tiny configuration, and what the message must hold (regular expressions).
BAD = [
    # names that there are not
    (["model=simlcr"], [r"simlcr", r"Did you mean simclr\?"]),
    (["encoder=resnet19"], [r"resnet19", r"resnet18", r"small"]),
    (["data=cifar"], [r"cifar", r"cifar100", r"shapes"]),
    (["augment=strong"], [r"strong", r"simclr_cifar"]),
    (["optimizer=sdg"], [r"sdg", r"Did you mean sgd\?"]),
    (["trainer=tpu"], [r"tpu", r"cpu", r"ddp"]),
    (["experiment=demoo"], [r"demoo", r"Did you mean demo\?"]),
    (["modle=simclr"], [r"modle", r"model"]),
    (["batchsize=8"], [r"batchsize", r"Did you mean batch_size\?"]),
    (["epoch=8"], [r"epoch", r"Did you mean epochs\?"]),
    (["model.temprature=0.2"], [r"model has no key 'temprature'", r"Did you mean temperature\?"]),
    (["model.projector.layer=3"], [r"model\.projector", r"Did you mean layers\?"]),
    (["augment.ops.jitter.strenght=1"], [r"augment\.ops\.jitter", r"Did you mean strength\?"]),
    (["augment.ops.blurr.p=1"], [r"blurr", r"augment\.ops", r"crop, flip, gray, jitter"]),
    (["loader.workers=2"], [r"loader", r"num_workers"]),
    (["trainer.max_epochs=3"], [r"trainer has no key 'max_epochs'", r"max_time"]),
    (["knn.K=3"], [r"knn has no key 'K'", r"every_epochs"]),
    (["checkpoint.every=2"], [r"checkpoint has no key 'every'", r"every_epochs"]),
    (["+model.momentum=0.9"], [r"model has no key 'momentum'", r"temperature"]),
    (["+checkpoint.keeps=3"], [r"checkpoint has no key 'keeps'", r"Did you mean keep\?"]),
    (["+invented=1"], [r"has no key 'invented'", r"batch_size"]),
    (
        ["+augment.ops.invert._target_=twoview.augment.image.photometric.Invert"],
        [r"augment\.ops\.invert\._target_", r"Invert"],
    ),
    (["model._target_=nowhere.Model"], [r"model\._target_=nowhere\.Model is no part of twoview", r"trust=\[nowhere\]"]),
    (["~model.nothing"], [r"nothing"]),
    (["~optimizer.lr_per_256"], [r"lr_per_256"]),
    (["~model.projector"], [r"projector"]),
    # words that are no words
    (["epochs"], [r"epochs", r"key=value"]),
    (["epochs=[1"], [r"epochs=\[1", r"key=value"]),
    (["=3"], [r"name of an option", r"augment, data, encoder"]),
    (["data.seed=${nowhere}"], [r"nowhere"]),
    (["data.seed=${oc.env:TWOVIEW_NOT_SET}"], [r"TWOVIEW_NOT_SET"]),
    # values of another kind
    (["epochs=many"], [r"epochs='many' is not a whole number"]),
    (["epochs=1.5"], [r"epochs=1\.5 is not a whole number"]),
    (["epochs=null"], [r"epochs=None is not a whole number"]),
    (["epochs=true"], [r"epochs=True is not a whole number"]),
    (["batch_size=8.0"], [r"batch_size=8\.0 is not a whole number"]),
    (["seed=zero"], [r"seed='zero' is not a whole number"]),
    (["name=3"], [r"name=3 is not text"]),
    (["channels_last=2"], [r"channels_last=2 is not true or false"]),
    (["log_every_steps=often"], [r"log_every_steps='often' is not a whole number"]),
    (["model.temperature=hot"], [r"model\.temperature='hot' is not a number"]),
    (["model.temperature=null"], [r"model\.temperature=None is not a number"]),
    (["model.projector=null"], [r"model\.projector=None"]),
    (["optimizer.lr_per_256=fast"], [r"optimizer\.lr_per_256='fast' is not a number"]),
    (["optimizer.lr_scaling=cubic"], [r"optimizer\.lr_scaling='cubic'", r"linear, sqrt, none"]),
    (["optimizer=null"], [r"optimizer"]),
    (["model=null"], [r"model"]),
    (["data=null"], [r"data"]),
    (["encoder=null"], [r"encoder"]),
    (["trainer=null"], [r"trainer"]),
    (["~augment"], [r"augment"]),
    (["loader=null"], [r"loader"]),
    (["checkpoint=null"], [r"checkpoint"]),
    (["checkpoint.every_epochs=x"], [r"checkpoint\.every_epochs='x' is not a whole number"]),
    (["augment.ops.jitter=0.5"], [r"augment\.ops\.jitter"]),
    (["augment.ops.flip.p=often"], [r"augment\.ops\.flip\.p='often' is not a number"]),
    (["augment.ops.crop.scale=0.2"], [r"augment\.ops\.crop\.scale=0\.2 is not a list"]),
    (["encoder=resnet18", "encoder.stem=cifra"], [r"encoder\.stem='cifra'", r"cifar, imagenet"]),
    # values out of range
    (["epochs=0"], [r"epochs=0", r"at least one"]),
    (["epochs=-3"], [r"epochs=-3"]),
    (["seed=-1"], [r"seed=-1", r"2\^32"]),
    (["seed=4294967296"], [r"seed=4294967296"]),
    (["batch_size=1"], [r"batch_size=1:", r"at least 2"]),
    (["batch_size=0"], [r"batch_size=0:", r"at least 2"]),
    (["batch_size=257"], [r"batch_size=257 is larger than shapes", r"256 training samples"]),
    (["log_every_steps=0"], [r"log_every_steps", r"at least 1"]),
    (["checkpoint.every_epochs=0"], [r"checkpoint\.every_epochs", r"at least 1"]),
    (["checkpoint.every_minutes=0"], [r"checkpoint\.every_minutes", r"positive"]),
    (["checkpoint.keep=0"], [r"checkpoint\.keep", r"at least 1"]),
    (["checkpoint.on_error=ignore"], [r"checkpoint\.on_error", r"stop, continue"]),
    (["resume=auto"], [r"resume=auto", r"hydra\.run\.dir="]),
    (["loader.batch_size=32"], [r"loader\.batch_size=32 is not batch_size=64: set batch_size alone"]),
    (["loader.seed=3"], [r"loader\.seed=3 is not seed=0: set seed alone"]),
    (["loader.max_batches=0"], [r"loader\.max_batches", r"at least 1"]),
    (["loader.num_workers=-1"], [r"loader\.num_workers", r"negative"]),
    (["model.temperature=0"], [r"model\.temperature must be positive"]),
    (["model.temperature=-0.1"], [r"model\.temperature must be positive"]),
    (["model.temperature=nan"], [r"model\.temperature must be positive"]),
    (["model.projector.layers=0"], [r"projector: layers", r"at least 1"]),
    (["model.projector.out_dim=0"], [r"projector.*out_dim"]),
    (["model.projector.norm=layer"], [r"model\.projector\.norm='layer'", r"none, batch, batch_all"]),
    (["optimizer.lr_per_256=0"], [r"optimizer\.lr_per_256 must be positive"]),
    (["optimizer.lr_per_256=-0.1"], [r"optimizer\.lr_per_256 must be positive"]),
    (["optimizer.lr_per_256=nan"], [r"optimizer\.lr_per_256 must be positive"]),
    (["optimizer.weight_decay=-1"], [r"optimizer\.weight_decay"]),
    (["optimizer.warmup_epochs=-1"], [r"warmup_epochs"]),
    (["optimizer.warmup_epochs=3"], [r"optimizer\.warmup_epochs=3", r"epochs=2"]),
    (["optimizer.optimizer.momentum=-1"], [r"momentum"]),
    (["optimizer=lars", "optimizer.warmup_epochs=0", "optimizer.optimizer.eta=0"], [r"LARS", r"eta"]),
    (["augment.ops.flip.p=2"], [r"HorizontalFlip", r"\[0, 1\]"]),
    (["augment.ops.gray.p=-0.1"], [r"Grayscale", r"\[0, 1\]"]),
    (["augment.ops.crop.scale=[1,0.2]"], [r"RandomResizedCrop: scale", r"smaller first"]),
    (["augment.ops.crop.scale=[0.2,2]"], [r"RandomResizedCrop: scale", r"within \[0"]),
    (["augment.ops.crop.scale=[0.2]"], [r"RandomResizedCrop: scale", r"two numbers"]),
    (["augment.ops.crop.ratio=[0,1]"], [r"RandomResizedCrop: ratio"]),
    (["augment.ops.crop.size=0"], [r"RandomResizedCrop: size", r"at least 1"]),
    (["augment.ops.crop.interpolation=nearest"], [r"interpolation", r"bilinear, bicubic"]),
    (["augment.ops.jitter.hue=0.9", "augment.strength=1"], [r"ColorJitter: hue", r"0\.5"]),
    (["augment.strength=-1"], [r"ColorJitter: strength"]),
    (["augment.ops.jitter.contrast=-1"], [r"ColorJitter: contrast"]),
    (["augment=simclr_imagenet", "augment.ops.blur.kernel_size=4"], [r"GaussianBlur: kernel_size must be odd"]),
    (["augment=simclr_imagenet", "augment.ops.blur.sigma=[2,1]"], [r"GaussianBlur: sigma", r"smaller first"]),
    (["augment.views=[{ops: {blur: null}}]"], [r"augment\.views changes blur", r"crop"]),
    (["encoder.widths=[]"], [r"widths"]),
    (["encoder.widths=[0,0,0,0]"], [r"widths"]),
    (["knn.k=0"], [r"\bk\b.*at least 1"]),
    (["knn.every_epochs=0"], [r"every_epochs.*at least 1"]),
    (["knn.temperature=0"], [r"positive temperature"]),
    (["knn.bank=0"], [r"bank.*at least 1"]),
    (["trainer.max_time=soon"], [r"trainer\.max_time=soon", r"DD:HH:MM:SS"]),
    (["trainer.max_time=00:00"], [r"trainer\.max_time=00:00", r"DD:HH:MM:SS"]),
    (["trainer.max_time=-1:00"], [r"trainer\.max_time=-1:00"]),
    (["trainer.max_time=1:2:3:4:5"], [r"trainer\.max_time"]),
    (["trainer.precision=8-bit"], [r"precision", r"8-bit"]),
    (["trainer.accelerator=abacus"], [r"trainer", r"abacus"]),
    (["trainer.devices=0"], [r"trainer", r"devices"]),
    (["trainer.strategy=prayer"], [r"trainer", r"prayer"]),
    (["data.n_train=0"], [r"n_train"]),
    (["data.n_train=1"], [r"batch_size=64 is larger than shapes|single sample"]),
    (["data.n_train=1", "batch_size=2"], [r"shapes.* single sample|batch_size=2 is larger"]),
    (["data.n_train=x"], [r"data\.n_train='x' is not a whole number"]),
    (["data.size=0"], [r"size"]),
    # data and checkpoints that there are not
    (["data=image_folder", "data.root=nowhere"], [r"there is no folder .*nowhere", r"data\.root"]),
    (["data=parquet", "data.root=nowhere"], [r"there is no folder .*nowhere", r"data\.root"]),
    (["resume=nowhere/last.ckpt"], [r"there is no checkpoint nowhere/last\.ckpt"]),
    (["resume=3"], [r"resume=3 is not text|there is no checkpoint 3"]),
]


def nothing_left(folder: Path) -> bool:
    """No run folder and no file; the folders that would hold runs may be there."""
    return not [path for path in folder.rglob("*") if path.is_file()] and not list(folder.glob("runs/*/*"))


@pytest.mark.parametrize(("words", "says"), BAD, ids=lambda case: " ".join(case)[:70])
def test_a_bad_command_line(
    tiny: list[str], tmp_path: Path, command: Callable[..., Any], words: list[str], says: list[str]
) -> None:
    chosen = {word.partition("=")[0].lstrip("~+") for word in words}
    healthy = [word for word in tiny if word.partition("=")[0].partition(".")[0] not in chosen & {"data", "encoder"}]
    started = time.monotonic()
    error = command(*healthy, *words).error
    assert time.monotonic() - started < 60
    for pattern in says:
        assert re.search(pattern, error), error
    assert len(error) < 700
    assert nothing_left(tmp_path), list(tmp_path.rglob("*"))


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_a_gpu_that_is_not_there(tiny: list[str], tmp_path: Path, command: Callable[..., Any]) -> None:
    error = command(*tiny, "trainer=gpu").error
    assert "no GPU" in error
    assert "trainer=cpu" in error
    assert nothing_left(tmp_path)


# Folders of images that cannot be trained on.


def put(path: Path, width: int = 8, height: int = 8) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (width, height), (width, height, 100)).save(path)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("empty", r"no images in .*photos.*data\.root"),
        ("mixed sizes", r"8 x 8 pixels.*9 x 7.*data\.size"),
        ("one image", r"photos has a single sample|batch_size=4 is larger than photos"),
        ("corrupt", r"2\.png cannot be (read|decoded)"),
        ("text", r"2\.png is not an image"),
        ("a file", r"no images in .*photos"),
    ],
)
@pytest.mark.parametrize("in_memory", ["auto", "false"])
def test_bad_folders(
    tiny: list[str], tmp_path: Path, command: Callable[..., Any], content: str, says: str, in_memory: str
) -> None:
    photos = tmp_path / "photos"
    if content == "a file":
        photos.write_text("")
    else:
        photos.mkdir()
        for i in range({"empty": 0, "one image": 1}.get(content, 6)):
            put(photos / f"{i}.png")
        if content == "mixed sizes":
            put(photos / "2.png", 9, 7)
        elif content == "corrupt":
            (photos / "2.png").write_bytes((photos / "1.png").read_bytes()[:45])
        elif content == "text":
            (photos / "2.png").write_text("a picture of a cat")
    general = [word for word in tiny if not word.startswith("data")]
    words = ["data=image_folder", "data.root=photos", f"data.in_memory={in_memory}", "batch_size=4", "knn=null"]
    error = command(*general, *words, "loader.num_workers=0").error
    assert re.search(says, error), error
    assert not list(tmp_path.glob("runs/*/*"))


def test_an_image_too_small_for_the_encoder(tiny: list[str], tmp_path: Path, command: Callable[..., Any]) -> None:
    error = command(*tiny, "data.size=2").error
    assert "does not fit shapes" in error or "size" in error
    assert nothing_left(tmp_path)


def test_cifar_without_data_or_network_names_the_ways_out(
    tiny: list[str], tmp_path: Path, command: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("twoview.data.image.cifar._reachable", lambda url: False)
    general = [word for word in tiny if not word.startswith("data")]
    error = command(*general, "data=cifar10", "data.root=here").error
    for way in ("here/cifar-10-batches-py", "train-*.parquet", "$TWOVIEW_DATA", "data=shapes"):
        assert way in error
    assert nothing_left(tmp_path)


def test_a_folder_of_data_that_is_set_to_nothing_is_unset(
    tiny: list[str], command: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """`TWOVIEW_DATA=` in a shell would make /letter, at the root of the disk, of $TWOVIEW_DATA/letter."""
    monkeypatch.setenv("TWOVIEW_DATA", "")
    error = command("data=letter", "encoder=mlp", "augment=table", "trainer=cpu").error
    assert "data/letter" in error


# Resumption.


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["data=cifar10"], r"'data=cifar10' cannot change it"),
        (["encoder=resnet18"], r"'encoder=resnet18' cannot change it"),
        (["experiment=demo"], r"'experiment=demo' cannot change it"),
        (["+knn.extra=1"], r"cannot change it"),
        (["~knn"], r"cannot change it"),
        (["encoder.stem=cifar"], r"stem"),
        (["epochs=0"], r"epochs=0"),
        (["epochs=many"], r"epochs='many'"),
    ],
    ids=lambda case: " ".join(case) if isinstance(case, list) else None,
)
def test_what_a_resumption_refuses(
    finished: Path, tmp_path: Path, command: Callable[..., Any], words: list[str], says: str
) -> None:
    before = {path.name: path.read_bytes() for path in finished.iterdir()}
    error = command(f"resume={finished}", *words).error
    assert re.search(says, error), error
    assert {path.name: path.read_bytes() for path in finished.iterdir()} == before
    assert nothing_left(tmp_path)


def test_debug_shows_the_traceback(tiny: list[str], command: Callable[..., Any]) -> None:
    with pytest.raises(Exception, match="temperature must be positive"):
        command(*tiny, "model.temperature=0", "debug=true")


# The real commands.


def real(*words: Any, folder: Path, **environment: str) -> tuple["subprocess.CompletedProcess[str]", float]:
    """A command in a process of its own, and the CPU seconds that it took."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    ended = subprocess.run(
        [sys.executable, *map(str, words)],
        cwd=folder,
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=120,
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return ended, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["modle=simclr"], "modle"),
        (["model=simlcr"], "Did you mean simclr?"),
        (["epochs"], "write key=value"),
        (["data=shapes", "trainer=cpu", "model.temperature=0"], "model.temperature must be positive"),
    ],
)
def test_bad_words_to_the_real_command(tmp_path: Path, words: list[str], says: str) -> None:
    ended, _ = real(ROOT / "train.py", *words, folder=tmp_path)
    assert ended.returncode == 1
    assert ended.stderr.startswith("error: ")
    assert says in ended.stderr
    assert len(ended.stderr.splitlines()) == 1
    assert "Traceback" not in ended.stdout
    assert nothing_left(tmp_path)


def test_the_help_page_is_quick_and_lists_everything(tmp_path: Path) -> None:
    ended, seconds = real(ROOT / "train.py", "--help", folder=tmp_path)
    assert ended.returncode == 0, ended.stderr
    assert seconds < 5
    assert not re.search(r"^\s*study: ", ended.stdout, re.MULTILINE), "a group of another command"
    for group in groups("train"):
        line = re.search(rf"^\s*{group}: (.*)$", ended.stdout, re.MULTILINE)
        assert line is not None
        assert line[1].split(", ") == options(group)
    assert len(re.findall(rf"^ +python {ROOT}/train\.py ", ended.stdout, re.MULTILINE)) >= 5
    assert nothing_left(tmp_path)


@pytest.mark.parametrize("script", ["linear_probe", "knn", "plot_run"])
def test_scripts_have_a_help_page_too(script: str, command: Callable[..., Any], tmp_path: Path) -> None:
    ended = command("--help", name=script)
    assert ended.code == 0
    assert f"python {ROOT}/scripts/{script}.py" in ended.out
    assert nothing_left(tmp_path)


@pytest.mark.parametrize(
    "path", ["train.py", *sorted(p.relative_to(ROOT).as_posix() for p in ROOT.glob("scripts/*.py"))]
)
def test_before_the_installation(path: str, tmp_path: Path) -> None:
    ended, _ = real("-S", "-E", ROOT / path, "--help", folder=tmp_path)  # -S: without installed packages
    assert ended.returncode == 1
    assert re.fullmatch(r"hydra is not installed\. Install twoview with:  pip install -e .*\n", ended.stderr)
    assert nothing_left(tmp_path)
