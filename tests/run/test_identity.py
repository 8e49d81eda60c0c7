"""What makes two runs the same run."""

import copy
import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from twoview.data.image.folder import image_folder
from twoview.data.image.shapes import shapes
from twoview.errors import UserError
from twoview.run import identity
from twoview.run.checkpoint import read_checkpoint
from twoview.run.identity import (
    LEFT_OUT,
    Identity,
    config_hash,
    data_digest,
    differences,
    flat,
    relevant,
    statistics_of,
)
from twoview.train import pretrain

Compose = Callable[..., dict[str, Any]]


def place(config: dict[str, Any], key: str, value: Any) -> dict[str, Any]:
    changed = copy.deepcopy(config)
    node = changed
    *path, last = key.split(".")
    for part in path:
        node = node[part]
    node[last] = value
    return changed


def other(value: Any) -> Any:
    if isinstance(value, bool) or value is None:
        return not value
    if isinstance(value, int | float):
        return value + 1
    return [*value, 1] if isinstance(value, list) else f"{value}x"


def test_every_field_counts_unless_it_is_left_out(compose: Compose) -> None:
    config = compose("model=moco", "data=image_folder")
    whole = config_hash(config)
    assert len(whole) == 12
    for key, value in flat(config).items():
        out = key in LEFT_OUT or key.partition(".")[0] in LEFT_OUT
        assert (config_hash(place(config, key, other(value))) == whole) == out, key
    keys = {part for key in flat(config) for part in (key, key.partition(".")[0])}
    assert keys >= LEFT_OUT - {"trainer.benchmark", "data.unverified"}, "LEFT_OUT names keys that there are not"


def test_what_is_written_differently_is_the_same(compose: Compose) -> None:
    config = compose("data=shapes", "optimizer.lr_per_256=1")
    assert config_hash(config) == config_hash(place(config, "optimizer.lr_per_256", 1.0))
    assert config_hash(config) == config_hash(dict(reversed(config.items())))
    assert config_hash(config) == config_hash(json.loads(json.dumps(config)))


def test_the_order_of_operations_counts(compose: Compose) -> None:
    config = compose("data=shapes")
    ops = config["augment"]["ops"]
    turned = place(config, "augment.ops", dict(reversed(ops.items())))
    assert config_hash(turned) != config_hash(config)
    assert differences(config, turned)[0].startswith("augment.ops=")


def test_differences_name_keys_and_values(compose: Compose) -> None:
    config = compose("data=shapes")
    assert differences(config, config) == []
    assert differences(config, config | {"epochs": 7, "name": "x"}) == ["epochs=7 instead of 100"]
    assert differences(config, config | {"knn": None})[0].startswith("knn=null instead of nothing")
    assert "trainer.devices" not in relevant(config)


@pytest.mark.parametrize("augment", ["none", "byol_cifar"])
def test_any_policy_has_a_hash(compose: Compose, augment: str) -> None:
    assert config_hash(compose(f"augment={augment}")) != config_hash(compose())


def test_data_are_their_pixels_and_labels() -> None:
    images = shapes("train", n_train=50, size=8)
    assert images is not None
    assert data_digest(images) == data_digest(shapes("train", n_train=50, size=8))  # type: ignore[arg-type]
    assert data_digest(images) != data_digest(shapes("train", n_train=50, size=8, seed=1))  # type: ignore[arg-type]
    before = data_digest(images)
    assert isinstance(images.samples, torch.Tensor)
    images.samples[7, 0, 0, 0] ^= 1
    assert data_digest(images) != before
    images.samples[7, 0, 0, 0] ^= 1
    assert images.labels is not None
    images.labels[3] = (images.labels[3] + 1) % 10
    assert data_digest(images) != before


