"""The battery is as large as it says, and leaves the process that runs it as it was."""

import multiprocessing.process
import multiprocessing.util
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
import torch
import yaml
from faults import battery
from faults.conftest import no_litter
from torch.utils.data import DataLoader

TESTS = Path(__file__).parent
PAGE = TESTS.parent / "docs" / "runs.md"
KINDS = yaml.safe_load((TESTS / "faults" / "kinds.yaml").read_text())


def test_the_battery_has_its_size() -> None:
    counts = battery.count()
    for name, (cases, quick) in counts.items():
        assert cases >= quick > 0, name
    every, drawn = (sum(numbers) for numbers in zip(*counts.values(), strict=True))
    assert every >= 150
    said = re.search(r"`tests/faults/` holds ([\d,]+) such cases .* runs a fixed draw of (\d+)", PAGE.read_text())
    assert said is not None
    assert [int(number.replace(",", "")) for number in said.groups()] == [every, drawn]


def test_every_kind_that_is_reported_has_tests() -> None:
    assert len({row["reported"] for row in KINDS}) == len(KINDS) == 27
    for row in KINDS:
        assert row["cases"] >= len(row["tests"]) > 0, row
        for test in row["tests"]:
            file, name = test.split("::")
            assert f"def {name}(" in (TESTS / file).read_text(), test


@pytest.mark.slow  # all of them are collected
def test_the_kinds_have_as_many_cases_as_they_say() -> None:
    named = sorted({str(TESTS / test) for row in KINDS for test in row["tests"]})
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "--collect-only", *named]
    ended = subprocess.run(command, cwd=TESTS.parent, text=True, capture_output=True)
    assert ended.returncode == 0, ended.stdout[-2000:]
    found = Counter(line.partition("[")[0].removeprefix("tests/") for line in ended.stdout.splitlines() if "::" in line)
    assert [sum(found[test] for test in row["tests"]) for row in KINDS] == [row["cases"] for row in KINDS]


def test_what_processes_share_outlives_a_case_with_loader_workers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Multiprocessing chooses its folder once, and every later loader of the process wants it."""
    chosen = multiprocessing.process.current_process()._config  # type: ignore[attr-defined]
    monkeypatch.delitem(chosen, "tempdir", raising=False)
    with no_litter(tmp_path, monkeypatch):
        loader = DataLoader(torch.arange(4), num_workers=1)  # type: ignore[arg-type]
        assert len(list(loader)) == 4
        folder = Path(multiprocessing.util.get_temp_dir())
        assert folder.is_dir()
    assert folder.is_dir()
