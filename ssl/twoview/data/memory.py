"""How much memory there is."""

import os
from contextlib import suppress
from pathlib import Path

LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")  # of a container, v2 and v1


def memory() -> int:
    """Bytes of this machine, or of the container, which may have less."""
    found = [os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") if hasattr(os, "sysconf") else 2**40]
    for file in LIMITS:
        with suppress(OSError, ValueError):  # another system, or "max"
            found.append(int(Path(file).read_text()))
    return min(found)
