"""The time left that a run shows is the mean time of its steps since the warm ones, times the steps to come."""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from twoview.watch import bar as progress
from twoview.watch.meter import Meter


@pytest.fixture
def now(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    time = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: time[0])
    return lambda seconds: time.__setitem__(0, time[0] + seconds)


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


@pytest.mark.parametrize("steps", [15, 27, 90])
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


@pytest.mark.parametrize(("device", "each", "said"), [("cpu", 60.0, 1), ("cpu", 1.0, 0), ("cuda", 60.0, 0)])
def test_a_long_run_on_a_cpu_says_so_once_and_names_the_experiment(
    device: str, each: float, said: int, now: Callable[[float], None], caplog: pytest.LogCaptureFixture
) -> None:
    bar, state, module = (
        progress.ProgressBar(Meter()),
        trainer(1000),
        SimpleNamespace(device=SimpleNamespace(type=device)),
    )
    bar.on_train_start(state, module)
    with caplog.at_level("WARNING"):
        run(bar, state, module, now, 100, each)
    assert len([r for r in caplog.records if "experiment=cifar10_cpu" in r.getMessage()]) == said


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0:00"), (59.6, "1:00"), (754, "12:34"), (3600, "1:00:00"), (90061, "25:01:01")]
)
def test_clock(seconds: float, text: str) -> None:
    assert progress.clock(seconds) == text
