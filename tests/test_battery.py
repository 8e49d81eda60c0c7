"""The battery is as large as it says, and leaves the process that runs it as it was."""

import multiprocessing.process
import multiprocessing.util
import re
from pathlib import Path

import pytest
import torch
from faults import battery
from faults.conftest import no_litter
from torch.utils.data import DataLoader

PAGE = Path(__file__).parents[1] / "docs" / "runs.md"


def test_the_battery_has_its_size() -> None:
    counts = battery.count()
    for name, (cases, quick) in counts.items():
        assert cases >= quick > 0, name
    every, drawn = (sum(numbers) for numbers in zip(*counts.values(), strict=True))
    assert every >= 150
    said = re.search(r"`tests/faults/` holds ([\d,]+) such cases .* runs a fixed draw of (\d+)", PAGE.read_text())
    assert said is not None
    assert [int(number.replace(",", "")) for number in said.groups()] == [every, drawn]


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
