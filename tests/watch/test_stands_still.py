"""A loss at a value that proves that nothing is learnt is named by its formula."""

from typing import Any

import pytest

from twoview.watch.doctor import examine
from twoview.watch.standstill import values
from twoview.watch.standstill_table import TABLE

CONFIG: dict[str, Any] = {
    "batch_size": 256,
    "epochs": 10,
    "model": {"projector": {"out_dim": 64}, "prototypes": 512, "queue_size": 4096, "temperature": 0.2},
}


def case(method: str, losses: list[float], **numbers: float) -> Any:
    rows = [{"step": 100.0 * (i + 1), "epoch": i + 1.0, "loss": loss, **numbers} for i, loss in enumerate(losses)]
    config = CONFIG | {"model": CONFIG["model"] | {"_target_": f"twoview.model.x.{method}"}}
    return examine(rows, config)


def get(key: str, default: Any = None) -> Any:
    node: Any = CONFIG
    for part in key.split("."):
        node = node.get(part) if isinstance(node, dict) else None
    return default if node is None else node


@pytest.mark.parametrize(("method", "number"), [(m, i) for m, rows in TABLE.items() for i in range(len(rows))])
def test_a_loss_that_stays_at_its_value_is_named_unless_only_the_spread_can_tell(method: str, number: int) -> None:
    value, row = values(method, get)[number]
    found = case(method, [value + 1, value, value * 1.001, value])
    if row.alone:
        assert found.verdict == "loss stands still"
        assert row.formula in found.findings[0].evidence[0].limit
        assert row.remedy in found.findings[0].remedy
    else:
        assert found.verdict == "cannot be judged" or not found.findings
        assert case(method, [value] * 4, spread=0.9).findings == ()
        collapsed = case(method, [value] * 4, spread=0.004)
        assert collapsed.verdict == "complete collapse"
        assert row.formula in collapsed.findings[0].evidence[-1].limit


def test_a_loss_on_its_way_through_the_value_is_not_named() -> None:
    assert case("SwAV", [7.0, 6.5, 6.238, 5.9], spread=0.9).findings == ()
    assert case("SwAV", [7.0, 6.3, 6.238, 6.2], spread=0.9).findings == ()
    assert case("VICReg", [40.0, 24.75, 20.0], spread=0.9).findings == ()


def test_it_says_what_people_look_for() -> None:
    found = case("VICReg", [24.75] * 4)
    assert "24.75 is 0.99 v" in found.findings[0].evidence[0].limit
    assert "variance term alone" in found.findings[0].cause
    found = case("SimSiam", [-1.0] * 4, spread=0.004)
    assert found.findings[0].evidence[-1].value == -1
