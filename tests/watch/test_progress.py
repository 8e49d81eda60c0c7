"""The time left that a run shows is the mean time of its steps since the warm ones, times the steps to come; it is
said soon after the first step.
"""

import io
import re
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console

from twoview.watch import bar as progress
from twoview.watch.meter import Meter


@pytest.fixture
def now(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """`now(seconds)` lets so much time pass, on the clock and on the timers that it is due for."""
    time, timers = [0.0], list[tuple[float, Callable[[], None]]]()

    def timer(seconds: float, function: Callable[..., None], args: tuple[Any, ...]) -> Any:
        due = time[0] + seconds
        return SimpleNamespace(start=lambda: timers.append((due, lambda: function(*args))), cancel=timers.clear)

    def passes(seconds: float) -> None:
        time[0] += seconds
        for due, function in [one for one in timers if one[0] < time[0]]:
            timers.remove((due, function))
            function()

    monkeypatch.setattr(progress.time, "monotonic", lambda: time[0])
    monkeypatch.setattr(progress.threading, "Timer", timer)
    return passes


def trainer(steps: int) -> Any:
    return SimpleNamespace(
        global_step=0, estimated_stepping_batches=steps, is_global_zero=True, current_epoch=0, max_epochs=1
    )


def run(
    bar: progress.ProgressBar, state: Any, module: Any, now: Callable[[float], None], steps: int, each: float
) -> None:
    for _ in range(steps):
        now(each)
        state.global_step += 1
        bar.on_train_batch_end(state, module)


@pytest.mark.parametrize("steps", [20, 27, 90])
def test_time_left_leaves_the_warm_steps_out(steps: int, now: Callable[[float], None]) -> None:
    bar, state, module = (
        progress.ProgressBar(Meter()),
        trainer(100),
        SimpleNamespace(device=SimpleNamespace(type="cpu")),
    )
    bar.on_train_start(state, module)
    assert bar.seconds_left(state) == float("inf")
    run(bar, state, module, now, progress.WARM_STEPS, each=50.0)
    run(bar, state, module, now, steps - progress.WARM_STEPS, each=2.0)
    assert bar.seconds_left(state) == pytest.approx(2.0 * (100 - steps))


def messages(caplog: pytest.LogCaptureFixture, what: str) -> list[str]:
    return [record.getMessage() for record in caplog.records if what in record.getMessage()]


@pytest.mark.parametrize(("device", "each", "said"), [("cpu", 60.0, 1), ("cpu", 1.0, 0), ("cuda", 60.0, 0)])
def test_a_long_run_on_a_cpu_says_so_once_and_names_what_fits(
    device: str, each: float, said: int, now: Callable[[float], None], caplog: pytest.LogCaptureFixture
) -> None:
    bar, state, module = (
        progress.ProgressBar(Meter()),
        trainer(1000),
        SimpleNamespace(device=SimpleNamespace(type=device)),
    )
    bar.on_train_start(state, module)
    with caplog.at_level("INFO"):
        run(bar, state, module, now, 100, each)
    assert len(messages(caplog, "experiment=cifar10_cpu")) == len(messages(caplog, "budget=60")) == said
    assert len(messages(caplog, "the run will take about")) == 1


@pytest.mark.parametrize(
    ("first", "each", "steps"),
    [
        (30.0, 8.0, 2),  # ResNet-18 on a CPU: there is time for one more
        (60.0, 0.05, 181),
        (5.0, 0.4, 23),
        (40.0, 40.0, 1),  # the first one alone has to do
    ],
)
def test_the_time_of_a_run_is_said_within_ten_seconds_of_its_first_step(
    first: float, each: float, steps: int, now: Callable[[float], None], caplog: pytest.LogCaptureFixture
) -> None:
    bar, state, module = (
        progress.ProgressBar(Meter()),
        trainer(10_000),
        SimpleNamespace(device=SimpleNamespace(type="cuda")),
    )
    bar.on_train_start(state, module)
    with caplog.at_level("INFO"):
        run(bar, state, module, now, 1, first)
        run(bar, state, module, now, steps - 1, each)
        assert not messages(caplog, "the run")
        now(10 - (steps - 1) * each)  # in the middle of the next step
        left = progress.clock((10_000 - steps) * each)
        assert messages(caplog, "the run") == [f"the run will take about {left}, and its evaluations"]
        now(each)
        run(bar, state, module, now, 20, each)
    assert len(messages(caplog, "the run")) == 1


def test_a_run_that_is_over_sooner_says_nothing(now: Callable[[float], None], caplog: pytest.LogCaptureFixture) -> None:
    bar, state, module = progress.ProgressBar(Meter()), trainer(10), SimpleNamespace()
    bar.on_train_start(state, module)
    with caplog.at_level("INFO"):
        run(bar, state, module, now, 10, each=0.1)
        bar.on_train_end(state, module)
        now(60.0)
    assert not messages(caplog, "the run")


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0:00"), (59.6, "1:00"), (754, "12:34"), (3600, "1:00:00"), (90061, "25:01:01")]
)
def test_clock(seconds: float, text: str) -> None:
    assert progress.clock(seconds) == text


def test_the_last_state_of_the_bar_is_that_of_the_lines_below_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its readings are those that the run ends with, and no time is left."""
    console = Console(file=io.StringIO(), force_terminal=True, width=200)
    monkeypatch.setattr(progress, "get_console", lambda: console)
    meter, state, module = Meter(), trainer(4), SimpleNamespace(device=SimpleNamespace(type="cpu"))
    meter.latest = {"loss": 5.0}
    bar = progress.ProgressBar(meter)
    bar.on_train_start(state, module)
    for _ in range(4):
        state.global_step += 1
        bar.on_train_batch_end(state, module)
    meter.latest = {"loss": 4.25, "knn": 0.5}  # read behind the last step
    bar.on_train_end(state, module)
    states = re.split(r"[\r\n]", console.file.getvalue())  # type: ignore[attr-defined]
    last = [state for state in states if "epoch" in state][-1]
    assert "loss 4.250  kNN 50.0%" in last
    assert "left" not in last
