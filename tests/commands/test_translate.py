"""Other versions of texts, by programs: a text for each, once, and what was done stays."""

import csv
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from twoview.data.text import versions as module
from twoview.data.text.versions import through, versions

Command = Callable[..., Any]
SAID = ["Where is my card?", "I lost\tmy money", "two, of it", "Where is my card?", ""]


@pytest.fixture
def asked(tmp_path: Path) -> Path:
    with (tmp_path / "train.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("text", "label"), *((text, i % 2) for i, text in enumerate(SAID))])
    return tmp_path


def program(folder: Path, body: str, name: str = "program") -> str:
    """A program of Python's that gets `lines`, and notes each start in the file `starts`."""
    path = folder / name
    text = f"#!{sys.executable}\nimport sys\nif '--version' in sys.argv:\n    sys.exit(print('program 1.2'))\n"
    text += f"open({str(folder / 'starts')!r}, 'a').write('x')\nlines = sys.stdin.read().splitlines()\n{body}\n"
    path.write_text(text)
    path.chmod(0o755)
    return str(path)


UPPER = "print('\\n'.join(line.upper() for line in lines))"


def test_every_text_is_sent_once_and_a_run_takes_the_versions(asked: Path, command: Command) -> None:
    words = ["texts=train.csv", "engine=command", f"command=[{program(asked, UPPER)}]"]
    ended = command(*words, name="translate")
    assert ended.code == 0, ended.err
    found = versions(asked / "versions.csv", "back")
    assert found == {"Where is my card?": "WHERE IS MY CARD?", "I lost\tmy money": "I LOST MY MONEY",
                     "two, of it": "TWO, OF IT"}  # fmt: skip
    assert "program 1.2" in (asked / "versions.csv").read_text()
    assert command(*words, name="translate").code == 0
    assert (asked / "starts").read_text() == "x"  # nothing was left to be sent
    other = program(asked, UPPER, "other")
    error = command(*words[:-1], f"command=[{other}]", name="translate").error
    assert "versions.csv has versions by" in error


def test_a_run_takes_versions_as_views(sentences: Path, tmp_path: Path, command: Command) -> None:
    upper = program(tmp_path, "print('\\n'.join(line + ' again' for line in lines))")
    words = [f"texts={sentences / 'train.csv'}", "engine=command", f"command=[{upper}]"]
    assert command(*words, name="translate").code == 0
    back = "{_target_: twoview.augment.text.others.Cached, file: versions.csv}"
    of_a_run = ["data=text", f"data.root={sentences}", "data.also=versions.csv", "augment=text", "encoder=bag"]
    of_a_run += ["encoder.width=8", "optimizer=adamw", "epochs=1", "trainer=cpu", "model.projector.hidden_dim=8"]
    ended = command(*of_a_run, f"+augment.ops.back={back}", "knn.k=5", "hydra.run.dir=run")
    assert ended.code == 0, ended.err
    state = torch.load(tmp_path / "run" / "last.ckpt", weights_only=True)
    assert "again" in str(state["twoview"])


def test_a_program_that_fails_leaves_what_was_done(
    asked: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "AT_ONCE", 1)
    bad = program(asked, "if 'lost' in lines[0]:\n    sys.exit('no more credit')\n" + UPPER)
    words = ["texts=train.csv", "engine=command", f"command=[{bad}]"]
    assert "ended with 1: no more credit" in command(*words, name="translate").error
    assert list(versions(asked / "versions.csv", "back")) == ["Where is my card?"]
    program(asked, UPPER)  # it works again
    assert command(*words, name="translate").code == 0
    assert len(versions(asked / "versions.csv", "back")) == 3
    assert (asked / "starts").read_text() == "x" * 4


def test_apertium_gets_a_blank_line_between_texts(
    asked: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    (asked / "bin").mkdir()
    body = "assert sys.argv[1] == '-u' and lines[1::2] == [''] * (len(lines) // 2), lines\n"
    body += "print('\\n'.join(f'{line} {sys.argv[2]}' if line else line for line in lines))"
    program(asked / "bin", body, "apertium")
    monkeypatch.setenv("PATH", f"{asked / 'bin'}{os.pathsep}{os.environ['PATH']}")
    ended = command("texts=train.csv", name="translate")
    assert ended.code == 0, ended.err
    assert versions(asked / "versions.csv", "back")["two, of it"] == "two, of it eng-spa spa-eng"


def test_a_text_of_which_nothing_is_left_stays(tmp_path: Path) -> None:
    assert through(program(tmp_path, "print()\nprint('b')"), ["a", "b"], "\n") == ["", "b"]
    assert through(program(tmp_path, "print('a')\nprint()"), ["a", "b"], "\n") == ["a", ""]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "which texts?"),
        (["texts=train.csv", "text_column=body"], "text_column=body: the columns of train.csv are text, label"),
        (["texts=train.csv", "engine=command"], "engine=command takes its programs from command=[...]"),
        (["texts=train.csv", "engine=command", "command=[no-such-program]"], "cannot start no-such-program: No such"),
        (["texts=train.csv", "engine=command", "command=[echo one]"], "echo one made 1 texts of 3"),
        (["texts=train.csv", "engine=google"], "engine"),
    ],
)
def test_mistakes_are_named(asked: Path, command: Command, words: list[str], message: str) -> None:
    assert message in command(*words, name="translate").error
    assert not (asked / "versions.csv").exists()
