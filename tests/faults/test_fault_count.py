"""The battery is as large as it says."""

from faults import battery


def test_the_battery_has_its_size() -> None:
    counts = battery.count()
    assert sum(cases for cases, _ in counts.values()) >= 150
    for name, (cases, quick) in counts.items():
        assert cases >= quick > 0, name
