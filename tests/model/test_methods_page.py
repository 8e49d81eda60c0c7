"""The table of methods names every method that there is, and no other."""

import re

from test_every_method import FILES, NAMES, ROOT

from twoview.watch.standstill_table import TABLE


def test_the_page_has_a_row_for_each_method_with_its_source() -> None:
    page = (ROOT / "docs" / "methods.md").read_text()
    rows = dict(re.findall(r"^\| `(\w+)` \|(.*)$", page, re.MULTILINE))
    assert sorted(rows) == NAMES
    for name, row in rows.items():
        number = re.search(r"arXiv (\d{4}\.\d{5})", row)
        assert number, name
        assert number[1] in (ROOT / f"ssl/twoview/model/{name}.py").read_text(), name


def test_the_doctor_knows_where_each_method_may_stand_still() -> None:
    sources = [(ROOT / f"ssl/twoview/model/{name}.py").read_text() for name in FILES]
    assert {name for source in sources for name in re.findall(r"^class (\w+)\(Method\)", source, re.MULTILINE)} == set(
        TABLE
    )
