"""What makes two runs the same run."""

import copy
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from twoview.data.image.folder import image_folder
from twoview.data.image.shapes import shapes
from twoview.errors import UserError
from twoview.run.checkpoint import read_checkpoint
from twoview.run.identity import LEFT_OUT, Identity, config_hash, data_digest, differences, flat, relevant
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
    assert len({identity.run_hash for identity in [base, *others]}) == 6


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
        ("data", "the training images differ"),
        ("code", "the code of twoview differs"),
        ("precision", "precision .* instead of 8-bit"),
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


def test_a_checkpoint_from_before_identities_is_taken_with_a_word(
    finished: Path, compose: Compose, tiny: list[str], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    checkpoint = read_checkpoint(finished)
    del checkpoint["twoview"]["identity"]
    torch.save(checkpoint, tmp_path / "last.ckpt")
    caplog.set_level("INFO")
    assert pretrain.run(compose(*tiny) | {"resume": str(tmp_path)}, tmp_path)["status"] == "finished"
    assert "does not say with which data and code" in caplog.text
    with pytest.raises(UserError, match="epochs=3 instead of 2"):
        pretrain.run(compose(*tiny, "epochs=3") | {"resume": str(tmp_path)}, tmp_path)
