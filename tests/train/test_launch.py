"""The processes that were started are as many as the run has devices, and all of them are of one run."""

import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch.distributed as dist
import torch.multiprocessing as mp
from lightning_fabric.plugins.environments import LightningEnvironment, SLURMEnvironment, TorchElasticEnvironment

from twoview.errors import UserError
from twoview.parallel.devices import refuse_disagreement
from twoview.train.launch import environment, own_variables
from twoview.train.trainer import Processes, number_of, strategy_of

SLURM = {"SLURM_JOB_ID": "7", "SLURM_JOB_NAME": "train", "SLURM_PROCID": "0", "SLURM_LOCALID": "0", "SLURM_NODEID": "0"}
STEP = SLURM | {"SLURM_STEP_ID": "0"}
STARTED = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500", "NODE_RANK": "0"}
TORCHRUN = {"TORCHELASTIC_RUN_ID": "a", "RANK": "0", "LOCAL_RANK": "0", "MASTER_ADDR": "::1", "MASTER_PORT": "1"}


@pytest.fixture(autouse=True)
def outside(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of every launcher."""
    for name in {*os.environ}:
        if name in ("WORLD_SIZE", "RANK", "LOCAL_RANK", "NODE_RANK") or name.startswith(
            ("SLURM_", "MASTER_", "TORCHEL")
        ):
            monkeypatch.delenv(name)


@pytest.mark.parametrize(
    ("variables", "each", "nodes", "kind"),
    [
        ({}, 1, 1, None),
        ({}, 2, 1, None),
        ({"WORLD_SIZE": "1", "LOCAL_RANK": "0"}, 1, 1, None),
        (STARTED | {"WORLD_SIZE": "2", "LOCAL_RANK": "1"}, 2, 1, None),  # a process that Lightning started
        ({"SLURM_JOB_ID": "7", "SLURM_JOB_NAME": "interactive", "SLURM_NTASKS": "4"}, 1, 1, None),  # salloc
        (STEP | {"SLURM_JOB_NAME": "bash", "SLURM_NTASKS": "1"}, 1, 1, None),  # srun --pty bash
        ({"MASTER_ADDR": "127.0.0.1"}, 2, 1, None),
        ({"MASTER_ADDR": "elsewhere.invalid", "MASTER_PORT": "70000"}, 1, 1, None),  # one device asks for none
        ({"MASTER_ADDR": "10.0.0.1", "MASTER_PORT": "29500", "NODE_RANK": "0"}, 2, 2, None),
        (TORCHRUN | {"WORLD_SIZE": "4"}, 2, 2, TorchElasticEnvironment),
        (STEP | {"SLURM_NTASKS": "4", "SLURM_NTASKS_PER_NODE": "2"}, 2, 2, SLURMEnvironment),
        (STEP | {"SLURM_NTASKS": "1"}, 2, 1, LightningEnvironment),  # the task starts the second process
        (SLURM | {"SLURM_NTASKS": "4"}, 1, 1, LightningEnvironment),  # a batch script without srun
    ],
)
def test_processes_are_found(
    monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], each: int, nodes: int, kind: Any
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    found = environment(each, nodes)
    assert (None if found is None else type(found)) is kind
    if isinstance(found, SLURMEnvironment):
        assert not found.auto_requeue


@pytest.mark.parametrize(
    ("variables", "each", "message"),
    [
        (STEP | {"SLURM_NTASKS": "2"}, 1, "srun has started 2 processes, and the run is for 1 device: "),
        (STEP | {"SLURM_NTASKS": "2"}, 4, "srun has started 2 processes, and the run is for 4 devices: "),
        (TORCHRUN | {"WORLD_SIZE": "2"}, 1, "torchrun has started 2 processes, and the run is for 1 device: "),
        (TORCHRUN | {"WORLD_SIZE": "1"}, 2, "torchrun has started 1 process, and the run is for 2 devices: "),
        (STEP | {"SLURM_NTASKS": "2"}, 2, "Use `--ntasks-per-node=2` instead"),
        (STEP | {"SLURM_NTASKS": "abc"}, 1, "SLURM_NTASKS='abc' is no number"),
        ({"WORLD_SIZE": "2"}, 1, "several processes (WORLD_SIZE=2), and the run is for one device: unset WORLD_SIZE"),
        ({"LOCAL_RANK": "1"}, 1, "unset LOCAL_RANK"),
        ({"RANK": "x"}, 1, "RANK='x' is no number"),
        ({"SLURM_PROCID": "3"}, 1, "(SLURM_PROCID=3), and the run is for one device: unset SLURM_PROCID"),
        (SLURM | {"SLURM_PROCID": "1", "SLURM_NTASKS": "2"}, 1, "unset SLURM_PROCID"),
        ({"LOCAL_RANK": "0"}, 2, "LOCAL_RANK=0 is in the environment, as if another launcher had started this process"),
        ({"RANK": "0", "WORLD_SIZE": "2"}, 2, "and LOCAL_RANK, MASTER_ADDR and MASTER_PORT are not: unset RANK"),
        (STARTED | {"LOCAL_RANK": "0", "WORLD_SIZE": "4"}, 2, "WORLD_SIZE=4 of the environment"),
        (STARTED | {"LOCAL_RANK": "2", "WORLD_SIZE": "2"}, 2, "unset LOCAL_RANK"),
        ({"MASTER_ADDR": "elsewhere.invalid"}, 2, "is not this machine, on which all 2 processes"),
        ({"MASTER_ADDR": "198.51.100.7"}, 2, "unset MASTER_ADDR"),
        ({"MASTER_PORT": "70000"}, 2, "unset MASTER_PORT"),
        ({"TORCHELASTIC_RUN_ID": "a"}, 1, "are not: unset TORCHELASTIC_RUN_ID, or start it with torchrun"),
        ({"SLURM_STEP_ID": "0", "SLURM_NTASKS": "2", "SLURM_JOB_NAME": "x"}, 2, "unset SLURM_STEP_ID"),
    ],
)
def test_launchers_and_left_variables_that_mean_another_run_are_refused(
    monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], each: int, message: str
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError) as error:
        environment(each, 1)
    assert message in str(error.value)


def test_a_port_that_is_taken_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        monkeypatch.setenv("MASTER_PORT", str(taken.getsockname()[1]))
        with pytest.raises(UserError, match="another process has it: unset MASTER_PORT"):
            environment(2, 1)


def test_nodes_that_nothing_has_started_are_refused() -> None:
    with pytest.raises(UserError, match=r"trainer.num_nodes=2, .* set MASTER_ADDR, MASTER_PORT and NODE_RANK"):
        environment(1, 2)


def test_what_a_launcher_writes_is_taken_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MASTER_PORT", "1")
    before = dict(os.environ)
    with own_variables():
        os.environ.update(STARTED | {"LOCAL_RANK": "0", "WORLD_SIZE": "2"})
    assert dict(os.environ) == before


@pytest.mark.parametrize(
    ("devices", "accelerator", "number"),
    [(2, "cpu", 2), ("3", "cpu", 3), ([0, 2], "gpu", 2), ("0,1", "gpu", 2), ("nix", "cpu", 1), ("auto", "mps", 1)],
)
def test_devices_are_counted(devices: Any, accelerator: str, number: int) -> None:
    assert number_of(devices, accelerator) == number


def claim(rank: int, folder: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    refuse_disagreement({"seed": 0})
    with pytest.raises(
        UserError, match=r"process 1 of 2 .*: it has lr=1 where the first has 0 and extra=2 where .* None"
    ):
        refuse_disagreement({"seed": 0, "lr": rank} | ({"extra": 2} if rank else {}))
    dist.destroy_process_group()


def test_processes_that_disagree_are_named_on_all_of_them(tmp_path: Any) -> None:
    refuse_disagreement({"seed": 0})  # alone
    mp.spawn(claim, args=(str(tmp_path),), nprocs=2)


def test_strategies_that_are_not_tested_are_refused() -> None:
    assert strategy_of("auto", 1) == "auto"
    assert isinstance(strategy_of("auto", 2), Processes)
    assert isinstance(strategy_of("ddp", 1), Processes)
    for other in ("fsdp", "deepspeed", "ddp_spawn", "nix"):
        with pytest.raises(UserError, match=f"trainer.strategy={other}: runs are tested with auto and ddp"):
            strategy_of(other, 2)


LONELY = """
import datetime, sys
from twoview.commands import run
from twoview.train import trainer

trainer.ARRIVAL = datetime.timedelta(seconds=3)
sys.argv = ["train.py", *sys.argv[1:]]
run("train")
"""


def test_a_process_that_never_arrives_is_told_in_one_line(tmp_path: Any, tiny: list[str]) -> None:
    """The first of two, alone."""
    variables = TORCHRUN | {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}
    words = [*tiny, "trainer=ddp", "trainer.accelerator=cpu", "trainer.devices=2", f"hydra.run.dir={tmp_path}/run"]
    environment = os.environ | variables | {"PYTHONPATH": str(Path(__file__).parents[2] / "ssl"), "GROUP_RANK": "0"}
    command = [sys.executable, "-c", LONELY, *(word for word in words if word != "trainer=cpu")]
    ended = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=120)
    assert ended.returncode == 1
    assert "error: not all processes of the run have met within 5 minutes" in ended.stderr
    assert "Traceback" not in ended.stderr
