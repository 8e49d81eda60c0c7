"""The page "Add a method" is followed to the letter."""

import re
import sys
from pathlib import Path

import pytest
import torch
import yaml
from hydra.utils import instantiate
from test_every_method import Flat, N, advance, batch

from twoview.model.base import Begin
from twoview.optim.recipe import Recipe

PAGE = (Path(__file__).parents[2] / "docs" / "add_a_method.md").read_text()


def test_the_method_of_the_page_is_short_and_trains(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (code,), (config,) = (re.findall(f"```{kind}\n(.*?)```", PAGE, re.DOTALL) for kind in ("python", "yaml"))
    body = code[code.index("class ") :].splitlines()
    assert len(body) <= 22
    (tmp_path / "uniform.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    node = yaml.safe_load(config.replace("twoview.model.uniform", "uniform"))
    torch.manual_seed(0)
    recipe = Recipe(torch.optim.SGD, lr_per_256=0.05, lr_scaling="none")
    model = instantiate(node, encoder=Flat(), optimizer=recipe)
    model.begin(Begin(global_batch_size=N, steps=20, epochs=1))
    optimizer = recipe.build(model, N, 20, 1, roles=model.roles())[0]
    losses = [advance(model, optimizer, batch(0)).item() for _ in range(20)]
    assert losses[-1] < losses[0] - 0.1
    assert model.step(batch(0)).numbers["spread"] > 0.5
    sys.modules.pop("uniform")
