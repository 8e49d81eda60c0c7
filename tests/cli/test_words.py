"""Command lines as people type them: what works as it is, and what is answered with the line to type."""

import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from twoview.cli.program import in_its_words, near, spelled
from twoview.cli.words import quoted, readable, split
from twoview.errors import UserError

Command = Callable[..., Any]

NAMES = [
    "photos (1)",
    "a=b",
    "two words",
    "it's",
    "a,b",
    "[old] photos",
    "{x}",
    "2023",
    "1e5",
    "true",
    "null ",
    "ünder",
]
NAMES += ["a#b", "100%", "a:b", 'say "hi"', "comma, blank", "back\\slash", "-dash", "~tilde", "end\\", "(x)", "a;b&c"]


@given(st.text(min_size=1))
def test_every_text_survives_quoting(text: str) -> None:
    try:
        read = OverridesParser.create().parse_override(f"data.root={quoted(text)}").value()
    except UnicodeEncodeError:  # surrogates are no text
        return
    assert read == text


@pytest.mark.parametrize("name", NAMES)
def test_paths_are_read_as_people_have_them(name: str) -> None:
    read = OverridesParser.create().parse_override(readable(f"data.root={name}"))
    assert read.value() == name
    again = OverridesParser.create().parse_override(readable(readable(f"data.root={name}")))
    assert again.value() == name


@pytest.mark.parametrize(
    ("word", "value"),
    [
        *[("epochs=3", 3), ("p=0.5", 0.5), ("knn=null", None), ("resume=null", None), ("a.scale=[0.2,1]", [0.2, 1])],
        *[("name=my run", "my run"), ("name=run (1)", "run (1)"), ("out='a b'", "a b"), ('out="a b"', "a b")],
        ("x={a:1}", {"a": 1}),
    ],
)
def test_other_values_keep_their_meaning(word: str, value: Any) -> None:
    assert OverridesParser.create().parse_override(readable(word)).value() == value


def test_sweeps_stay_sweeps() -> None:
    assert readable("augment.strength=0,1") == "augment.strength=0,1"
    assert readable("ckpt=a,b", several=True) == "ckpt=a,b"
    assert readable("ckpt=a,b") == "ckpt='a,b'"


@pytest.mark.parametrize("labelled", [True, False])
@pytest.mark.parametrize("name", ["photos (1)", "a=b's", "[old], new"])
def test_a_run_in_a_folder_of_any_name(
    tiny: list[str], tmp_path: Path, command: Command, monkeypatch: pytest.MonkeyPatch, name: str, labelled: bool
) -> None:
    """Trains on images in such a folder, and what is printed as `next:` is what the shell takes."""
    for i in range(8):
        path = tmp_path / name / ("train" if i < 6 else "test") / (str(i % 2) if labelled else "") / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (16, 16), (30 * i, 100, 50)).save(path)
    general = [word for word in tiny if not word.startswith(("data", "batch_size", "knn"))]
    more = ["batch_size=4", "epochs=1", "knn=null", f"hydra.run.dir=runs/{name}"]
    ended = command(*general, *more, f"data={tmp_path / name}", "data.size=16")
    assert ended.code == 0, ended.err
    line = next(line for line in ended.out.splitlines() if line.startswith("next:"))
    python, script, *words = shlex.split(line.removeprefix("next:"))
    assert (python, Path(script).name) == ("python", "linear_probe.py" if labelled else "explore.py")
    if labelled:
        words.append("strengths=[0.01]")
    assert command(*words, name="probe" if labelled else "explore").code == 0
    assert (tmp_path / "runs" / name / ("linear_probe.json" if labelled else "explore/explore.html")).is_file()


@pytest.mark.parametrize(
    ("typed", "write"),
    [
        (["--model", "simclr"], "model=simclr"),
        (["--model=simclr"], "model=simclr"),
        (["--batch-size", "64"], "batch_size=64"),
        (["--lr", "0.1"], "optimizer.lr_per_256=0.1"),
        (["lr=0.1"], "optimizer.lr_per_256=0.1"),
        (["learning_rate=0.1"], "optimizer.lr_per_256=0.1"),
        (["dataset=cifar10"], "data=cifar10"),
        (["backbone=resnet18"], "encoder=resnet18"),
        (["gpus=2"], "trainer.devices=2"),
        (["num_workers=2"], "loader.num_workers=2"),
        (["temperature=0.2"], "model.temperature=0.2"),
        (["model", "simclr"], "model=simclr"),
        (["model", "=", "simclr"], "model=simclr"),
        (["epochs"], "epochs=<value>"),
        (["simclr"], "model=simclr"),
        (["SimCLR"], "model=simclr"),
        (["runs/demo/latest/last.ckpt"], "resume=runs/demo/latest/last.ckpt"),
        (["/no/photos"], "data=/no/photos"),
        (["--debug"], "debug=true"),
    ],
    ids=" ".join,
)  # fmt: skip
def test_what_is_answered_with_the_line_to_type(command: Command, typed: list[str], write: str) -> None:
    error = command("seed=1", *typed, "name=x").error
    assert error.endswith(f"train.py seed=1 {write} name=x") or f"train.py seed=1 {write} name=x  (" in error, error


