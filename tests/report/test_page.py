"""One file of HTML: well formed, nothing fetched, everything escaped, whole or not there."""

import base64
import builtins
import re
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

pytest.importorskip("jinja2")
pytest.importorskip("matplotlib")

from matplotlib.figure import Figure

from twoview.errors import UserError
from twoview.report.page import Cell, Page
from twoview.report.theme import DARK, LIGHT, NARROW, WIDE, Theme, render
from twoview.run.atomic import save

VOID = {"meta", "img", "source", "br", "hr", "link", "input"}
HOSTILE = [
    "<script>alert(1)</script>",
    "\"'><img src=x onerror=alert(1)>",
    "{{ 7 * 7 }}",
    "a&b;",
    "日本 ﷽",
    "x" * 3000,
    "$x_$",
]
PNG = render(lambda theme: Figure(figsize=(0.1, 0.1)))


class Reader(HTMLParser):
    """Checks that elements nest, and keeps their attributes and the text."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open, f"</{tag}> without a beginning"
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data

    def all(self, tag: str) -> Iterator[dict[str, str | None]]:
        return (attrs for name, attrs in self.elements if name == tag)


def parse(html: str) -> Reader:
    """The page, once it is known to nest, to run no script and to need nothing from outside."""
    reader = Reader()
    reader.feed(html)
    reader.close()
    assert reader.open == []
    assert not {tag for tag, _ in reader.elements} & {"script", "link", "iframe", "object", "base", "form"}
    for tag, attrs in reader.elements:
        assert not [name for name in attrs if name.startswith("on")], tag
        for name in {"src", "srcset", "href", "data", "poster"} & attrs.keys():
            assert (attrs[name] or "").startswith("data:image/"), tag
    style = "".join(re.findall(r"<style>.*?</style>", html, re.DOTALL))
    assert "url(" not in style
    assert "@import" not in style
    return reader


def line(theme: Theme) -> Any:
    figure = Figure(figsize=(theme.width, 1))
    panel = figure.subplots()
    panel.plot([0, 1], color=theme.good)
    panel.set_title("a title")
    return figure


def full() -> Page:
    page = Page("A title", "below it", "the end")
    page.lead("the finding")
    page.notice("beware")
    page.numbers([("71.2 %", "of all")])
    section = page.section("A section")
    section.paragraph("a paragraph")
    section.table(["arm", Cell("top-1", "mean")], [["one", Cell("0.7", "[0.6, 0.8]", "bad")]], "lr", "about the table")
    section.figure(line, "a line that rises", "about the figure")
    section.images([(PNG, "a name")], "Views")
    section.code("python train.py\n  seed=0")
    section.code("folded", "its name")
    return page


def test_a_page_holds_all_that_was_put_into_it() -> None:
    html = full().html()
    reader = parse(html)
    for text in (
        "A title", "below it", "the end", "the finding", "beware", "71.2 %", "of all", "A section", "a paragraph",
        "mean", "[0.6, 0.8]", "about the table", "about the figure", "a name", "python train.py\n  seed=0", "folded",
        "its name",
    ):  # fmt: skip
        assert text in reader.text, text
    assert [attrs["alt"] for attrs in reader.all("img")] == ["a line that rises", "Views: a name"]
    assert html.startswith("<!DOCTYPE html>")
    assert any(attrs.get("class") == "r bad" for attrs in reader.all("td"))


def test_the_same_content_is_the_same_file() -> None:
    assert full().html() == full().html()


def test_a_figure_is_drawn_for_light_and_dark_wide_and_narrow() -> None:
    seen = []

    def draw(theme: Theme) -> Any:
        seen.append((theme.paper, theme.width))
        return line(theme)

    page = Page("title")
    page.figure(draw, "a line")
    assert set(seen) == {(paper, width) for paper in (LIGHT.paper, DARK.paper) for width in (WIDE, NARROW)}
    reader = parse(page.html())
    medias = [attrs["media"] or "" for attrs in reader.all("source")]
    assert ["dark" in media for media in medias] == [True, False, True]  # the first that fits is taken
    assert ["max-width" in media for media in medias] == [True, True, False]
    assert all("screen" in media for media in medias)  # paper is light
    images = [attrs["srcset"] for attrs in reader.all("source")] + [attrs["src"] for attrs in reader.all("img")]
    assert len(set(images)) == 4
    for image in images:
        svg = base64.b64decode((image or "").partition("base64,")[2])
        assert ElementTree.fromstring(svg).tag == "{http://www.w3.org/2000/svg}svg"
        assert b"a title" in svg  # letters, not outlines


@pytest.mark.parametrize("text", HOSTILE, ids=range(len(HOSTILE)))
def test_whatever_a_text_says_it_is_only_text(text: str) -> None:
    page = Page(text, text, text)
    page.lead(text)
    page.notice(text)
    page.numbers([(text, text)])
    section = page.section(text)
    section.paragraph(text)
    section.table([text, Cell(text, text)], [[text, Cell(text, text)]], "lr", text)
    section.images([(PNG, text)], text)
    section.code(text, text)
    section.code(text)
    reader = parse(page.html())
    # title, head and foot 4, lead to paragraph 6, table 3 + 3 + 1, images 1, code 2 + 1
    assert reader.text.count(text) == 21
    assert [attrs["alt"] for attrs in reader.all("img")] == [f"{text}: {text}"]


@pytest.mark.parametrize("text", HOSTILE, ids=range(len(HOSTILE)))
def test_whatever_a_text_says_it_can_be_drawn(text: str) -> None:
    def draw(theme: Theme) -> Any:
        figure = line(theme)
        figure.axes[0].set_xlabel(text)
        return figure

    assert render(draw).startswith(b"\x89PNG")
    assert text[:50] in "".join(ElementTree.fromstring(render(draw, form="svg")).itertext())


def test_a_table_has_as_many_cells_in_each_row() -> None:
    page = Page("title")
    with pytest.raises(ValueError, match="2 columns"):
        page.table(["a", "b"], [["1"]])
    with pytest.raises(ValueError, match="2 columns"):
        page.table(["a", "b"], [["1", "2"]], "lrr")
    with pytest.raises(ValueError, match="marks"):
        page.table(["a"], [[Cell("1", mark="ugly")]])


def test_a_file_is_written_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "page.html"
    full().write(path)
    parse(path.read_text(encoding="utf-8"))
    before = path.read_bytes()

    def full_disk(self: Path, data: bytes) -> int:
        with open(self, "wb") as file:
            file.write(data[:10])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full_disk)
    with pytest.raises(UserError, match=r"cannot write .*page\.html: No space left"):
        Page("another").write(path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_a_folder_in_the_way_is_told(tmp_path: Path) -> None:
    (tmp_path / "page.html").mkdir()
    with pytest.raises(UserError, match="cannot write"):
        save(tmp_path / "page.html", "text")
    with pytest.raises(UserError, match="cannot write"):
        save(tmp_path / "nowhere" / "page.html", "text")
    assert [path.name for path in tmp_path.iterdir()] == ["page.html"]


def test_characters_that_no_file_can_hold_are_replaced(tmp_path: Path) -> None:
    page = Page("half a \ud800 pair")
    page.write(tmp_path / "page.html")
    assert "half a ? pair" in (tmp_path / "page.html").read_text(encoding="utf-8")


@pytest.mark.parametrize("package", ["jinja2", "matplotlib"])
def test_what_is_missing_is_named_with_its_extra(package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without(name: str, *rest: Any, **named: Any) -> Any:
        if name.split(".")[0] == package:
            raise ImportError(name)
        return real(name, *rest, **named)

    monkeypatch.setattr(builtins, "__import__", without)
    extra = {"jinja2": "report", "matplotlib": "plot"}[package]
    with pytest.raises(UserError, match=rf"{package}: pip install 'twoview\[{extra}\]'"):
        full().html()
