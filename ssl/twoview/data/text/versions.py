"""Other versions of texts, written once by programs of other people, and read in every run."""

import csv
import io
import logging
import shlex
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path

from twoview.data.table.read import read_table
from twoview.errors import UserError

log = logging.getLogger(__name__)

TEXT, ENGINE = "text", "engine"  # columns of such a file, beside that of the versions
AT_ONCE = 500  # texts that a program gets; what is done is written
APERTIUM = ["apertium -u eng-spa", "apertium -u spa-eng"]  # -u: words that it does not know come without a mark


def versions(file: str | Path, column: str) -> dict[str, str]:
    """The version of each text that the file has one of."""
    path = Path(file).expanduser()
    if not path.is_file():
        raise UserError(f"there is no file of versions {path}: twoview translate makes one")
    table = read_table(path, [TEXT, column])
    if missing := [name for name in (TEXT, column) if name not in table]:
        raise UserError(f"{path} has no column {' and '.join(missing)}: its columns are {', '.join(table)}")
    return {text: version for text, version in zip(table[TEXT], table[column], strict=True) if text and version}


def translate(
    texts: Sequence[str],
    programs: Sequence[str],
    out: Path,
    column: str,
    between: str,
    write: Callable[[str], None],
) -> int:
    """Sends texts through programs, one after the other, and writes what the CSV file `out` is to hold, a version of
    each; returns how many were made now.

    A program reads texts from its standard input, in one line each with `between` behind them, and writes as many.
    Texts that the file has from the same programs, by what they answer to --version, are not sent again. A UserError
    leaves what was done before it.
    """
    engine = "; ".join(f"{program} ({version_of(program)})" for program in programs)
    done = versions(out, column) if out.exists() else {}
    if done and (others := set(read_table(out, [ENGINE]).get(ENGINE, [])) - {engine}):
        raise UserError(f"{out} has versions by {others.pop()}: name another file by out=..., or remove it")
    left = [text for text in dict.fromkeys(texts) if text.strip() and text not in done]
    for start in range(0, len(left), AT_ONCE):
        some = left[start : start + AT_ONCE]
        lines = [" ".join(text.split()) for text in some]
        for program in programs:
            lines = through(program, lines, between)
        done |= {text: line or text for text, line in zip(some, lines, strict=True)}
        write(_table(done, column, engine))
        log.info("%s of %s texts", f"{len(done):,}", f"{len(done) + len(left) - start - len(some):,}")
    return len(left)


def through(program: str, lines: Sequence[str], between: str) -> list[str]:
    """What the program writes for each line. UserError where it fails, or writes another number of them."""
    ended = _run(program, shlex.split(program), between.join(lines) + between)
    if ended.returncode:
        said = (ended.stderr.strip().splitlines() or ["it says nothing"])[-1]
        raise UserError(f"{program} ended with {ended.returncode}: {said}")
    new = [" ".join(line.split()) for line in ended.stdout.removesuffix("\n").split(between)]
    new = new[: len(lines)] if not any(new[len(lines) :]) else new
    if len(new) != len(lines):
        raise UserError(f"{program} made {len(new)} texts of {len(lines)}: it has to write as many as it reads")
    return new


def version_of(program: str) -> str:
    """The first line that it answers to --version, or to -V."""
    for flag in ("--version", "-V"):
        ended = _run(program, [shlex.split(program)[0], flag], "")
        if ended.returncode == 0 and ended.stdout.strip():
            return ended.stdout.strip().splitlines()[0]
    return "no version"


def _run(program: str, words: list[str], said: str) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(words, input=said, capture_output=True, text=True, encoding="utf-8", errors="replace")
    except OSError as error:
        hint = " (Debian: apt-get install apertium-eng-spa)" if words[0] == "apertium" else ""
        raise UserError(f"cannot start {program}: {error.strerror}{hint}") from None


def _table(done: dict[str, str], column: str, engine: str) -> str:
    file = io.StringIO()
    csv.writer(file, lineterminator="\n").writerows([(TEXT, column, ENGINE), *((*one, engine) for one in done.items())])
    return file.getvalue()
