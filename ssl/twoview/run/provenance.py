"""What a number came from: the machine, the versions of all that it depends on, and the commit of the source tree."""

import os
import platform
import subprocess
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
import torchvision

import twoview
from twoview.parallel.precision import cpu_instructions


def machine() -> dict[str, Any]:
    """What the run ran on."""
    gpus = (
        [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())] if torch.cuda.is_available() else []
    )
    model = platform.processor() or platform.machine()
    if Path("/proc/cpuinfo").exists():
        names = [
            line.partition(":")[2].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if "model name" in line
        ]
        model = names[0] if names else model
    return {
        "cpu": model,
        "instructions": cpu_instructions(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpus": gpus,
        "system": platform.platform(),
    }


def versions() -> dict[str, str]:
    """Versions of all that the numbers depend on."""
    return {
        "twoview": twoview.__version__,
        "python": platform.python_version(),
        "torch": str(torch.__version__),  # plain text, in a checkpoint too
        "torchvision": torchvision.__version__,
        "pytorch_lightning": pl.__version__,
    }


def commit() -> str | None:
    """The commit of the source tree, with `-dirty` where tracked files differ from it; None outside a checkout."""
    here = Path(__file__).parent
    try:
        described = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"],
            cwd=here,
            capture_output=True,
            text=True,
            timeout=10,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return described.stdout.strip() or None
