"""The policy of the playground: what is turned is what comes out, as a file and as words of the command line."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from twoview.cli.configs import Composed, options
from twoview.cli.configs import compose as composed_by
from twoview.errors import UserError
from twoview.play.policy import controls, file_of, linked, resolved, turned, words_of

WISHES = {
    "strength": 0.75,
    "ops": {
        "crop": {"values": {"scale": [0.3, 0.9], "size": 24, "antialias": False, "p": 1.0}},
        "jitter": {"on": True, "values": {"p": 0.4, "hue": 0.1}},
        "gray": {"on": False},
    },
}


def raw(augment: str) -> dict[str, Any]:
    policy = OmegaConf.to_container(composed_by("train", ["data=shapes", f"augment={augment}"]).config.augment)
    assert isinstance(policy, dict)
    return policy


@pytest.fixture(scope="module")
def policy() -> dict[str, Any]:
    return raw("simclr_cifar")


def plain(composed: Composed) -> Any:
    return OmegaConf.to_container(composed.config, resolve=True)["augment"]  # type: ignore[index, call-overload]


def test_what_is_turned_is_in_the_policy_and_follows_the_strength(policy: dict[str, Any]) -> None:
    found = turned(policy, WISHES)
    assert list(found["ops"]) == ["crop", "flip", "jitter"]
    assert found["ops"]["crop"] | {"scale": [0.3, 0.9], "size": 24, "antialias": False} == found["ops"]["crop"]
    assert found["ops"]["jitter"]["strength"] == "${augment.strength}"
    assert resolved(found)["ops"]["jitter"]["strength"] == 0.75
    assert "gray" in policy["ops"], "the policy that it came from stays"
    assert turned(policy, {}) == policy


def test_the_file_is_the_policy(policy: dict[str, Any], tmp_path: Path) -> None:
    """Saved where its first line says, it composes to what was shown."""
    found = turned(policy, WISHES)
    (tmp_path / "augment").mkdir()
    (tmp_path / "augment" / "mine.yaml").write_text(file_of(found))
    again = composed_by("train", ["data=shapes", "augment=mine"], [tmp_path])
    assert plain(again) == resolved(found)
    stronger = composed_by("train", ["data=shapes", "augment=mine", "augment.strength=2"], [tmp_path])
    assert plain(stronger)["ops"]["jitter"]["strength"] == 2


def test_the_words_are_the_policy(policy: dict[str, Any]) -> None:
    found = turned(policy, WISHES)
    words = words_of(policy, found)
    assert plain(composed_by("train", ["data=shapes", *words])) == resolved(found)
    assert words_of(policy, policy) == []
    assert "augment.strength=0.75" in words
    assert "~augment.ops.gray" in words


@pytest.mark.parametrize("augment", options("augment"))
def test_every_policy_has_controls(augment: str) -> None:
    """Of every number of its file: a control that has its value and a slider that can reach it."""
    policy = raw(augment)
    found = {op["name"]: {key["key"]: key for key in op["keys"]} for op in controls(policy)}
    assert list(found) == list(policy["ops"])
    for name, keys in found.items():
        for key, control in keys.items():
            if key in policy["ops"][name] and not control["follows"]:
                assert control["value"] == policy["ops"][name][key]
            if control["kind"] in ("number", "range"):
                values = control["value"] if control["kind"] == "range" else [control["value"]]
                assert all(control["low"] <= value <= control["high"] for value in values)
        numbers = [k for k, v in policy["ops"][name].items() if isinstance(v, int | float)]
        assert set(numbers) <= set(keys)
    assert turned(policy, {"ops": {name: {"on": True, "values": {}} for name in found}}) == policy


def refusals() -> Iterator[tuple[dict[str, Any], str]]:
    yield {"ops": {"crop": {"values": {"_target_": "os.system"}}}}, "no key '_target_'"
    yield {"ops": {"evil": {"values": {"_target_": "os.system"}}}}, "no operation 'evil'"
    yield {"ops": {"crop": {"values": {"scale": {"_target_": "os.system"}}}}}, "os.system"
    yield {"ops": {"crop": {"values": {"scale": "wide"}}}}, "augment.ops.crop.scale='wide' is not a list"
    yield {"ops": {"flip": {"values": {"p": "often"}}}}, "augment.ops.flip.p='often' is not a number"
    yield {"ops": {"flip": {"values": [1]}}}, "no table"
    yield {"ops": [1]}, "no table"
    yield {"strength": "much"}, "augment.strength='much' is not a number"


@pytest.mark.parametrize(("wishes", "says"), list(refusals()))
def test_a_page_cannot_wish_for_more(policy: dict[str, Any], wishes: dict[str, Any], says: str) -> None:
    with pytest.raises(UserError) as refused:
        turned(policy, wishes)
    assert says in str(refused.value)


def test_the_policy_of_a_run_follows_its_strength_again(compose: Callable[..., dict[str, Any]]) -> None:
    stored = compose("data=shapes", "augment=simclr_cifar")["augment"]
    assert stored["ops"]["jitter"]["strength"] == 0.5
    assert linked(stored)["ops"]["jitter"]["strength"] == "${augment.strength}"
    assert resolved(linked(stored)) == stored
