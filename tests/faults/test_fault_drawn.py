"""Configurations and checkpoints drawn at random: refused in one message, or taken."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from faults.battery import DRAWS
from twoview.errors import UserError
from twoview.run.checkpoint import load_encoder, read_checkpoint
from twoview.train.config import check

LEAVES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(max_size=8),
    st.sampled_from([0, -1, 1, 2**63, "auto"]),
)
KEYS = st.text(max_size=8) | st.just("_target_")
VALUES = st.recursive(
    LEAVES,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=3),
    max_leaves=6,
)
DTYPES = [
    torch.float32,
    torch.float16,
    torch.bfloat16,
    torch.float64,
    torch.int64,
    torch.uint8,
    torch.bool,
    torch.complex64,
]
FORMS = st.tuples(st.lists(st.integers(0, 4), max_size=4), st.sampled_from(DTYPES))
HARMLESS = settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], derandomize=True)


def places(node: Any, path: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    below = (
        [place for key, value in node.items() for place in places(value, (*path, key))]
        if isinstance(node, dict)
        else []
    )
    return ([path] if path else []) + below


def changed(config: dict[str, Any], place: tuple[str, ...], value: Any, how: str) -> dict[str, Any]:
    config = copy.deepcopy(config)
    node = config
    for key in place[:-1]:
        node = node[key]
    if how == "lost":
        del node[place[-1]]
    elif how == "under another name":
        node[str(value)[:20]] = node.pop(place[-1])
    else:
        node[place[-1]] = value
    return config


@pytest.mark.parametrize("draws", DRAWS)
def test_configurations(compose: Callable[..., dict[str, Any]], draws: int) -> None:
    """Nothing but a message comes of any value in any place, before anything is built."""
    config = compose("data=shapes", "model=moco")

    @settings(HARMLESS, max_examples=draws)
    @given(st.sampled_from(places(config)), VALUES, st.sampled_from(["lost", "under another name", "set"]))
    def refused_or_taken(place: tuple[str, ...], value: Any, how: str) -> None:
        message = ""
        try:
            check(changed(config, place, value, how))
        except UserError as error:
            message = str(error)
        assert "\n" not in message
        assert "debug=true" not in message

    refused_or_taken()


@pytest.mark.parametrize("draws", DRAWS)
def test_tensors(finished: Path, tmp_path: Path, draws: int) -> None:
    """Weights of any shape and type in a checkpoint: refused by name, or cast to what the network has."""
    good = read_checkpoint(finished)
    names = [name for name in good["state_dict"] if name.startswith("encoder.")]
    path = tmp_path / "last.ckpt"

    @settings(HARMLESS, max_examples=draws)
    @given(st.sampled_from(names), FORMS)
    def check(name: str, form: tuple[list[int], torch.dtype]) -> None:
        torch.save(good | {"state_dict": good["state_dict"] | {name: torch.ones(form[0], dtype=form[1])}}, path)
        old: Tensor = good["state_dict"][name]
        try:
            new = load_encoder(path).state_dict()[name]
        except UserError as error:
            message = str(error)
        else:
            assert (new.shape, new.dtype) == (old.shape, old.dtype)
            return
        assert str(path) in message
        assert name.removeprefix("encoder.") in message

    check()
