"""Studies: which arms they have, that these compose, and that arms of one seed share what they can share."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from hydra.core.override_parser.overrides_parser import OverridesParser
from hypothesis import given, settings
from hypothesis import strategies as st

from twoview.ablate.study import AddOne, Compose, Curve, Grid, LeaveOneOut, value, value_of
from twoview.augment.views import TwoViews
from twoview.cli import schema
from twoview.cli.configs import options
from twoview.data.audio.mel import LogMel, Mel
from twoview.data.image.pixels import Pixels
from twoview.data.table.rows import TableRows
from twoview.data.text.words import Words
from twoview.errors import UserError
from twoview.model.base import Method
from twoview.train import pretrain
from twoview.train.config import check

Compose_ = Callable[..., dict[str, Any]]
JITTER = {"_target_": "twoview.augment.image.photometric.ColorJitter", "p": 1.0}
CROP = {"_target_": "twoview.augment.image.geometric.RandomResizedCrop"}


@pytest.fixture
def base(compose: Compose_) -> dict[str, Any]:
    return compose("data=shapes") | {"choices": {"model": "simclr", "data": "shapes"}}


def test_a_curve_has_its_reference_in_its_place(base: dict[str, Any]) -> None:
    plan = Curve("c", "", {"augment.strength": [0, 1.0, 0.25]}).plan(base)
    assert [arm.place["augment.strength"] for arm in plan.arms] == [0, 0.25, 0.5, 1.0]
    assert plan.reference == "strength=0.5"
    assert [arm.overrides for arm in plan.arms if arm.name == plan.reference] == [()]
    assert plan.axes[0].values == [0, 0.25, 0.5, 1.0]


def test_several_curves_share_one_reference(base: dict[str, Any]) -> None:
    axes = {"augment.ops.jitter.p": [0, 0.8], "augment.ops.gray.p": [0, 0.2, 0.4]}
    plan = Curve("c", "", axes).plan(base)
    assert [arm.name for arm in plan.arms] == ["as it is", "jitter.p=0", "gray.p=0", "gray.p=0.4"]
    assert plan.arms[0].place == {"augment.ops.jitter.p": 0.8, "augment.ops.gray.p": 0.2}


def test_a_grid_is_a_product_and_knows_the_run_as_it_is(base: dict[str, Any]) -> None:
    plan = Grid("g", "", {"augment.strength": [0, 0.5], "model": ["simclr", "moco"]}).plan(base)
    assert len(plan.arms) == 4
    assert plan.reference == "strength=0.5, model=simclr"
    assert plan.arms[1].overrides == ("model=moco", "augment.strength=0")  # the group first
    assert Grid("g", "", {"augment.strength": [2, 3]}).plan(base).reference == "strength=2"


def test_compose_has_each_operation_alone_and_each_pair_once(base: dict[str, Any]) -> None:
    ops = {"crop": CROP, "colour": JITTER, "more": JITTER}
    plan = Compose("c", "", ops, both=["crop"], reference="crop").plan(base)
    assert [arm.name for arm in plan.arms] == [
        "crop", "crop + colour", "crop + more", "colour", "colour + more", "more",
    ]  # fmt: skip
    assert plan.arms[0].overrides[-1] == "augment.views=null"
    assert plan.arms[1].overrides[-1] == "augment.views=[{count:1},{count:1,ops:{colour:null}}]"


def test_leave_one_out_and_add_one(base: dict[str, Any]) -> None:
    plan = LeaveOneOut("l", "").plan(base)
    assert [arm.overrides for arm in plan.arms] == [(), *((f"~augment.ops.{op}",) for op in base["augment"]["ops"])]
    plan = AddOne("a", "", {"more": JITTER}).plan(base)
    assert [arm.name for arm in plan.arms] == ["the policy", "with more"]


def test_an_operation_on_waves_is_added_before_there_are_spectrograms(compose: Compose_) -> None:
    config = compose("data=fsdd", "augment=audio", "encoder.channels=1")
    own = list(config["augment"]["ops"])
    ops = {
        "reverse": {"_target_": "twoview.augment.audio.waves.Reverse", "p": 0.5},
        "more": {"_target_": "twoview.augment.audio.mask.TimeMask"},
    }
    _, reverse, more = AddOne("a", "", ops).plan(config).arms
    at = own.index("mel")
    for arm, expected in ((reverse, [*own[:at], "reverse", *own[at:]]), (more, [*own, "more"])):
        found = compose("data=fsdd", "augment=audio", "encoder.channels=1", *arm.overrides)["augment"]["ops"]
        assert list(found) == expected
        assert {name: found[name] for name in own} == config["augment"]["ops"]


@pytest.mark.parametrize("augment", options("augment"))
def test_every_policy_can_lose_each_of_its_operations(compose: Compose_, augment: str) -> None:
    """Also where the second view has another of that name, or has it alone."""
    words = ["data=shapes", f"augment={augment}"]
    config = compose(*words)
    others = {
        "audio": LogMel(Mel(), [0.5] * 64, [0.5] * 64),
        "table": TableRows([{"name": "x", "mean": 0.0, "std": 1.0, "edges": [0.0, 1.0]}]),
        "text": Words(["word"], [1.0]),
    }
    preprocess = others.get(augment, Pixels((0.5,) * 3, (0.5,) * 3))
    whole = schema.build(config["augment"], preprocess=preprocess).policies
    ops = list(dict.fromkeys(name for policy in whole for name in policy))
    steady = [name for name in ops if name == "mel"]  # a step from waves to spectrograms is no augmentation
    if not ops:
        pytest.skip("a policy of nothing")
    for op, arm in zip([op for op in ops if op not in steady], LeaveOneOut("l", "").plan(config).arms[1:], strict=True):
        left = compose(*words, *arm.overrides)
        check(left)
        policies = schema.build(left["augment"], preprocess=preprocess).policies
        assert {name for policy in policies for name in policy} == {name for name in ops if name != op}


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Curve("c", "", {}), "needs a key"),
        (lambda: Curve("c", "", {"augment.strength": []}), "needs a key"),
        (lambda: Curve("c", "", {"seed": [0, 1]}), "study.seeds"),
        (lambda: Curve("c", "", {"augment.strength": [0.5, 0.5]}), "twice"),
        (lambda: Curve("c", "", {"augment.strength": [float("nan")]}), "finite"),
        (lambda: Curve("c", "", {"a": [1]}, seeds=0), "seeds"),
        (lambda: Curve("c", "", {"a": [1]}, seeds=[1, 1]), "seeds"),
        (lambda: Curve("c", "", {"a": [1]}, seeds=[-1]), "seeds"),
        (lambda: Compose("c", "", {"crop": CROP}, [], "crop"), "two operations"),
        (lambda: Compose("c", "", {"crop": CROP, "x": CROP}, ["blur"], "crop"), "names 'blur'"),
        (lambda: Compose("c", "", {"crop": CROP, "x": CROP}, [], "blur"), "names 'blur'"),
        (lambda: AddOne("a", "", {}), "no operation"),
    ],
)
def test_studies_that_make_no_sense_are_refused(make: Callable[[], Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        make()


@pytest.mark.parametrize(
    ("study", "words"),
    [
        (
            Curve("c", "", {"augment.ops.blur.p": [0, 1]}),
            "augment.ops.blur.p, which the run lacks; its policy has: crop, flip",
        ),
        (LeaveOneOut("l", "", ["blur"]), "'blur', which the policy lacks; it has: crop, flip"),
        (AddOne("a", "", {"gray": JITTER}), "'gray', which the policy has"),
    ],
)
def test_operations_that_do_not_fit_the_policy_are_refused(base: dict[str, Any], study: Any, words: str) -> None:
    with pytest.raises(UserError, match=words):
        study.plan(base)


names = st.from_regex("[a-z_]{1,5}", fullmatch=True)
plain = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(codec="ascii", exclude_categories=["Cc"]), min_size=1),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(names, inner, max_size=3),
    max_leaves=6,
)  # fmt: skip


@settings(deadline=None)
@given(plain)
def test_values_survive_the_grammar_of_the_command_line(what: Any) -> None:
    parsed = OverridesParser.create().parse_override(f"key={value(what)}").value()
    assert _unquoted(parsed) == what


def _unquoted(parsed: Any) -> Any:
    if isinstance(parsed, dict):
        return {str(_unquoted(key)): _unquoted(inner) for key, inner in parsed.items()}
    if isinstance(parsed, list):
        return [_unquoted(inner) for inner in parsed]
    return getattr(parsed, "text", parsed)


@pytest.mark.parametrize("option", options("study"))
def test_every_arm_of_every_study_is_a_run(compose: Compose_, option: str) -> None:
    config = compose("data=shapes", f"study={option}", name="ablate_augment")
    study = schema.build(config["study"])
    assert study.name == option
    base = {key: config[key] for key in compose("data=shapes")}
    plan = study.plan(base | {"choices": {"model": "simclr"}})
    assert plan.reference in [arm.name for arm in plan.arms]
    assert len({arm.name for arm in plan.arms}) == len(plan.arms) > 1
    for arm in plan.arms:
        check(compose("data=shapes", *arm.overrides))
        assert set(arm.place) <= {axis.key for axis in plan.axes}


def test_arms_of_one_seed_share_weights_order_and_the_numbers_of_their_common_operations(
    compose: Compose_, tiny: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    orders: list[list[int]] = []
    step = Method.training_step

    def recorded(self: Any, batch: Any, *args: Any) -> Any:
        orders[-1] += batch.index.tolist()
        return step(self, batch, *args)

    monkeypatch.setattr(Method, "training_step", recorded)
    words = [*tiny, "knn=null", "quality=null", "epochs=1", "optimizer.lr_per_256=1e-12"]
    starts = []
    for name, arm in {"a": ["augment.strength=0"], "b": ["~augment.ops.flip", "augment.strength=1"]}.items():
        orders.append([])
        pretrain.run(compose(*words, *arm), tmp_path / name)
        starts.append(torch.load(tmp_path / name / "last.ckpt", weights_only=True)["state_dict"])
    assert orders[0] == orders[1]
    assert sorted(orders[0]) == list(range(256)) != orders[0]
    weights = [key for key in starts[0] if not key.endswith(("mean", "var", "tracked"))]
    for key in weights:  # which the seed alone decides
        torch.testing.assert_close(starts[0][key], starts[1][key], rtol=0, atol=1e-10)
    images, index = torch.randint(256, (8, 3, 16, 16), dtype=torch.uint8), torch.arange(8)
    boxes = []
    for arm in (["augment.strength=0"], ["~augment.ops.flip", "augment.strength=1"]):
        views = schema.build(compose(*tiny, *arm)["augment"], preprocess=Pixels((0.5,) * 3, (0.5,) * 3), seed=3)
        crop = TwoViews({"crop": views.policies[0]["crop"]}, views.preprocess, seed=3)
        boxes.append(crop(images, index, 2)[1])
    assert torch.equal(*boxes)


def test_a_study_file_is_a_few_lines(compose: Compose_) -> None:
    """A user copies one and changes three of them. Where arms are named one by one, they come on top."""
    for option in options("study"):
        path = Path(__file__).parents[2] / "configs" / "study" / f"{option}.yaml"
        lines = [line for line in path.read_text().splitlines() if not line.lstrip().startswith(("#", "- "))]
        assert len(lines) <= 16
        assert {"_target_", "name", "title", "seeds"} <= set(yaml.safe_load(path.read_text()))


def test_a_value_is_found_by_its_dotted_key(base: dict[str, Any]) -> None:
    assert value_of(base, "augment.ops.crop.scale") == [0.08, 1.0]
    assert value_of(base, "model") == "simclr"
    assert value_of(base, "no.such", None) is None
