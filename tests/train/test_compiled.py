"""Networks through torch.compile: the same training, a network that knows nothing of it, and a way without."""

import functools
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from twoview.encoder.small import Small
from twoview.run.checkpoint import load_encoder
from twoview.run.identity import config_hash
from twoview.train import pretrain
from twoview.train.compiled import LONG_ENOUGH, Compiler

Compose = Callable[..., dict[str, Any]]
FAST = functools.partial(torch.compile, backend="aot_eager")  # all but the slow part, the making of machine code


def views() -> Tensor:
    return torch.randn(8, 3, 16, 16, generator=torch.Generator().manual_seed(0))


def small() -> nn.Module:
    torch.manual_seed(0)
    return Small([4, 4, 8, 8]).to(memory_format=torch.channels_last)


@pytest.mark.parametrize("model", ["simclr", "moco"])
def test_a_compiled_run_equals_the_plain_one(
    model: str, compose: Compose, tiny: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: Any
) -> None:
    monkeypatch.setattr(torch, "compile", FAST)
    caplog.set_level(logging.INFO)
    words = [*tiny, f"model={model}", "trainer.precision=32-true", "knn=null", "quality=null", "epochs=1"]
    plain, compiled = (compose(*words, f"compile={mode}") for mode in ("false", "true"))
    assert config_hash(plain) == config_hash(compiled)
    states = []
    for config, folder in ((plain, tmp_path / "plain"), (compiled, tmp_path / "compiled")):
        pretrain.run(config, folder)
        states.append(torch.load(folder / "last.ckpt", weights_only=True)["state_dict"])
    assert "Small compiled in" in caplog.text
    assert list(states[0]) == list(states[1])  # no key speaks of a compiler
    for name, value in states[0].items():
        torch.testing.assert_close(states[1][name], value, rtol=1e-3, atol=1e-4, msg=lambda m, n=name: f"{n}: {m}")
    found = load_encoder(tmp_path / "compiled").encoder.state_dict()  # strict, into the plain network
    assert all(value.equal(states[1][f"encoder.{name}"]) for name, value in found.items())


@pytest.mark.slow
def test_machine_code_gives_the_same_features_and_gradients() -> None:
    plain, network = small(), small()
    h = plain(views())
    compiled = Compiler(True)(network, views())
    torch.testing.assert_close(compiled, h)
    h.square().sum().backward()
    compiled.square().sum().backward()
    for a, b in zip(network.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, rtol=1e-3, atol=1e-4)


def test_compiling_leaves_no_trace(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "compile", FAST)
    plain, network = small(), small()
    plain(views())
    Compiler(True)(network, views())  # a pass of its own, and then this one
    for (name, a), (_, b) in zip(network.state_dict().items(), plain.state_dict().items(), strict=True):
        torch.testing.assert_close(a, b, msg=lambda m, n=name: f"{n}: {m}")
    assert all(p.grad is None for p in network.parameters())


def test_a_compiler_that_fails_is_told_of_once_and_done_without(monkeypatch: Any, caplog: Any) -> None:
    def broken(network: nn.Module, **options: Any) -> Callable[[Tensor], Tensor]:
        def fails(x: Tensor) -> Tensor:
            network(x)  # batch statistics have moved by then
            raise RuntimeError("no compiler\nand much else")

        return fails

    monkeypatch.setattr(torch, "compile", broken)
    plain, network, other, through = small(), small(), small(), Compiler(True)
    assert through(network, views()).equal(plain(views()))
    through(other, views())
    assert [r.getMessage() for r in caplog.records] == [
        "the network stays as it is: torch.compile failed with no compiler"
    ]
    assert all(a.equal(b) for a, b in zip(network.buffers(), plain.buffers(), strict=True))


@pytest.mark.parametrize(
    ("mode", "device", "steps", "world_size", "compiles"),
    [
        ("auto", "cuda", LONG_ENOUGH, 1, True),
        ("auto", "cuda", LONG_ENOUGH - 1, 1, False),
        ("auto", "cuda", LONG_ENOUGH, 2, False),
        ("auto", "cpu", LONG_ENOUGH, 1, False),
        (True, "cpu", 1, 2, True),
        (False, "cuda", LONG_ENOUGH, 1, False),
    ],
)
def test_what_auto_comes_to(mode: Any, device: str, steps: int, world_size: int, compiles: bool) -> None:
    through = Compiler(mode)
    through.decide(torch.device(device), steps, world_size)
    assert through.mode is compiles
