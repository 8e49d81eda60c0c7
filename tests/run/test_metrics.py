"""The curves in a run's folder, after a power cut in the middle of a write."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from twoview.errors import UserError
from twoview.run.folder import read_rows, write_rows
from twoview.train import pretrain

HEADER = "step,epoch,loss\n"
GOOD = HEADER + "1,1,0.5\n2,1,\n3,2,nan\n"
TORN = {
    "nothing": "",
    "half a number": "4,2,0.",
    "half a line": "4,2",
    "no line break": "4,2,0.125",
    "a line too short": "4,2\n",
    "zeros": "\0" * 100,
    "zeros in a line": "4,2,\0\0\0\n",
    "zeros and half a line": "\0" * 64 + "\n4,2\n\0\0",
    "an empty line": "\n",
    "bytes": "4,\udcff\udcfe",
}


@pytest.mark.parametrize("torn", TORN.values(), ids=list(TORN))
def test_whole_rows_are_read_before_a_torn_tail(tmp_path: Path, torn: str) -> None:
    path = tmp_path / "metrics.csv"
    path.write_bytes((GOOD + torn).encode(errors="surrogateescape"))
    rows = read_rows(path)
    assert rows[:3] == read_rows(write(tmp_path / "good.csv", GOOD))
    assert len(rows) == 3
    write_rows(path, list(rows[0]), rows)
    assert path.read_text() == GOOD


def write(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


@given(st.integers(0, len(GOOD)), st.integers(0, 9))
@settings(max_examples=60, deadline=None)
def test_a_file_cut_anywhere_has_the_rows_before_the_cut(
    tmp_path_factory: pytest.TempPathFactory, at: int, zeros: int
) -> None:
    path = write(tmp_path_factory.mktemp("cut") / "metrics.csv", GOOD[:at] + "\0" * zeros)
    assert len(read_rows(path)) == max(0, GOOD[:at].count("\n") - 1)


@pytest.mark.parametrize(
    ("text", "line"),
    [(HEADER + "1,1,x\n2,1,0.5\n", 2), (HEADER + "1,1,0.5\n\0\0\0\n3,1,0.5\n", 3), ("some words\n1,2\n", 1)],
)
def test_damage_before_the_end_is_named(tmp_path: Path, text: str, line: int) -> None:
    with pytest.raises(UserError, match=rf"metrics\.csv is damaged in line {line}"):
        read_rows(write(tmp_path / "metrics.csv", text))


@pytest.mark.parametrize("torn", ["5,2,0.1", "9,3,", "\0" * 300, "7\n"], ids=["cells", "half", "zeros", "short"])
def test_a_run_with_a_torn_tail_is_read_and_gone_on_with(
    finished: Path, compose: Callable[..., Any], tiny: list[str], tmp_path: Path, command: Callable[..., Any], torn: str
) -> None:
    run = shutil.copytree(finished, tmp_path / "run")
    whole = (run / "metrics.csv").read_text()
    with (run / "metrics.csv").open("a") as file:
        file.write(torn)
    assert command("run=run", name="doctor").code in (0, 2, 3)
    assert command("run=run", name="plot").code == 0
    config = compose(*tiny, "epochs=3") | {"allow_changes": True, "resume": "auto"}
    assert pretrain.run(config, run)["steps"] == 12
    text = (run / "metrics.csv").read_text()
    assert text.startswith(whole)
    assert "\0" not in text
    assert [row["step"] for row in read_rows(run / "metrics.csv") if row["knn"]] == ["4", "8", "12"]


def test_the_file_is_whole_at_every_moment_of_a_resumption(
    finished: Path, compose: Callable[..., Any], tiny: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is renamed has been brought to the disk, and nothing opens the file itself to write it anew."""
    run = shutil.copytree(finished, tmp_path / "run")
    before = (run / "metrics.csv").read_text()
    seen: list[str] = []
    original = os.replace

    def replace(part: Any, path: Any) -> None:
        if Path(path).name == "metrics.csv":
            seen.append(Path(path).read_text())
            assert Path(part).read_text().startswith(before.splitlines()[0])
        original(part, path)

    monkeypatch.setattr(os, "replace", replace)
    pretrain.run(compose(*tiny, "epochs=3") | {"resume": "auto", "allow_changes": True}, run)
    assert seen == [before]
    assert (run / "metrics.csv").read_text().startswith(before)