@pytest.mark.parametrize(
    ("name", "typed", "write"),
    [
        ("probe", ["--ckpt", "runs/x"], "ckpt=runs/x"),
        ("probe", ["runs/x"], "ckpt=runs/x"),
        ("knn", ["runs/x/last.ckpt"], "ckpt=runs/x/last.ckpt"),
        ("doctor", ["runs/x"], "run=runs/x"),
        ("plot", ["--run=runs/x"], "run=runs/x"),
        ("finetune", ["lr=0.1"], "lr_per_256=0.1"),
        ("embed", ["--format", "npz"], "format=npz"),
    ],
)
def test_other_commands_answer_so_too(command: Command, name: str, typed: list[str], write: str) -> None:
    assert command(*typed, name=name).error.endswith(f".py {write}")


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["model=simCLR"], "Did you mean simclr?"),
        (["model=MoCo-v3"], "Did you mean mocov3?"),
        (["encoder=ResNet18"], "Did you mean resnet18?"),
        (["hidden_dim=8"], "write model.projector.hidden_dim"),
        (["every_epochs=1"], "knn.every_epochs or quality.every_epochs"),
        (["augment.strength=0,1"], "add -m"),
        (["data=/no/such/photos"], "there is no folder /no/such/photos"),
        (["data=~/no/such/photos"], "there is no folder ~/no/such/photos"),
        (["nonsense"], "cannot read 'nonsense': write key=value"),
        (["--cfg", "jobb"], "it takes one of job, hydra, all"),
        (["--cfg"], "takes a value"),
        (["--config-dir", "/no/such/folder"], "there is no folder /no/such/folder"),
    ],
)
def test_messages(command: Command, words: list[str], says: str) -> None:
    assert says in command(*words).error


@pytest.mark.parametrize("flags", [["-m"], ["--multirun"], ["--cfg", "job"], ["--cfg=job", "--resolve"]])
def test_flags_stand_anywhere(flags: list[str]) -> None:
    words = ["model=simclr", "seed=0,1"]
    lines = [split([*words[:n], *flags, *words[n:]]) for n in range(3)]
    assert lines[0] == lines[1] == lines[2]
    assert lines[0].words == words


def test_a_configuration_of_ones_own_is_found(command: Command, tmp_path: Path) -> None:
    for folder, name in (("configs", "mine"), ("else where", "yours")):
        (tmp_path / folder / "model").mkdir(parents=True)
        (tmp_path / folder / "model" / f"{name}.yaml").write_text("# Mine.\ndefaults: [simclr]\ntemperature: 0.123\n")
    for words in (["model=mine"], ["model=yours", "--config-dir", "else where", "seed=1"]):
        ended = command(*words, "--cfg", "job")
        assert ended.code == 0, ended.err
        assert "temperature: 0.123" in ended.out
    assert "yours" not in command("model=nothing").error
    assert "mine" in command("model=nothing").error
    assert "mine" in command("--help").out
    (tmp_path / "configs" / "model" / "moco.yaml").write_text("# Another.\ndefaults: [simclr]\n")
    assert "rename" in command("model=moco").error  # not silently the other one


def test_a_command_is_spelled_as_this_one_was_started(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    root = Path(__file__).parents[2]
    monkeypatch.chdir(root)
    for typed, train, probe in [
        ("train.py", "python train.py", "python scripts/linear_probe.py"),
        ("scripts/knn.py", "python train.py", "python scripts/linear_probe.py"),
        (f"{root}/train.py", f"python {root}/train.py", f"python {root}/scripts/linear_probe.py"),
        ("/usr/bin/twoview", "twoview train", "twoview probe"),
        ("my_own_script.py", "twoview train", "twoview probe"),
        (f"{root}/ssl/twoview/__main__.py", "python -m twoview train", "python -m twoview probe"),
    ]:
        monkeypatch.setattr(sys, "argv", [typed])
        assert (spelled("train"), spelled("probe")) == (train, probe)
    monkeypatch.setattr(sys, "argv", ["twoview"])
    assert spelled("probe", "ckpt=a (1)/last.ckpt") == "twoview probe 'ckpt=a (1)/last.ckpt'"
    monkeypatch.setattr(sys, "argv", ["train.py"])
    assert in_its_words("twoview train a     first\ntwoview train abc   second") == (
        "python train.py a     first\npython train.py abc   second"
    )


def test_a_flag_without_its_value_is_said() -> None:
    with pytest.raises(UserError, match="takes a value"):
        split(["model=simclr", "--config-dir"])


def test_paths_are_told_as_they_are_typed_from_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert near(tmp_path / "runs" / "mine") == str(Path("runs", "mine"))
    assert near("runs/mine") == str(Path("runs", "mine"))
    assert near(tmp_path.parent) == str(tmp_path.parent)
