"""What a login, a cluster or a notebook leaves in the environment and libraries trip over while they are imported."""

import os
import sys
from importlib.machinery import PathFinder
from pathlib import Path

from twoview.errors import UserError, listed

NUMBERS = ["RANK", "LOCAL_RANK", "WORLD_SIZE", "NODE_RANK", "GROUP_RANK", "MASTER_PORT", "JSM_NAMESPACE_RANK"]
NUMBERS += ["SLURM_NTASKS", "SLURM_PROCID", "SLURM_LOCALID", "SLURM_NODEID"]
THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
PER_CORE = 16  # threads, beyond which they do little but wait for each other, and may not even start
LIBRARIES = ["hydra", "lightning_fabric", "numpy", "omegaconf", "PIL", "pytorch_lightning", "rich", "safetensors"]
LIBRARIES += ["scipy", "torch", "torchvision", "typing_extensions", "yaml"]


def refuse_odd_variables() -> None:
    """UserError for a variable of a launcher or of threads that is no number, or asks for absurdly many threads."""
    for name in NUMBERS:
        if not os.environ.get(name, "0").isdecimal():
            raise UserError(
                f"the environment variable {name}={os.environ[name]!r} is no number: unset it, or mend what sets it"
            )
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    for name in THREADS:
        value = os.environ.get(name, "")
        counts = [part.strip() for part in value.split(",")]  # of nested regions
        if value and not all(count.isdecimal() and int(count) > 0 for count in counts):
            raise UserError(
                f"the environment variable {name}={value!r} is no number of threads: unset it, or set it to 1"
            )
        if value and int(counts[0]) > PER_CORE * cores:
            raise UserError(
                f"the environment variable {name}={value} asks for more than {PER_CORE} threads for each of the "
                f"{cores} cores that this process may use: unset it, or set it to {cores}"
            )


def shadowed() -> str:
    """Which packages and modules of Python come from PYTHONPATH though they are installed too, and the remedy: a
    sentence for an error that may be due to it, or "".
    """
    given = [Path(part) for part in os.environ.get("PYTHONPATH", "").split(os.pathsep) if part]
    before = [str(path) for path in given if path.is_dir()]
    behind = [path for path in sys.path if path and Path(path).resolve() not in {Path(b).resolve() for b in before}]
    found = [name for name in LIBRARIES if _has(name, before) and _has(name, behind)]
    found += sorted(name for name in sys.stdlib_module_names if _has(name, before))
    if not found:
        return ""
    return (
        f". PYTHONPATH={os.environ['PYTHONPATH']} puts {listed(found)} of its own before what is installed: "
        "unset PYTHONPATH"
    )


def _has(name: str, path: list[str]) -> bool:
    spec = PathFinder.find_spec(name, path)
    return spec is not None and spec.origin is not None  # a folder without __init__.py comes last
