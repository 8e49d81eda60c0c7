"""What a device is found to compute natively, and that a run multiplies matrices in nothing else."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import twoview
from twoview.parallel import precision
from twoview.parallel.precision import best_precision, half_of, native_half
from twoview.train import pretrain

PRODUCTS = ("mm", "addmm", "bmm", "baddbmm", "matmul", "linear", "convolution", "conv2d")


def test_one_place_decides() -> None:
    package = Path(twoview.__file__).parent
    named = {str(path.relative_to(package)) for path in package.rglob("*.py") if "bfloat16" in path.read_text()}
    assert named == {"parallel/precision.py"}


@pytest.mark.parametrize(
    ("machine", "mkldnn", "onednn", "instructions", "native"),
    [
        ("x86_64", True, True, {"avx512_bf16"}, True),
        ("x86_64", True, True, {"amx_tile"}, True),
        ("AMD64", True, True, set(), False),  # AVX-512 alone, where oneDNN emulates
        ("x86_64", True, False, {"avx512_bf16"}, False),  # forbidden to oneDNN by ONEDNN_MAX_CPU_ISA
        ("x86_64", False, None, {"avx512_bf16"}, False),
        ("aarch64", True, True, set(), True),
        ("aarch64", True, False, set(), False),
        ("arm64", False, None, set(), False),  # Apple
    ],
)
def test_a_cpu_has_bfloat16_where_torch_uses_its_instructions(
    monkeypatch: pytest.MonkeyPatch,
    machine: str,
    mkldnn: bool,
    onednn: bool | None,
    instructions: set[str],
    native: bool,
) -> None:
    monkeypatch.setattr("platform.machine", lambda: machine)
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: mkldnn)
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: onednn, raising=False)
    for name in ("avx512_bf16", "amx_tile"):
        monkeypatch.setattr(torch.cpu, f"_is_{name}_supported", lambda name=name: name in instructions)
    assert native_half("cpu") is (torch.bfloat16 if native else None)
    assert best_precision("cpu") == ("bf16-mixed" if native else "32-true")


@pytest.mark.parametrize(("half", "words"), [(torch.bfloat16, "AVX512, bfloat16"), (None, "AVX512")])
def test_the_instructions_of_a_cpu_are_named(
    monkeypatch: pytest.MonkeyPatch, half: torch.dtype | None, words: str
) -> None:
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX512")
    monkeypatch.setattr(precision, "native_half", lambda device: half)
    assert precision.cpu_instructions() == words


def test_a_torch_that_cannot_tell_means_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("platform.machine", lambda: "x86_64")
    for name in ("avx512_bf16", "amx_tile"):
        monkeypatch.delattr(torch.cpu, f"_is_{name}_supported", raising=False)
    assert best_precision("cpu") == "32-true"


@pytest.mark.parametrize(("bf16", "expected"), [(True, "bf16-mixed"), (False, "16-mixed")])
@pytest.mark.parametrize("name", ["cuda", "gpu"])
def test_gpus_have_a_half_precision(monkeypatch: pytest.MonkeyPatch, name: str, bf16: bool, expected: str) -> None:
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: bf16 or including_emulation)
    assert best_precision(name) == expected
    assert native_half(name) is half_of(expected)


def test_apples_gpus_compute_in_float32() -> None:
    assert best_precision("mps") == "32-true"
    assert native_half("mps") is half_of("32-true") is None


def test_a_lesser_cpu_can_be_simulated() -> None:
    """In a process of its own: oneDNN reads the variable once."""
    code = "from twoview.parallel.precision import best_precision; print(best_precision('cpu'))"
    lesser = os.environ | {"ONEDNN_MAX_CPU_ISA": "AVX2", "ATEN_CPU_CAPABILITY": "avx2"}
    if not native_half("cpu"):
        pytest.skip("this CPU is a lesser one itself")
    done = subprocess.run([sys.executable, "-c", code], env=lesser, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "32-true"


class Products(TorchDispatchMode):
    """Notes the dtypes of all that is multiplied."""

    def __init__(self) -> None:
        super().__init__()
        self.dtypes: dict[str, set[torch.dtype]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func._schema.name.removeprefix("aten::")
        if name.removesuffix("_backward") in PRODUCTS or name.startswith("mkldnn"):
            self.dtypes.setdefault(name, set()).update(x.dtype for x in args if isinstance(x, torch.Tensor))
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(
    ("native", "asked", "half"),
    [
        (None, "auto", False),
        (torch.bfloat16, "auto", True),
        (torch.bfloat16, "32-true", False),
        (None, "32-true", False),
    ],
    ids=["a CPU without", "a CPU with", "float32 on a CPU with", "float32 on a CPU without"],
)
def test_a_run_multiplies_in_half_precision_only_where_that_is_native(
    monkeypatch: pytest.MonkeyPatch,
    compose: Callable[..., dict[str, Any]],
    tiny: list[str],
    tmp_path: Path,
    native: torch.dtype | None,
    asked: str,
    half: bool,
) -> None:
    """A real run, forward, backward and Muon's update, with its readings at the end of the epoch."""
    monkeypatch.setattr(precision, "native_half", lambda device: native)
    words = (*tiny, "optimizer=muon", "epochs=1", "loader.max_batches=2", f"trainer.precision={asked}")
    with Products() as products:
        pretrain.run(compose(*words), tmp_path)
    assert {"mm", "addmm", "convolution", "convolution_backward"} <= products.dtypes.keys()
    for name, dtypes in products.dtypes.items():
        floats = {dtype for dtype in dtypes if dtype.is_floating_point}
        assert floats <= ({torch.float32, torch.float64} | ({torch.bfloat16} if half else set())), name
    for name in ("mm", "addmm", "convolution", "convolution_backward"):  # of Muon and of the networks
        assert (torch.bfloat16 in products.dtypes[name]) is half, name


def test_emulated_half_precision_is_warned_of(
    monkeypatch: pytest.MonkeyPatch,
    compose: Callable[..., dict[str, Any]],
    tiny: list[str],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr("twoview.train.trainer.native_half", lambda device: None)
    words = (*tiny, "epochs=1", "loader.max_batches=1", "knn=null", "quality=null", "trainer.precision=bf16-mixed")
    pretrain.run(compose(*words), tmp_path)
    assert "this CPU has no instructions for trainer.precision=bf16-mixed" in caplog.text
