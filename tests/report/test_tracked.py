"""How far a long computation is: a line now and then where there is no terminal."""

import pytest

from twoview.report import progress


def test_progress_is_told_now_and_then_where_there_is_no_terminal(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    now = iter(range(0, 10_000, 10))
    monkeypatch.setattr(progress.time, "monotonic", lambda: float(next(now)))
    with caplog.at_level("INFO", "twoview.report.progress"):
        assert list(progress.tracked(range(9), "features")) == list(range(9))
    lines = [record.getMessage() for record in caplog.records]
    assert lines == ["features: 3 of 9, 1:20 left", "features: 7 of 9, 0:23 left"]
