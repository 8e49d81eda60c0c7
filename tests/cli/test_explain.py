"""What libraries and systems say becomes one message that tells what to do."""

import errno
import os

import pytest

from twoview.cli.explain import explain

CPU = (
    "[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to allocate "
    "4294967296 bytes. Error code 12 (Cannot allocate memory)"
)
GPU = "CUDA out of memory. Tried to allocate 2.50 GiB. GPU 0 has a total capacity of 15.89 GiB\nTraceback of a worker"


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (RuntimeError(CPU), "out of memory (4.00 GiB more were wanted): use a smaller batch_size"),
        (RuntimeError(GPU), "out of memory (2.50 GiB more were wanted): use a smaller batch_size"),
        (MemoryError(), "out of memory: use a smaller batch_size"),
        (OSError(errno.ENOMEM, os.strerror(errno.ENOMEM)), "out of memory: use a smaller batch_size"),
        (OSError(errno.EMFILE, os.strerror(errno.EMFILE)), "ulimit -n 4096"),
        (BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN)), "the system allows no more processes (ulimit -u)"),
        (OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "/runs/x"), "No space left on device: /runs/x"),
        (RuntimeError("The server socket has failed to bind to [::]:29500 (errno: 98 - EADDRINUSE)"), "MASTER_PORT"),
        (RuntimeError("CUDA error: no kernel image is available for execution on the device"), "trainer=cpu"),
        (RuntimeError("The NVIDIA driver on your system is too old (found version 11040)."), "update it"),
        (RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed."), "loader.num_workers=1"),
        (RuntimeError("[/x/pair.cc:534] Connection closed by peer [127.0.0.1]:4242"), "another process of the run"),
        (ValueError("\n\nInvalid log settings: junk\nmore"), "Invalid log settings: junk (debug=true shows where)"),
        (ValueError(""), "no message"),
    ],
)
def test_what_others_say_is_translated(error: Exception, words: str) -> None:
    said = explain(error)
    assert words in said
    assert len(said.splitlines()) == 1
    assert "alloc_cpu" not in said


def test_an_evaluation_has_no_batch_size_to_make_smaller() -> None:
    assert "batch_size" not in explain(RuntimeError(GPU), "card")
