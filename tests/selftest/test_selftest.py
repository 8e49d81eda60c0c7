"""The self-test passes where all is well, and finds what is broken."""

import json
import os
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.multiprocessing as mp
from conftest import Ended
from torch import Tensor

from twoview.augment.views import TwoViews
from twoview.commands import selftest as start
from twoview.data.batches import Batch
from twoview.errors import UserError
from twoview.losses import contrastive as losses
from twoview.model.moco import MoCo
from twoview.parallel import devices
from twoview.selftest import check as checks
from twoview.selftest import many, one
from twoview.selftest.check import Check

CPU = torch.device("cpu")
Command = Callable[..., Ended]


def results(checks: list[Check]) -> dict[str, str]:
    return {check.name: check.result for check in checks}


def failed(checks: list[Check]) -> set[str]:
    return {check.name for check in checks if check.result == "FAIL"}


@pytest.fixture
def forked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Processes that start as copies of this one, its faults included."""
    monkeypatch.setattr(mp, "spawn", partial(mp.start_processes, start_method="fork"))


# All is well


@pytest.mark.usefixtures("forked")
def test_the_command_passes_and_writes_what_it_found(command: Command, tmp_path: Path) -> None:
    ended = command("devices=cpu", "out=found.json", name="selftest")
    assert ended.code == 0, ended.out + ended.err
    assert "20 passed, 3 skipped, 0 failed" in ended.out
    report = json.loads((tmp_path / "found.json").read_text())
    assert (report["kind"], report["world"]) == ("cpu", 2)
    assert {"machine", "versions", "commit"} <= set(report)
    for check in report["checks"]:
        assert (check["difference"] is None) == (check["result"] == "skipped")
        assert check["result"] == "skipped" or check["difference"] <= check["limit"]


@pytest.mark.slow
def test_spawned_processes_pass(tmp_path: Path) -> None:
    assert failed(many.on_many_devices("cpu", 2)) == set()


def test_one_device_is_not_compared_with_itself() -> None:
    assert set(results(many.on_many_devices("cpu", 1)).values()) == {"skipped"}


def test_checks_of_a_gpu_are_skipped_without_one() -> None:
    checks = one.on_gpu(False, "no GPU here")
    assert {(check.result, check.note) for check in checks} == {("skipped", "no GPU here")}


def test_what_is_compared_changes_and_the_queue_goes_round() -> None:
    for name in many.METHODS:
        found = many.train(name, 2, CPU)
        assert found["losses"].diff().abs().min() > 1e-4, name
    queue = many.train("MoCo", 2, CPU)
    assert queue["queue.count"] > 3 * len(queue["queue.rows"])


def test_half_precision_is_near_but_not_equal() -> None:
    assert 0 < one.autocast_apart(CPU, torch.bfloat16) < 1e-2


# What is broken is found


def only_own_rows(rows: Tensor, n: int) -> Tensor:
    return rows


def without_the_other_devices_gradients(rows: Tensor, n: int) -> Tensor:
    own = GATHER(rows.detach(), n)
    parts = list(own.tensor_split(devices.world_size()))
    parts[devices.rank()] = rows
    return torch.cat(parts)


GATHER = devices.gather


@pytest.mark.usefixtures("forked")
@pytest.mark.parametrize(
    ("fault", "found"),
    [
        (only_own_rows, {"SimCLR", "MoCo", "MoCo v3", "BYOL", "queue"}),
        (without_the_other_devices_gradients, {"SimCLR", "MoCo", "MoCo v3", "BYOL"}),
    ],
)
def test_a_broken_exchange_is_found(fault: Any, found: set[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(many.METHODS, many.EVEN)  # which would not get as far with own rows
    monkeypatch.setattr(devices, "gather", fault)
    assert failed(many.on_many_devices("cpu", 2)) == {f"{name}, 2 devices" for name in found}


@pytest.mark.usefixtures("forked")
def test_an_error_in_a_process_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "gather", only_own_rows)
    (check,) = many.on_many_devices("cpu", 2)
    assert check.result == "FAIL"
    assert "has died: IndexError" in check.note


def test_an_own_key_among_the_negatives_is_found(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    right = MoCo.step

    def enqueues_first(self: MoCo, batch: Batch) -> Any:
        self.queue.add(self.keys(batch.views[1], batch.index), batch.index)
        return right(self, batch)

    monkeypatch.setattr(MoCo, "step", enqueues_first)
    ended = command("devices=cpu", "world=1", name="selftest")
    assert ended.code == 1
    assert "1 failed" in ended.out
    row = next(line for line in ended.out.splitlines() if "own keys" in line)
    assert "FAIL" in row


def test_keys_that_are_not_shuffled_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(MoCo, "_shuffles", lambda self: False)
    assert failed(one.on_one_device(CPU)) == {"guard on cpu"}


def test_views_that_depend_on_the_batch_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    right = TwoViews.forward

    def by_place(self: TwoViews, images: Tensor, index: Tensor, epoch: int) -> Any:
        return right(self, images, torch.arange(len(images)), epoch)

    monkeypatch.setattr(TwoViews, "forward", by_place)
    assert failed(one.on_one_device(CPU)) == {"views on cpu"}


def test_blocks_that_lose_a_factor_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    right = losses._InBlocks.backward

    def twice(ctx: Any, scale: Tensor, accuracy: Tensor) -> Any:
        return right(ctx, 2 * scale, accuracy)

    monkeypatch.setattr(losses._InBlocks, "backward", staticmethod(twice))
    assert failed(one.on_one_device(CPU)) == {"blocks on cpu"}


def test_a_check_that_raises_or_finds_no_number_has_failed() -> None:
    def breaks() -> float:
        raise ValueError("first line\nbroken")

    check = checks.measure("a", "b", 1, breaks)
    assert (check.result, check.note) == ("FAIL", "ValueError: broken")
    assert checks.measure("a", "b", 1, lambda: float("nan")).result == "FAIL"
    zeros = torch.zeros(3)
    assert checks.worst([1.0, float("nan"), 2.0]) != checks.worst([1.0, 2.0])
    assert checks.difference(torch.tensor([1e-5, 0, 0]), zeros) == pytest.approx(1e-3)
    assert checks.difference(zeros, torch.zeros(4)) == float("inf")


# Processes that do not end well


def dies(rank: int, *_: Any) -> None:
    if rank == 1:
        os._exit(7)
    time.sleep(60)


def raises(rank: int, *_: Any) -> None:
    if rank == 1:
        raise RuntimeError("no such card")
    time.sleep(60)


def hangs(*_: Any) -> None:
    time.sleep(60)


@pytest.mark.usefixtures("forked")
@pytest.mark.parametrize(
    ("process", "patience", "message"),
    [
        (dies, 60, "process 1 has died: process 1 terminated with exit code 7"),
        (raises, 60, "process 1 has died: RuntimeError: no such card"),
        (hangs, 1, "TimeoutError: the processes had not ended after 1 s"),
    ],
)
def test_a_process_that_dies_or_hangs_ends_the_test(
    process: Any, patience: int, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(many, "one_process", process)
    monkeypatch.setattr(many, "PATIENCE", patience)
    (check,) = many.on_many_devices("cpu", 2)
    assert check.result == "FAIL"
    assert message in check.note
    assert check.seconds < 50


# Bad input


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["world=0"], "world=0: there must be at least 1"),
        (["world=two"], "world='two' is not"),
        (["devices=tpu"], "devices='tpu' is not one of auto, cpu, cuda"),
        (["out=nowhere/found.json"], "there is no folder nowhere"),
    ],
)
def test_bad_words_are_named(command: Command, words: list[str], message: str) -> None:
    assert message in command(*words, name="selftest").error


@pytest.mark.parametrize(
    ("gpus", "kind", "world", "expected"),
    [
        (0, "auto", "auto", ("cpu", 2)),
        (1, "auto", "auto", ("cpu", 2)),
        (4, "auto", "auto", ("cuda", 4)),
        (4, "cpu", 3, ("cpu", 3)),
        (1, "cuda", "auto", ("cuda", 1)),
        (0, "cuda", "auto", "torch finds no GPU"),
        (2, "cuda", 3, "torch finds 2 GPUs"),
    ],
)
def test_which_devices_and_how_many(
    gpus: int, kind: str, world: Any, expected: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(start, "torch", SimpleNamespace(cuda=SimpleNamespace(device_count=lambda: gpus)))
    config = {"devices": kind, "world": world, "out": None, "debug": False}
    if isinstance(expected, str):
        with pytest.raises(UserError, match=expected):
            start.plan(config)
    else:
        assert start.plan(config) == expected
