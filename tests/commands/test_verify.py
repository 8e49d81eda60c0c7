"""The comparison that decides whether a resumed run is the straight one, and the command around it."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from twoview.commands import verify
from twoview.run.checkpoint import read_checkpoint
from twoview.selftest import resume
from twoview.selftest.resume import differing, first_difference


def test_trees_are_compared_to_the_bit() -> None:
    tree = {"a": [torch.zeros(3), 1], "b": ("x", torch.ones(2, dtype=torch.int64))}
    same = {"a": [torch.zeros(3), 1], "b": ("x", torch.ones(2, dtype=torch.int64))}
    assert not list(differing(tree, same))
    same["a"][0][1] = 1e-45  # type: ignore[index]
    assert [line.split(" differs")[0] for line in differing(tree, same)] == [".a[0]"]
    assert list(differing({"a": torch.zeros(2)}, {"a": torch.zeros(2, dtype=torch.float64)}))
    assert list(differing({"a": torch.zeros(2)}, {"a": torch.zeros(2, 1)}))
    assert list(differing({"a": 1}, {})) == [".a is on one side only"]
    assert list(differing([1, 2], [1, 3])) == ["[1] is 3 instead of 2"]


@pytest.fixture
def copy(finished: Path, tmp_path: Path) -> Path:
    return shutil.copytree(finished, tmp_path / "copy")


def test_a_run_is_itself(finished: Path, copy: Path) -> None:
    assert first_difference(finished, copy) is None


def test_one_bit_of_one_tensor_is_found(finished: Path, copy: Path) -> None:
    for name in ("last.ckpt", "last-1.ckpt"):
        checkpoint = read_checkpoint(copy / name)
        weights = [key for key in checkpoint["state_dict"] if key.startswith("projector.")]
        checkpoint["state_dict"][weights[0]].view(torch.int32).flatten()[0] ^= 1
        torch.save(checkpoint, copy / name)
    found = first_difference(finished, copy)
    assert found is not None
    assert f"step 4: state_dict.{weights[0]} differs" in found  # the older of both checkpoints


def test_another_reading_is_found_with_its_step(finished: Path, copy: Path) -> None:
    lines = (copy / "metrics.csv").read_text().splitlines()
    column = lines[0].split(",").index("loss")
    cells = lines[2].split(",")
    cells[column] = "9.87654"
    (copy / "metrics.csv").write_text("\n".join([*lines[:2], ",".join(cells), *lines[3:]]) + "\n")
    found = first_difference(finished, copy)
    assert found is not None
    assert found.startswith(f"step {cells[0]}: loss is 9.87654 instead of")
    (copy / "metrics.csv").write_text("\n".join(lines[:-1]) + "\n")
    assert "readings instead of" in str(first_difference(finished, copy))


def test_the_command_compares_and_its_exit_code_says_the_outcome(
    finished: Path,
    tiny: list[str],
    tmp_path: Path,
    command: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Without the processes: tests/run/test_kill.py has them."""

    def put(words: list[str], folder: Path) -> float:
        assert "steps=3" not in words
        assert "epochs=2" in words
        assert any(word.startswith("loader.max_batches=") for word in words)
        shutil.copytree(finished, folder, dirs_exist_ok=True)
        return 1.0

    for module in (verify, resume):
        monkeypatch.setattr(module, "run_through", put)
    monkeypatch.setattr(resume, "killed", lambda *arguments: 5)
    ended = command(*tiny, "steps=3", "out=found.json", name="verify_resume")
    assert ended.code == 0, ended.err
    assert ended.out.count("the same to the bit") == 3
    assert [f["kill"] for f in json.loads((tmp_path / "found.json").read_text())] == ["random", "write", "knn"]
    monkeypatch.setattr(verify, "first_difference", lambda *folders: "step 3: loss is 1 instead of 2")
    ended = command(*tiny, "knn=null", name="verify_resume")
    assert ended.code == 1
    assert ended.out.count("step 3: loss is 1 instead of 2") == 2  # no kill during kNN


@pytest.mark.parametrize("word", ["steps=1", "steps=many", "kills=[]", "kills=[now]", "resume=auto"])
def test_bad_words(tiny: list[str], command: Callable[..., Any], word: str) -> None:
    assert word.partition("=")[0] in command(*tiny, word, name="verify_resume").error
