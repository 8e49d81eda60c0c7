"""The real configurations: each composes, each key reaches a constructor, each experiment trains, resumes and is
probed.
"""

import copy
import inspect
import json
import re
import shlex
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import hydra
import pytest
import torch
import yaml
from conftest import ROWS, SOUNDS, TEXTS

from twoview.cli import schema
from twoview.cli.configs import CONFIGS, groups, options
from twoview.commands import COMMANDS
from twoview.errors import UserError
from twoview.train import pretrain
from twoview.train.config import check

EXPERIMENTS = options("experiment")
READ_ABOUT = ("demo", "cifar10_cpu", "moco_cifar10_cpu", "fsdd", "letter")  # of the front page, and a kind of data each
CHOICES = [(group, option) for group in groups() for option in options(group)]
COMMAND = {"study": "ablate"}  # of groups that are not of train.py
SCRIPTS = sorted(set(COMMANDS) - {"train", "runs"})

Compose = Callable[..., dict[str, Any]]


def sections(node: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], dict[str, Any]]]:
    """Every part of a configuration that names a constructor."""
    if isinstance(node, dict):
        if "_target_" in node:
            yield path, node
        for key, value in node.items():
            yield from sections(value, (*path, key))


def test_every_file_is_found() -> None:
    """Nothing lies in `configs/` that the other tests here would miss."""
    files = {path.relative_to(CONFIGS).with_suffix("").as_posix() for path in CONFIGS.rglob("*.yaml")}
    assert files == {f"{group}/{option}" for group, option in CHOICES} | {"train", *SCRIPTS}


@pytest.mark.parametrize(("group", "option"), CHOICES)
def test_every_option_composes_and_every_key_reaches_its_constructor(compose: Compose, group: str, option: str) -> None:
    config = compose(f"{group}={option}", name=COMMAND.get(group, "train"))
    schema.check(config)
    for path, node in sections(config):
        target = hydra.utils.get_object(node["_target_"])
        keys = {key: value for key, value in node.items() if not key.startswith("_")}
        inspect.signature(target).bind_partial(**keys)  # TypeError for a key that it lacks
        assert path


@pytest.mark.parametrize(("group", "option"), CHOICES)
def test_an_invented_key_is_refused_wherever_it_stands(compose: Compose, group: str, option: str) -> None:
    config = compose(f"{group}={option}", name=COMMAND.get(group, "train"))
    for path, _ in list(sections(config)):
        wrong = copy.deepcopy(config)
        node = wrong
        for key in path:
            node = node[key]
        node["invented"] = 1
        with pytest.raises(UserError, match=rf"{re.escape('.'.join(path))} has no key 'invented'"):
            schema.check(wrong)


@pytest.mark.parametrize("place", ["", "checkpoint"])
def test_an_invented_key_outside_of_constructors_is_refused(compose: Compose, place: str) -> None:
    config = compose("data=shapes")
    (config[place] if place else config)["invented"] = 1
    with pytest.raises(UserError, match="has no key 'invented'"):
        check(config)


@pytest.mark.parametrize("name", SCRIPTS)
def test_scripts_have_configurations(compose: Compose, name: str) -> None:
    config = compose(name=name)
    assert config["debug"] is False
    assert {"out", "folder", "port"} & set(config)  # where the result goes


@pytest.mark.parametrize("path", sorted(CONFIGS.rglob("*.yaml")), ids=lambda path: path.stem)
def test_every_file_opens_with_what_it_is_and_fits_a_screen(path: Path) -> None:
    text = path.read_text()
    assert re.match(r"(# @package _global_\n)?# \S", text)
    assert yaml.safe_load(text)
    assert max(map(len, text.splitlines())) <= 160


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_experiments_open_with_command_time_accuracy_and_source(name: str) -> None:
    lines = (CONFIGS / "experiment" / f"{name}.yaml").read_text().splitlines()
    header = []
    for line in lines:
        if not line.startswith("#"):
            break
        header.append(line.removeprefix("#").strip())
    assert header[0] == "@package _global_"
    assert header[1] == f"python train.py experiment={name}"
    text = " ".join(header[2:])
    assert re.search(r"\btime\b|\d (second|minute|hour)s?\b", text, re.IGNORECASE), "no expected time"
    assert re.search(r"\b(cores?|CPU|GPU|A100|H100|H200)\b|not measured", text), "no hardware for the time"
    assert re.search(r"\d ?%", text), "no expected accuracy"
    assert re.search(r"source|arXiv|paper|search|tried", text, re.IGNORECASE), "no source"


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_an_experiment_calls_its_runs_by_its_own_name(compose: Compose, name: str) -> None:
    assert compose(f"experiment={name}")["name"] == name


def test_every_command_of_the_help_page_composes(compose: Compose) -> None:
    page = yaml.safe_load((CONFIGS / "train.yaml").read_text())["hydra"]["help"]["template"]
    commands = re.findall(r"^ +twoview train (.+?)(?:   .*)?$", page, re.MULTILINE)
    assert len(commands) >= 5
    for line in commands:
        words = [word for word in shlex.split(re.sub("[<>]", "", line)) if "=" in word]  # no --cfg job
        compose(*(re.sub(r"=([^\[,]+),.*", r"=\1", word) for word in words))


