"""How this program was started, and how its commands are typed in the same way."""

import os
import re
import shlex
import sys
from pathlib import Path

SCRIPTS = {  # in a checkout: commands whose script has another name than they
    "ablate": "ablate_augment",
    "plot": "plot_run",
    "preview": "preview_augment",
    "probe": "linear_probe",
    "translate": "translate_text",
    "verify": "verify_resume",
}
CHECKOUT = Path(__file__).resolve().parents[3]


def spelled(command: str, *words: str) -> str:
    """The line that starts a command with these words, to be pasted into a shell: with `twoview`, `python -m twoview`
    or a script of the checkout, as this program was started.
    """
    quoted = (word if word.endswith("=<value>") else shlex.quote(word) for word in words)  # <value> is to be filled in
    return " ".join([shlex.join(_start(command)), *quoted])


def near(path: str | Path) -> str:
    """A path as it is typed from here: relative where it lies below the working directory."""
    path = Path(path)
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)


def _start(command: str) -> list[str]:
    typed = Path(sys.argv[0])
    if typed.name == "__main__.py" and typed.resolve().parent.name == "twoview":
        return ["python", "-m", "twoview", command]
    script = script_of(command)
    if typed.suffix == ".py" and typed.resolve() in (CHECKOUT / "train.py", CHECKOUT / "scripts" / typed.name):
        folder = str(CHECKOUT) if typed.is_absolute() else os.path.relpath(CHECKOUT)
        return ["python", os.path.normpath(os.path.join(folder, script))]
    return ["twoview", command]


def script_of(command: str) -> str:
    """The script of a command in a checkout."""
    return "train.py" if command == "train" else f"scripts/{SCRIPTS.get(command, command)}.py"


def in_its_words(text: str) -> str:
    """A text that names commands as `twoview <command>`, with all of them as this program was started. The second
    column of such lines, three blanks and more behind the first, stays a column.
    """
    lines = text.splitlines()
    columns = {n: m for n, line in enumerate(lines) if (m := re.fullmatch(r"(.*\btwoview [a-z].*?)\s{3,}(\S.*)", line))}
    lines = [columns[n][1] if n in columns else line for n, line in enumerate(lines)]
    lines = [re.sub(r"\btwoview ([a-z]+)\b", lambda m: spelled(m[1]), line) for line in lines]
    width = max((len(lines[n]) for n in columns), default=0)
    return "\n".join(f"{line:<{width}}   {columns[n][2]}" if n in columns else line for n, line in enumerate(lines))
