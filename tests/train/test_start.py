"""`twoview.train(...)`: the command line's composition, checks and messages, from Python."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import hydra
import pytest
import torch
import yaml
from conftest import TINY
from hydra.core.global_hydra import GlobalHydra
from omegaconf import OmegaConf

import twoview
from twoview.cli.configs import CONFIGS
from twoview.data.image.shapes import shapes
from twoview.errors import UserError
from twoview.train import start

QUICK: dict[str, Any] = {
    "data": "shapes", "encoder": "small", "batch_size": 8, "epochs": 1, "knn": None, "quality": None, "trainer": "cpu",
    "encoder.widths": [4, 4, 8, 8], "data.n_train": 32, "data.n_test": 8, "data.size": 16, "log_every_steps": 1,
}  # fmt: skip


def test_a_run_comes_back_with_its_encoder_and_goes_on(tmp_path: Path) -> None:
    head = {"projector": {"hidden_dim": 16}}
    run = twoview.train("simclr", folder=tmp_path / "run", **QUICK, model=head, augment={"strength": 1.0})
    assert (run.folder, run.status, run.summary["steps"]) == (tmp_path / "run", "finished", 4)
    assert run.config["augment"]["ops"]["jitter"]["strength"] == 1.0
    assert run.config["model"]["projector"]["hidden_dim"] == 16
    h = twoview.extract(run.encoder(), shapes("test", n_test=8, size=16))
    assert h.shape == (8, run.encoder().dim)
    again = twoview.train(resume=run.folder, epochs=2, allow_changes=True)
    assert (again.folder, again.summary["steps"]) == (run.folder, 8)


def test_it_trains_as_the_command_line_does(command: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert command(*TINY, "epochs=1", "knn=null", "hydra.run.dir=one").code == 0
    words: dict[str, Any] = {key: yaml.safe_load(value) for key, value in (word.split("=", 1) for word in TINY)}
    del words["knn.every_epochs"]
    run = twoview.train(folder=tmp_path / "two", **words | {"epochs": 1, "knn": None})
    states = [torch.load(tmp_path / name / "last.ckpt", weights_only=True)["state_dict"] for name in ("one", "two")]
    assert states[0].keys() == states[1].keys()
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    assert run.identity["run_hash"]


def test_runs_of_one_name_have_folders_of_their_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    runs = [twoview.train(**QUICK, **{"hydra.run.dir": "runs/a", "loader.max_batches": 1}) for _ in range(2)]
    assert [run.folder for run in runs] == [Path("runs/a"), Path("runs/a_2")]


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"modle": "simclr"}, "Did you mean model?"),
        ({"model": "simCLR"}, "Did you mean simclr?"),
        ({"lr": 0.1}, "optimizer.lr_per_256=0.1"),
        ({"epochs": "many"}, "epochs='many' is not a whole number"),
        ({"augment": {"strenght": 1}}, "Did you mean strength?"),
        ({"data": "/no/such/folder"}, "there is no folder /no/such/folder"),
        ({"data": Path("/no/such/folder")}, "there is no folder /no/such/folder"),
        ({"epochs": object()}, "is not a plain value"),
        ({"resume": "auto"}, "folder='runs/mine'"),
        ({"encoder": {"_target_": "elsewhere.Net", "dim": 8}}, "trust=[elsewhere]"),
        ({"trust": ["os"]}, "trust=['os']"),
    ],
)
def test_mistakes_have_the_messages_of_the_command_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any], says: str
) -> None:
    monkeypatch.chdir(tmp_path)
    quick = {key: value for key, value in QUICK.items() if key.partition(".")[0] not in changes}
    with pytest.raises(UserError) as caught:
        twoview.train(**quick | changes)
    assert says in str(caught.value)
    assert not list(tmp_path.rglob("last.ckpt"))
    assert not list(tmp_path.glob("runs/*/*"))


def test_values_reach_the_configuration_as_they_are() -> None:
    texts = [
        "photos (1)",
        "a=b",
        "it's",
        "a\\",
        "[old] photos",
        "a,b",
        "2023",
        "true",
        "null",
        " lead",
        'say "x"',
        "ü#",
    ]
    for text in texts:
        (composed, *_), _ = start._composed(list(start._words({"data": {"root": text}})))
        assert composed.data.root == text
    values: dict[str, Any] = {"name": "x", "seed": 3, "model.temperature": 1e-3, "encoder.stem": None}
    values |= {"augment.ops.crop.scale": (0.5, 1.0), "channels_last": False}
    (composed, *_), _ = start._composed(list(start._words(values)))
    for key, value in values.items():
        found = OmegaConf.select(composed, key)
        assert found == (list(value) if isinstance(value, tuple) else value), key


def test_a_section_with_a_target_takes_the_place_of_what_is_there() -> None:
    small = {"_target_": "twoview.encoder.small.Small", "widths": [4, 4, 8, 8]}
    op = {"_target_": "twoview.augment.image.tone.Solarize", "threshold": 0.6}
    (composed, *_), _ = start._composed(list(start._words({"encoder": small, "augment": {"ops": {"solarize": op}}})))
    assert composed.encoder == small
    assert composed.augment.ops.solarize == op
    assert list(composed.augment.ops) == ["crop", "flip", "jitter", "gray", "solarize"]


def test_hydra_is_left_as_it_was() -> None:
    GlobalHydra.instance().clear()
    start._composed([])
    assert not GlobalHydra.instance().is_initialized()
    with hydra.initialize_config_dir(version_base="1.3", config_dir=str(CONFIGS)):
        start._composed([])
        assert hydra.compose("knn").k == 200


def test_import_costs_nothing_and_gives_everything() -> None:
    code = """
import sys, twoview
assert not {"torch", "hydra", "numpy"} & set(sys.modules), sorted(sys.modules)
for name in twoview.__all__:
    assert name in dir(twoview)
    getattr(twoview, name)
from twoview.augment import TwoViews
assert twoview.TwoViews is TwoViews and twoview.augment.TwoViews is TwoViews
assert callable(twoview.losses.nt_xent) and callable(twoview.train)
import twoview.train.pretrain
assert callable(twoview.train)
try:
    twoview.nothing
except AttributeError as error:
    assert "nothing" in str(error)
"""
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert ended.returncode == 0, ended.stderr
