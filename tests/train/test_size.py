"""What cannot fit into memory is said before it is built."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from twoview.data import memory as module
from twoview.train import assemble, size

LARGE = {  # each takes some GiB with its gradients, far more than is left to the test, and less than 2^40
    "widths": (["encoder.widths=[4,4,4,20000000]"], "encoder.stage4.0.weight of 20,000,000 x 4 x 3 x 3"),
    "channels": (["encoder.channels=20000000"], "encoder.stage1.0.0.weight"),
    "hidden": (["model.projector.hidden_dim=4000000"], "projector"),
    "out": (["model.projector.out_dim=20000000"], "projector"),
    "queue": (["model=moco", "model.queue_size=8000000"], "of 8,000,000 x 128"),
    "neighbours": (["model=nnclr", "model.queue_size=4000000"], "of 4,000,000 x 256"),
    "prototypes": (["model=swav", "model.prototypes=4000000"], "prototypes"),
    "dino": (["model=dino", "model.prototypes=4000000"], "4,000,000 x 256"),
    "predictor": (["model=byol", "model.predictor.hidden_dim=4000000"], "predictor"),
}


@pytest.mark.parametrize("name", LARGE)
def test_a_network_that_cannot_fit_is_refused_before_it_is_built(
    name: str, tiny: list[str], command: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words, part = LARGE[name]
    monkeypatch.setattr(size, "memory", lambda: 2**30)
    monkeypatch.setattr(assemble, "_encoder", lambda *_: pytest.fail("it was built"))
    ended = command(*tiny, *words, "hydra.run.dir=run")
    assert "the model needs for training" in ended.error
    assert "GiB of memory, and there are 1: make it smaller" in ended.error
    assert part in ended.error
    assert not (tmp_path / "run").exists()


def test_what_fits_is_built_and_draws_the_same_numbers(
    tiny: list[str], compose: Callable[..., dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    config = compose(*tiny)
    before = torch.get_rng_state()
    size.refuse_too_large(config, trains_here=True)
    assert torch.equal(torch.get_rng_state(), before)
    monkeypatch.setattr(size, "memory", lambda: 1)
    with pytest.raises(size.UserError, match=r"the model needs at least .* numbers$"):
        size.refuse_too_large(config, trains_here=False)


def test_the_memory_of_a_container_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    limit = tmp_path / "memory.max"
    monkeypatch.setattr(module, "LIMITS", (str(limit), str(tmp_path / "none")))
    whole = module.memory()
    limit.write_text("max\n")
    assert module.memory() == whole
    limit.write_text("1073741824\n")
    assert module.memory() == 2**30