@pytest.mark.parametrize("in_memory", [True, False])
def test_data_are_the_same_wherever_they_lie(tmp_path: Path, in_memory: bool) -> None:
    for name in ("a", "b"):
        for i in range(4):
            path = tmp_path / "photos" / name / f"{i}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (8, 8), (60 * i, 10, 20)).save(path)

    def digest(root: Path) -> str:
        images = image_folder(root, "train", in_memory=in_memory)
        assert images is not None
        return data_digest(images)

    moved = shutil.copytree(tmp_path / "photos", tmp_path / "elsewhere" / "deeper")
    before = digest(tmp_path / "photos")
    assert digest(moved) == before
    Image.new("RGB", (8, 8), (1, 200, 3)).resize((8, 8)).save(moved / "a" / "4.png")
    assert digest(moved) != before


def test_every_part_of_an_identity_counts() -> None:
    base = Identity("c", "d", "e", "32-true")
    others = [
        Identity("x", "d", "e", "32-true"),
        Identity("c", "x", "e", "32-true"),
        Identity("c", "d", "x", "32-true"),
    ]
    others += [Identity("c", "d", "e", "bf16-mixed"), Identity("c", "d", "e", "32-true", "f@3")]
    others += [replace(base, test="x"), replace(base, statistics="each of 2 devices")]
    assert len({who.run_hash for who in [base, *others]}) == 8


# Of real runs.


def test_a_run_says_who_it_is(finished: Path) -> None:
    about = read_checkpoint(finished)["twoview"]
    summary = json.loads((finished / "summary.json").read_text())
    alone = json.loads((finished / "identity.json").read_text())
    assert about["identity"] == summary["identity"] == {k: v for k, v in alone.items() if k != "began"}
    assert about["identity"]["config"] == config_hash(about["config"])


