"""What a device computes natively, and the precision of a run that follows from it: the one place that decides."""

import platform
from typing import Literal

import torch

Precision = Literal["bf16-mixed", "16-mixed", "32-true"]  # as Lightning has them

_HALVES: dict[Precision, torch.dtype] = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}


def best_precision(device: str) -> Precision:
    """The fastest precision that a device ("cpu", "cuda", "mps"; "gpu" is "cuda") computes in natively and that trains
    as float32 does.
    """
    half = native_half(device)
    return next((precision for precision, dtype in _HALVES.items() if dtype is half), "32-true")


def half_of(precision: str) -> torch.dtype | None:
    """The dtype of products under a mixed precision; None where they are computed in the dtype of the weights."""
    return next((dtype for name, dtype in _HALVES.items() if name == precision), None)


def native_half(device: str) -> torch.dtype | None:
    """The half precision in which the device multiplies matrices faster than in float32: bfloat16, else float16; None
    where it has neither.

    Where a CPU lacks the instructions, the products are emulated and dozens of times slower. Apple's GPUs multiply
    float16 no faster than float32, and the early ones emulate bfloat16: None.
    """
    if device in ("cuda", "gpu"):
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16
    return torch.bfloat16 if device == "cpu" and _cpu_has_bfloat16() else None


def cpu_instructions() -> str:
    """Those that decide how fast torch is on this CPU: "AVX2", "AVX512, bfloat16". A lesser CPU that is simulated
    counts as one.
    """
    vectors = str(torch.backends.cpu.get_cpu_capability())
    return f"{vectors}, bfloat16" if native_half("cpu") else vectors


def _cpu_has_bfloat16() -> bool:
    """AVX512-BF16 or AMX on x86, BF16 on ARM, through oneDNN: nothing else in torch uses them.

    oneDNN's own answer heeds ONEDNN_MAX_CPU_ISA, by which a lesser CPU is simulated, but on x86 it is also yes for any
    AVX-512. On Apple's CPUs torch comes without oneDNN.
    """
    if not torch.backends.mkldnn.is_available() or not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        return False
    if platform.machine().lower() in ("arm64", "aarch64"):
        return True
    checks = (getattr(torch.cpu, name, None) for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"))
    return any(check() for check in checks if check is not None)