def data_for(augment: dict[str, Any], request: pytest.FixtureRequest) -> list[str]:
    """Overrides for small data, and an encoder, of the kind that a policy is for; none for images."""
    kinds = {op["_target_"].split(".")[2] for op in augment["ops"].values()}
    if "audio" in kinds:
        return [*SOUNDS, f"data.root={request.getfixturevalue('spoken')}"]
    if "text" in kinds:
        return [*TEXTS, f"data.root={request.getfixturevalue('sentences')}"]
    if "table" in kinds:
        return [*ROWS, f"data.root={request.getfixturevalue('rows')}"]
    return []


def shrunk(name: str, compose: Compose, request: pytest.FixtureRequest) -> list[str]:
    """Overrides under which an experiment is a matter of a second, its encoder, policy and optimizer as they are."""
    config = compose(f"experiment={name}")
    other = data_for(config["augment"], request)
    words = [f"experiment={name}", *(other or ["data=shapes", "data.n_train=24", "data.n_test=10", "data.size=8"])]
    words += ["batch_size=16", "epochs=1", "loader.max_batches=1", "trainer=cpu", "log_every_steps=1"]
    if config["encoder"]["_target_"].endswith("resnet50"):  # a smaller one that takes the same keys
        words += ["encoder=resnet18", "model.projector.hidden_dim=64"]
    if config["knn"] is not None:
        words += ["knn.every_epochs=1", "knn.k=5"]
    if config["optimizer"]["warmup_epochs"] > 1:
        words.append("optimizer.warmup_epochs=1")
    if config["augment"]["ops"].get("crop", {}).get("size"):
        words.append("augment.ops.crop.size=8")
    if "prototypes" in config["model"]:  # no more than the batch can fill
        words.append("model.prototypes=8")
    if "group" in config["model"]:
        words += ["model.group=16", "model.projector.out_dim=8"]
    return words


@pytest.mark.parametrize("name", [name for name in EXPERIMENTS if name not in READ_ABOUT])
def test_every_experiment_trains(name: str, compose: Compose, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    summary = pretrain.run(compose(*shrunk(name, compose, request)), tmp_path / "run")
    assert (summary["status"], summary["steps"]) == ("finished", 1)


@pytest.mark.parametrize(
    "name", [name if name in READ_ABOUT else pytest.param(name, marks=pytest.mark.slow) for name in EXPERIMENTS]
)
def test_every_experiment_resumes_and_is_probed(
    name: str, compose: Compose, tmp_path: Path, command: Callable[..., Any], request: pytest.FixtureRequest
) -> None:
    folder = tmp_path / "run"
    config = compose(*shrunk(name, compose, request))
    assert pretrain.run(config, folder)["steps"] == 1
    before = torch.load(folder / "last.ckpt", weights_only=True)["state_dict"]
    summary = pretrain.run(config | {"epochs": 2, "resume": str(folder), "allow_changes": True}, folder)
    assert (summary["status"], summary["steps"]) == ("finished", 2)
    after = torch.load(folder / "last.ckpt", weights_only=True)["state_dict"]
    assert before.keys() == after.keys()
    assert any(not torch.equal(before[key], after[key]) for key in before)
    ended = command(f"ckpt={folder}", "strengths=[0.01]", name="linear_probe")
    assert ended.code == 0, ended.err
    assert 0 <= json.loads((folder / "linear_probe.json").read_text())["top1"] <= 1


@pytest.mark.parametrize("option", options("encoder"))
def test_every_encoder_gives_what_its_dim_says(compose: Compose, option: str, request: pytest.FixtureRequest) -> None:
    section = compose(f"encoder={option}")["encoder"]
    if option == "hf":
        section["model"] = str(request.getfixturevalue("bert"))
    if "timm" in section["_target_"]:
        pytest.importorskip("timm", reason="the extra `timm` is not installed")
    encoder = schema.build(section).eval()
    side = section.get("size", 16)
    shape = (encoder.inputs,) if option == "mlp" else (3, 16) if hasattr(encoder, "words") else (3, side, side)
    with torch.no_grad():
        assert encoder(torch.rand(2, *shape)).shape == (2, encoder.dim)


@pytest.mark.parametrize("option", options("optimizer"))
@pytest.mark.parametrize("augment", options("augment"))
def test_every_optimizer_and_policy_make_a_step(
    compose: Compose, tiny: list[str], tmp_path: Path, option: str, augment: str, request: pytest.FixtureRequest
) -> None:
    if other := data_for(compose(f"augment={augment}")["augment"], request):
        own = "encoder=mlp" in other or "encoder=bag" in other
        kept = ("data", "encoder.widths") if own else ("data",)
        tiny = [*(word for word in tiny if not word.startswith(kept)), *other]
    words = [*tiny, f"optimizer={option}", f"augment={augment}", "optimizer.warmup_epochs=0", "loader.max_batches=1"]
    if augment == "simclr_imagenet":
        words.append("augment.ops.crop.size=20")
    summary = pretrain.run(compose(*words, "knn=null", "epochs=1", "batch_size=16"), tmp_path)
    assert summary["steps"] == 1
    assert 0 < summary["loss"] < 20


@pytest.mark.parametrize("option", options("trainer"))
def test_every_trainer_option_composes_and_those_for_any_machine_run(
    compose: Compose, tiny: list[str], tmp_path: Path, option: str
) -> None:
    words = [*tiny, f"trainer={option}", "knn=null", "loader.max_batches=2", "epochs=1"]
    config = compose(*words)
    check(config)
    if option in ("auto", "cpu", "smoke"):
        assert pretrain.run(config, tmp_path)["steps"] == 2