@pytest.mark.parametrize(
    ("part", "says"),
    [
        ("data", "the training samples differ"),
        ("test", "the test samples differ"),
        ("code", "the code differs"),
        ("precision", "precision .* instead of 8-bit"),
        ("statistics", "batch statistics of global batch instead of 8-bit"),
    ],
)
def test_a_run_on_other_data_or_code_is_not_gone_on_with(
    finished: Path, compose: Compose, tiny: list[str], tmp_path: Path, part: str, says: str
) -> None:
    checkpoint = read_checkpoint(finished)
    checkpoint["twoview"]["identity"][part] = "8-bit"
    torch.save(checkpoint, tmp_path / "last.ckpt")
    config = compose(*tiny, "epochs=3") | {"resume": str(tmp_path)}
    with pytest.raises(UserError, match=rf"epochs=3 instead of 2; {says}.*allow_changes=true"):
        pretrain.run(config, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["last.ckpt"]
    summary = pretrain.run(config | {"allow_changes": True}, tmp_path)
    assert summary["identity"]["after"] == f"{checkpoint['twoview']['identity']['run_hash']}@8"
    assert pretrain.run(config, tmp_path)["identity"] == summary["identity"]


def test_a_checkpoint_without_identity_is_damaged(
    finished: Path, compose: Compose, tiny: list[str], tmp_path: Path
) -> None:
    for part, says in (("identity", "does not say with which data"), ("random", "generators of random numbers")):
        checkpoint = read_checkpoint(finished)
        (checkpoint if part in checkpoint else checkpoint["twoview"]).pop(part)
        torch.save(checkpoint, tmp_path / "last.ckpt")
        with pytest.raises(UserError, match=f"damaged: .*{says}"):
            pretrain.run(compose(*tiny) | {"resume": str(tmp_path)}, tmp_path)


# Batch statistics.


@pytest.mark.parametrize(
    ("sync", "devices", "expected"),
    [
        (True, 1, "global batch"),
        (True, 4, "global batch"),
        (False, 1, "global batch"),
        (False, 2, "each of 2 devices"),
        (False, 4, "each of 4 devices"),
    ],
)
def test_batch_statistics_count_by_what_they_are_taken_over(
    compose: Compose, sync: bool, devices: int, expected: str
) -> None:
    config = compose(f"trainer.sync_batchnorm={str(sync).lower()}", "data=shapes")
    assert config_hash(config) == config_hash(compose("data=shapes"))
    assert statistics_of(sync, devices) == expected
    base = Identity("c", "d", "e", "32-true")
    same = replace(base, statistics=statistics_of(sync, devices)).run_hash == base.run_hash
    assert same == (sync or devices == 1)


def test_the_switch_alone_refuses_no_resumption_on_one_device(
    finished: Path, compose: Compose, tiny: list[str], tmp_path: Path
) -> None:
    shutil.copytree(finished, tmp_path / "run")
    config = compose(*tiny, "trainer.sync_batchnorm=false") | {"resume": "auto"}
    summary = pretrain.run(config, tmp_path / "run")
    assert summary["identity"]["run_hash"] == read_checkpoint(finished)["twoview"]["identity"]["run_hash"]


# The test split.


def test_the_samples_that_a_run_is_scored_on_count(compose: Compose, tiny: list[str], tmp_path: Path) -> None:
    """Of one training split: the scores of the monitor are results."""
    words = [*tiny, "epochs=1", "loader.max_batches=1", "quality=null"]
    first = pretrain.run(compose(*words), tmp_path / "a")["identity"]
    same = pretrain.run(compose(*words, "data.n_test=65"), tmp_path / "b")["identity"]
    assert first["data"] == same["data"]
    assert first["test"] != same["test"]
    assert pretrain.run(compose(*words, "knn=null"), tmp_path / "c")["identity"]["test"] == ""


# Code.


@pytest.mark.parametrize(
    ("file", "decides"),
    [
        *((name, True) for name in ("rng.py", "augment/views.py", "losses/contrastive.py", "parallel/norm.py")),
        *((name, True) for name in ("encoder/small.py", "model/simclr.py", "optim/muon.py", "data/batches.py")),
        *((name, True) for name in ("train/assemble.py", "train/trainer.py", "augment/new/op.py", "model/mine.py")),
        *((name, False) for name in ("report/page.py", "card/page.py", "ablate/page.py", "commands/probe.py")),
        *((name, False) for name in ("cli/entry.py", "watch/doctor.py", "train/command.py", "stats/intervals.py")),
        *((name, False) for name in ("run/registry.py", "evaluate/classify/linear.py", "selftest/one.py")),
    ],
)
def test_the_code_that_decides_weights_counts_and_no_other(tmp_path: Path, file: str, decides: bool) -> None:
    package = tmp_path / "twoview"
    ignore = shutil.ignore_patterns("__pycache__")
    shutil.copytree(identity.PACKAGE, package, ignore=ignore)
    before = identity._digests.__wrapped__(package)
    assert before == (identity.code_digest(), identity.surroundings()["rest of twoview"])
    path = package / file
    path.parent.mkdir(exist_ok=True)
    with path.open("a") as lines:
        lines.write("# another remark\n")
    after = identity._digests.__wrapped__(package)
    assert (after[0] != before[0], after[1] != before[1]) == (decides, not decides)


def test_every_room_is_on_one_side() -> None:
    names = {path.name for path in identity.PACKAGE.iterdir() if path.name != "__pycache__"}
    assert set(identity.DECIDES) <= names
    assert all((identity.PACKAGE / name).is_file() for name in identity.SPEAKS)


def test_other_software_is_told_and_refuses_nothing(
    finished: Path, compose: Compose, tiny: list[str], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    checkpoint = read_checkpoint(finished)
    checkpoint["twoview"]["identity"]["surroundings"] |= {"torch": "1.0", "rest of twoview": "other"}
    torch.save(checkpoint, tmp_path / "last.ckpt")
    caplog.set_level("INFO")
    config = compose(*tiny) | {"resume": str(tmp_path)}
    assert pretrain.run(config, tmp_path)["identity"]["after"] == ""
    assert f"torch {torch.__version__} instead of 1.0" in caplog.text
    assert "rest of twoview" in caplog.text
