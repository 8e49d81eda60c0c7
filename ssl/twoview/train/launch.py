"""Who started the processes of a run: srun, torchrun or the run itself."""

import os

import torch.distributed as dist
from lightning_fabric.plugins.environments import (
    ClusterEnvironment,
    LightningEnvironment,
    SLURMEnvironment,
    TorchElasticEnvironment,
)

from twoview.errors import UserError, listed


def environment(each: int, nodes: int) -> ClusterEnvironment | None:
    """Where a run on `each` devices of so many nodes finds its processes; None where Lightning's own answer is right.
    UserError where another number of them was started, or variables of another run are left in the environment.
    """
    wanted = each * nodes
    if dist.is_torchelastic_launched():
        _refuse(_number("WORLD_SIZE"), wanted, "torchrun", "--nproc-per-node and --nnodes")
        return TorchElasticEnvironment()
    if "SLURM_NTASKS" in os.environ and SLURMEnvironment.detect():
        started = _number("SLURM_NTASKS")
        if (
            "SLURM_STEP_ID" not in os.environ or started == nodes == 1
        ):  # without srun, or one task: the run starts others
            return LightningEnvironment()
        _refuse(started, wanted, "srun", "--ntasks-per-node and --nodes")
        try:
            return SLURMEnvironment(auto_requeue=False)  # `twoview.run.saving` asks for that, and leaves no file
        except RuntimeError as error:
            raise UserError(f"SLURM: {error}") from error
    left = [name for name in ("WORLD_SIZE", "RANK", "LOCAL_RANK") if name in os.environ]
    if wanted == 1 and any(_number(name) > (name == "WORLD_SIZE") for name in left):
        said = listed([f"{name}={os.environ[name]}" for name in left])
        raise UserError(
            f"the environment says that this is one of several processes ({said}), and the run is for one device: "
            f"unset {listed(left)}, or say trainer=ddp and trainer.devices=..."
        )
    return None


def _refuse(started: int, wanted: int, tool: str, options: str) -> None:
    if started != wanted:
        raise UserError(
            f"{tool} has started {started} process{'es' * (started > 1)}, and the run is for {wanted} "
            f"device{'s' * (wanted > 1)}: they have to be as many. Change {options} of {tool}, or trainer.devices and "
            "trainer.num_nodes (more than one device: trainer=ddp)"
        )


def _number(name: str) -> int:
    value = os.environ.get(name, "1")
    if not value.isdigit():
        raise UserError(f"the environment variable {name}={value!r} is no number: unset it, or mend what sets it")
    return int(value)
