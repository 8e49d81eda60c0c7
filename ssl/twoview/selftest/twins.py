"""Broken twins: methods without the part that keeps them from collapsing, which the doctor must call ill, and the
methods as they are, which it must not.
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from omegaconf import OmegaConf
from torch import Tensor, nn

from twoview.cli import schema
from twoview.cli.configs import CONFIGS
from twoview.data.batches import Batch
from twoview.evaluate.describe.quality import quality
from twoview.losses import negative_cosine, spread
from twoview.model.base import Begin, Method, Outcome
from twoview.optim.recipe import Recipe
from twoview.selftest.check import Check, measure
from twoview.watch.doctor import Diagnosis, examine

N, DIM, STEPS, READINGS = 64, 16, 300, 12
TINY = {"hidden_dim": 64, "out_dim": DIM, "prototypes": 48, "queue_size": 128, "group": N, "directions": 32}
ILL = ("NaN", "complete collapse", "dimensional collapse", "loss at chance level", "loss stands still")
RATES = {"vicreg": 0.02, "simsiam": 0.5, "swav": 0.2}  # of plain gradient descent with momentum; 0.1 for the others


class _Encoder(nn.Sequential):
    dim = 32

    def __init__(self) -> None:
        layers = [nn.Linear(48, 64, bias=False), nn.BatchNorm1d(64), nn.ReLU()]
        super().__init__(nn.Flatten(), *layers, nn.Linear(64, 32, bias=False), nn.BatchNorm1d(32), nn.ReLU())


def configuration(name: str) -> dict[str, Any]:
    """Of a method, `configs/model/<name>.yaml`, with everything tiny."""
    whole = OmegaConf.create({"loss": {"chunk": None}, "model": OmegaConf.load(CONFIGS / f"model/{name}.yaml")})
    plain: Any = OmegaConf.to_container(whole, resolve=True)

    def shrink(node: dict[str, Any]) -> dict[str, Any]:
        return {
            key: shrink(value) if isinstance(value, dict) else TINY[key] if key in TINY and value else value
            for key, value in node.items()
        }

    return shrink(plain["model"])


def make(name: str, **options: Any) -> Method:
    torch.manual_seed(0)
    recipe = Recipe(torch.optim.SGD, lr_per_256=0.1, lr_scaling="none")
    model: Method = schema.build(configuration(name) | options, encoder=_Encoder(), optimizer=recipe)
    model.begin(Begin(global_batch_size=N, steps=STEPS, epochs=4))
    return model.train()


def samples(step: int, n: int = N) -> Batch:
    """Two views of new samples, of four classes that two of their pixels tell."""
    g = torch.Generator().manual_seed(step)
    content = torch.randn(n, 3, 4, 4, generator=g)
    label = (content[:, 0, 0, 0] > 0).long() + 2 * (content[:, 0, 0, 1] > 0).long()
    v1, v2 = (content + 0.5 * torch.randn(n, 3, 4, 4, generator=g) for _ in range(2))
    return Batch((v1, v2), torch.arange(n) + n * step, label)


def verdict(name: str, twin: Callable[[Any], None] | None, device: torch.device) -> Diagnosis:
    """The doctor's, on a short training of a method, or of its twin, from its curves."""
    model = make(name).to(device)
    if twin is not None:
        twin(model)
    weights = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(weights, lr=RATES.get(name, 0.1), momentum=0.9)
    rows: list[Mapping[str, float]] = []
    for step in range(1, STEPS + 1):
        outcome = model.step(_to(samples(step), device))
        optimizer.zero_grad()
        outcome.loss.backward()
        optimizer.step()
        model.after_step()
        if step % (STEPS // READINGS) == 0:
            chance = {} if outcome.chance is None else {"chance_loss": outcome.chance}
            found = {"loss": outcome.loss.detach(), **chance, **outcome.numbers}
            told = {key: float(value) for key, value in found.items()}
            rows.append({"step": step, "epoch": 4 * step / STEPS} | told | _quality(model, device))
    return examine(rows, {"model": configuration(name), "batch_size": N, "epochs": 4, "quality": {"images": 256}})


@torch.no_grad()
def _quality(model: Method, device: torch.device) -> dict[str, float]:
    model.eval()
    h = [model.encoder(view) for view in _to(samples(0, 256), device).views]
    z = [next(iter(model.heads().values()))(view) for view in h]
    model.train()
    found = {"h": quality(*h), "z": quality(*z)}
    return {
        f"{space}_{name}": values[key]
        for space, values in found.items()
        for name, key in (("effective_rank", "effective_rank"), ("std", "feature_std_relative"))
    }


def _to(batch: Batch, device: torch.device) -> Batch:
    return Batch(tuple(view.to(device) for view in batch.views), batch.index.to(device), batch.label.to(device))


# What is broken, by method. Each changes the method that it gets.


def _agreement_alone(model: Any) -> None:
    """The views agree, and nothing else is asked for: no whitening, no log-determinant, no spread of centroids."""

    def step(batch: Batch) -> Outcome:
        z1, z2 = (model.projector(model.encoder(view)) for view in batch.views)
        return Outcome(-F.cosine_similarity(z1, z2).mean(), {"spread": spread(z1)})

    model.step = step


def _no_stop_gradient(model: Any) -> None:
    def step(batch: Batch) -> Outcome:
        z = [model.projector(model.encoder(view)) for view in batch.views]
        p1, p2 = (model.predictor(view) for view in z)
        loss = -(F.cosine_similarity(p1, z[1]) + F.cosine_similarity(p2, z[0])).mean() / 2
        return Outcome(loss, {"spread": spread(z[0])})

    model.step = step


def _no_predictor_and_no_teacher(model: Any) -> None:
    def step(batch: Batch) -> Outcome:
        z1, z2 = (model.projector(model.encoder(view)) for view in batch.views)
        loss = 4 + 2 * (negative_cosine(z1, z2) + negative_cosine(z2, z1))
        return Outcome(loss, {"spread": spread(z1)})

    model.step = step


def _no_assignment(model: Any) -> None:
    def alone(scores: Tensor, _: int) -> Tensor:
        return (scores.detach() / model.epsilon).softmax(dim=1)

    model.assigned = alone


def _no_sharpening(model: Any) -> None:
    model.temperatures = (10.0, 10.0)


TWINS: dict[str, tuple[str, Callable[[Any], None]]] = {
    "W-MSE without whitening": ("wmse", _agreement_alone),
    "CorInfoMax without information": ("corinfomax", _agreement_alone),
    "MMCR without a spread of centroids": ("mmcr", _agreement_alone),
    "LeJEPA without SIGReg": ("lejepa", _agreement_alone),
    "SwAV without equal parts": ("swav", _no_assignment),
    "DINO without sharpening": ("dino", _no_sharpening),
    "SimSiam without stop-gradient": ("simsiam", _no_stop_gradient),
    "BYOL without predictor and teacher": ("byol", _no_predictor_and_no_teacher),
}


def broken_twins(device: torch.device) -> list[Check]:
    """One check for each twin: whether the doctor calls it ill."""
    return [
        measure(f"{name} on {device.type}", "a doctor who calls it healthy", 0, partial(_unseen, *twin, device))
        for name, twin in TWINS.items()
    ]


def _unseen(name: str, twin: Callable[[Any], None], device: torch.device) -> float:
    return float(verdict(name, twin, device).verdict not in ILL)
