"""--help: every key with the comment of its file, and the groups of the command alone."""

import re
from collections.abc import Callable
from typing import Any

import pytest
import yaml

from twoview.cli.configs import CONFIGS, groups, options
from twoview.cli.page import _comments
from twoview.commands import COMMANDS

Command = Callable[..., Any]


@pytest.mark.parametrize("name", sorted(set(COMMANDS) - {"runs"}))
def test_every_key_stands_there_with_its_comment(command: Command, name: str) -> None:
    page = command("--help", name=name).out
    content = yaml.safe_load((CONFIGS / f"{name}.yaml").read_text())
    text = (CONFIGS / f"{name}.yaml").read_text()
    for key in set(content) - {"defaults", "hydra"}:
        assert re.search(rf"^{key}:", page, re.MULTILINE), key
        comment = re.search(rf"^{key}:[^#\n]*# (.*)$", text, re.MULTILINE)
        if comment and not isinstance(content[key], dict):
            assert re.search(rf"^{key}: .*# {re.escape(comment[1])}", page, re.MULTILINE), key
    for group in groups():
        listed = f"{group}: {', '.join(options(group))}" in page
        assert listed == (group in groups(name)), group
    assert "$" not in re.sub(r"\$\{[^}]*\}", "", page)


def test_the_page_follows_the_words(command: Command) -> None:
    page = command("model=moco", "epochs=7", "--help").out
    assert re.search(r"^epochs: 7 ", page, re.MULTILINE)
    assert re.search(r"^  queue_size: .*# ", page, re.MULTILINE)
    assert re.search(r"^model: +# model=moco: MoCo", page, re.MULTILINE)
    assert "Did you mean moco?" in command("model=mooco", "--help").error


def test_comments_are_those_behind_the_keys() -> None:
    text = """# What it is.
a: 1      # one
          # and more
b: [1, 2] # two
c:        # three
  d: '#'  # four
  # not d's
e: "# none"
"""
    assert _comments(text, "x", with_title=True) == {
        "x": "What it is.", "x.a": "one and more", "x.b": "two", "x.c": "three", "x.c.d": "four"
    }  # fmt: skip


@pytest.mark.parametrize(
    ("typed", "code", "says"),
    [
        ([], 0, "twoview train model=simclr"),
        (["--help"], 0, "selftest"),
        (["--version"], 0, "twoview 0."),
        (["help", "knn"], 0, "ckpt: null"),
        (["trian"], 1, "Did you mean train?"),
        (["model=simclr"], 1, "twoview train model=simclr"),
        (["ckpt=x"], 1, "twoview probe ckpt=x"),
    ],
)
def test_the_one_command(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, typed: list[str], code: int, says: str
) -> None:
    from twoview.commands import main

    monkeypatch.setattr("sys.argv", ["twoview", *typed])
    with pytest.raises(SystemExit) as end:
        main()
    out, err = capsys.readouterr()
    text = out + err + (end.value.code if isinstance(end.value.code, str) else "")
    assert bool(end.value.code) == bool(code)
    assert says in text
    for command in COMMANDS:
        assert code or "knn" in typed or "--version" in typed or f"  {command} " in text
