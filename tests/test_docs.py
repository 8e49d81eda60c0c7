"""The documentation site: every page is in its navigation, every link and anchor leads somewhere, and it builds."""

import os
import re
import shlex
import subprocess
import sys
import unicodedata
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import ROOT, Ended

DOCS = ROOT / "docs"
PAGES = sorted(DOCS.glob("*.md"))
COPIED = {"index.md", "changelog.md", "contributing.md"}  # made by docs/hooks.py
GROUPS = {path.name for path in (ROOT / "configs").iterdir() if path.is_dir()}


def navigation(node: Any = None) -> Iterator[str]:
    node = yaml.safe_load((ROOT / "mkdocs.yml").read_text())["nav"] if node is None else node
    if isinstance(node, str):
        yield node
    else:
        for part in node.values() if isinstance(node, dict) else node:
            yield from navigation(part)


def anchors(page: Path) -> set[str]:
    """Of a page's headings, as Python-Markdown makes them."""
    text = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.DOTALL | re.MULTILINE)
    found = set()
    for heading in re.findall(r"^#+ +(.*)$", text, flags=re.MULTILINE):
        plain = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).replace("`", "")
        plain = unicodedata.normalize("NFKD", plain).encode("ascii", "ignore").decode()
        found.add(re.sub(r"[-\s]+", "-", re.sub(r"[^\w\s-]", "", plain).strip().lower()))
    return found


def test_every_page_is_in_the_navigation_once() -> None:
    made = COPIED | {f"reference/{name}.md" for name in {*GROUPS, "train", "commands"}}
    assert sorted(navigation()) == sorted({path.name for path in PAGES} | made)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_and_anchors_lead_somewhere(page: Path) -> None:
    text = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.DOTALL | re.MULTILINE)
    for link, anchor in re.findall(r"\]\(([^)#\s]*)(?:#([^)\s]+))?\)", text):
        if link.startswith("http"):
            continue
        if link.startswith("reference/") or link in COPIED:
            assert link in set(navigation()), link
            continue
        target = (page.parent / link) if link else page
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), f"{link}#{anchor}"


def test_every_command_on_the_pages_is_one() -> None:
    from twoview.commands import COMMANDS

    for page in PAGES:
        for word in re.findall(r"`twoview ([a-z]+)\b", page.read_text()):
            assert word in COMMANDS, f"{page.name}: twoview {word}"


TYPED = sorted(
    line
    for page in PAGES
    for block in re.findall(r"```bash\n(.*?)```", page.read_text(), flags=re.DOTALL)
    for line in block.splitlines()
    if line.startswith("python ") and "my_package" not in line  # those: tests/train/test_add_your_own.py
)


@pytest.mark.parametrize("line", TYPED)
def test_commands_that_need_data_are_composed(line: str, command: Callable[..., Ended]) -> None:
    """Those in blocks without a language run: tests/test_readme.py."""
    script, *words = shlex.split(line, comments=True)[1:]
    ended = command(*words, "--cfg", "job", name=Path(script).stem)
    assert ended.code == 0, ended.err


@pytest.mark.slow
def test_the_site_builds_without_a_warning_and_asks_nobody_else(tmp_path: Path) -> None:
    pytest.importorskip("material", reason="the extra `docs` is not installed")
    pytest.importorskip("mkdocstrings", reason="the extra `docs` is not installed")
    words = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path)]
    quiet = os.environ | {"NO_MKDOCS_2_WARNING": "1"}
    built = subprocess.run(words, cwd=ROOT, env=quiet, capture_output=True, text=True, timeout=600, check=False)
    assert built.returncode == 0, built.stderr
    pages = list(tmp_path.rglob("*.html"))
    assert {path.relative_to(tmp_path).with_suffix(".md").as_posix() for path in pages} >= set(navigation())
    for page in pages:
        for tag in re.findall(r"<(?:script|img|link|iframe|source)\b[^>]*>", page.read_text()):
            assert not re.search(r"(?:src|href)=\"?(?:https?:)?//", tag) or 'rel="canonical"' in tag, (
                f"{page.name}: {tag}"
            )
