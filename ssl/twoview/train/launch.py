"""Who started the processes of a run: srun, torchrun or the run itself."""

import errno
import os
import socket
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch.distributed as dist
from lightning_fabric.plugins.environments import (
    ClusterEnvironment,
    LightningEnvironment,
    SLURMEnvironment,
    TorchElasticEnvironment,
)

from twoview.errors import UserError, listed

ONE_OF_SEVERAL = ("RANK", "LOCAL_RANK", "SLURM_PROCID", "JSM_NAMESPACE_RANK")  # which of them, counted from 0
STARTED = ("LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")  # what Lightning tells the processes it starts
TORCHRUN = ("RANK", *STARTED)
WRITTEN: dict[str, str] = {}  # by Lightning's launcher for the first run of this process on several devices
SRUN = ("SLURM_PROCID", "SLURM_LOCALID", "SLURM_NODEID")


def environment(each: int, nodes: int) -> ClusterEnvironment | None:
    """Where a run on `each` devices of so many nodes finds its processes; None where Lightning's own answer is right.
    UserError where another number of them was started, or variables of another run are left in the environment: they
    would wait for processes that nobody has started.
    """
    wanted = each * nodes
    if dist.is_torchelastic_launched():
        _require("TORCHELASTIC_RUN_ID", "torchrun", TORCHRUN)
        _refuse(_number("WORLD_SIZE"), wanted, "torchrun", "--nproc-per-node and --nnodes")
        return TorchElasticEnvironment()
    if "SLURM_NTASKS" in os.environ and SLURMEnvironment.detect():
        started = _number("SLURM_NTASKS")
        if (
            "SLURM_STEP_ID" not in os.environ or started == nodes == 1
        ):  # without srun, or one task: the run starts others
            _refuse_left(each, nodes)
            return LightningEnvironment()
        _refuse(started, wanted, "srun", "--ntasks-per-node and --nodes")
        _require("SLURM_STEP_ID", "srun", SRUN)
        try:
            return SLURMEnvironment(auto_requeue=False)  # `twoview.run.saving` asks for that, and leaves no file
        except RuntimeError as error:
            raise UserError(f"SLURM: {error}") from error
    _refuse_left(each, nodes)
    return None


@contextmanager
def own_variables() -> Iterator[None]:
    """Takes back what a run's launcher writes into the environment, which would tell the next run of this process that
    it is one of several.
    """
    names = (*STARTED, "NODE_RANK", "RANK")
    before = {name: None if name in WRITTEN else os.environ.get(name) for name in names}
    try:
        yield
    finally:
        if dist.is_available() and dist.is_initialized() and not dist.is_torchelastic_launched():  # torchrun's stay
            WRITTEN.update({name: os.environ[name] for name in names if name in os.environ})
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def _refuse_left(each: int, nodes: int) -> None:
    """UserError for variables that no launcher of this run has set."""
    if WRITTEN and dist.is_initialized():
        _go_on_together(each * nodes)
        return
    left = [name for name in (*ONE_OF_SEVERAL, "WORLD_SIZE") if name in os.environ]
    if each * nodes == 1:
        if any(_number(name) > (name == "WORLD_SIZE") for name in left):
            raise UserError(
                f"the environment says that this is one of several processes ({_said(left)}), and the run is for one "
                f"device: unset {listed(left)}, or say trainer=ddp and trainer.devices=..."
            )
    elif "LOCAL_RANK" in os.environ or "RANK" in os.environ:  # started by Lightning, or one by one by hand
        _require("LOCAL_RANK" if "LOCAL_RANK" in os.environ else "RANK", "another launcher", STARTED)
        if _number("WORLD_SIZE") != each * nodes:
            raise UserError(
                f"WORLD_SIZE={os.environ['WORLD_SIZE']} of the environment, and the run is for {each * nodes} devices: "
                f"unset {listed([name for name in STARTED if name in os.environ])}, or change trainer.devices"
            )
        if _number("LOCAL_RANK") >= each:
            raise UserError(
                f"LOCAL_RANK={os.environ['LOCAL_RANK']}, and a node has {each} processes, counted from 0: unset "
                "LOCAL_RANK, or mend what sets it"
            )
    elif nodes > 1:
        missing = [name for name in ("MASTER_ADDR", "MASTER_PORT", "NODE_RANK") if name not in os.environ]
        if missing:
            raise UserError(
                f"trainer.num_nodes={nodes}, and nothing says where the others are: start every node's process with "
                f"srun or torchrun, or set {listed(missing)}"
            )
    else:
        _refuse_other_machine(each)


def _go_on_together(wanted: int) -> None:
    """A further run of this process, as of a sweep: the other processes are still there and come to it, too, so that
    none is to be started. UserError where they are not as many.
    """
    if dist.get_world_size() != wanted:
        raise UserError(
            f"this run is for {wanted} device{'s' * (wanted > 1)}, and the one before it in the same process was for "
            f"{dist.get_world_size()}: start it by a command of its own"
        )
    os.environ.update(WRITTEN)


def _refuse_other_machine(each: int) -> None:
    address, port = os.environ.get("MASTER_ADDR", "127.0.0.1"), _number("MASTER_PORT", 0)
    try:
        if port > 65535:
            raise OverflowError
        family, kind, _, _, place = socket.getaddrinfo(address, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind) as trial:
            trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            trial.bind(place)
    except (OSError, OverflowError) as error:
        if isinstance(error, OverflowError) or error.errno in (errno.EADDRINUSE, errno.EACCES):
            raise UserError(
                f"MASTER_PORT={port} of the environment is no port that this run may have, or another process has it: "
                "unset MASTER_PORT"
            ) from error
        raise UserError(
            f"MASTER_ADDR={address} of the environment is not this machine, on which all {each} processes of the run "
            "are: unset MASTER_ADDR"
        ) from error


def _require(sign: str, tool: str, names: Sequence[str]) -> None:
    missing = [name for name in names if name not in os.environ]
    if missing:
        raise UserError(
            f"{sign}={os.environ[sign]} is in the environment, as if {tool} had started this process, and "
            f"{listed(missing)} {'is' if len(missing) == 1 else 'are'} not: unset {sign}, or start it with {tool}"
        )


def _refuse(started: int, wanted: int, tool: str, options: str) -> None:
    if started != wanted:
        raise UserError(
            f"{tool} has started {started} process{'es' * (started > 1)}, and the run is for {wanted} "
            f"device{'s' * (wanted > 1)}: they have to be as many. Change {options} of {tool}, or trainer.devices and "
            "trainer.num_nodes (more than one device: trainer=ddp)"
        )


def _said(names: Sequence[str]) -> str:
    return listed([f"{name}={os.environ[name]}" for name in names])


def _number(name: str, unset: int = 1) -> int:
    value = os.environ.get(name, str(unset))
    if not value.isdecimal():
        raise UserError(f"the environment variable {name}={value!r} is no number: unset it, or mend what sets it")
    return int(value)
