"""Pages of the site that are made from the repository when it is built, so that nothing is copied by hand.

The home page is README.md; then the changelog, how to contribute, the commands (their own --help) and the
configurations (configs/).
"""

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parents[1]

COPIED = {"index.md": "README.md", "changelog.md": "CHANGELOG.md", "contributing.md": "CONTRIBUTING.md"}


def on_files(files: Files, config: Any) -> Files:
    """Adds the pages, and the measurements that pages link to."""
    for page, source in COPIED.items():
        files.append(File.generated(config, page, content=(ROOT / source).read_text().replace("](docs/", "](")))
    files.append(File.generated(config, "reference/commands.md", content=commands()))
    for page, content in configurations():
        files.append(File.generated(config, f"reference/{page}.md", content=content))
    linked = "".join(page.read_text() for page in (ROOT / "docs").glob("*.md"))
    for path in sorted((ROOT / "benchmarks" / "results").rglob("*")):
        name = path.relative_to(ROOT).as_posix()
        if path.suffix == ".png" or (path.suffix == ".md" and f"](../{name})" in linked):
            files.append(File.generated(config, name, abs_src_path=str(path)))
    return files


def on_page_markdown(markdown: str, **_: Any) -> str:
    """On the site, what lies beside docs/ lies in it."""
    return markdown.replace("](../benchmarks/", "](benchmarks/")


def commands() -> str:
    """What `twoview` and `twoview <command> --help` print."""
    overview = printed()
    parts = ["# Commands\n\nWhat each command prints with `--help`.", f"```text\n{overview}```"]
    names = re.findall(r"^  ([a-z]+) {2,}\S", overview, flags=re.MULTILINE)
    parts += [f"## {name}\n\n```text\n{printed(name, '--help')}```" for name in names]
    return "\n\n".join(parts) + "\n"


def printed(*words: str) -> str:
    """What the command `twoview` prints, from this checkout."""
    start = f"import sys; sys.path.insert(0, {str(ROOT / 'ssl')!r}); sys.argv[0] = 'twoview'\n"
    program = [sys.executable, "-c", f"{start}from twoview.commands import main; main()", *words]
    return subprocess.run(program, capture_output=True, text=True, check=True).stdout.strip() + "\n"


def configurations() -> Iterator[tuple[str, str]]:
    """A page for train.yaml and one for each group: every file with its comments."""
    folder = ROOT / "configs"
    keys = re.sub(r"\nhydra:\n.*", "\n", (folder / "train.yaml").read_text(), flags=re.DOTALL)
    yield "train", f"# Keys of train\n\n`configs/train.yaml`: what holds where nothing else is said.\n\n{code(keys)}"
    for group in sorted(path for path in folder.iterdir() if path.is_dir()):
        parts = [f"# {group.name}\n\nWhat `{group.name}=<name>` chooses: the files of `configs/{group.name}/`."]
        for path in sorted(group.glob("*.yaml")):
            about, body = split(path.read_text())
            parts.append(f"## {path.stem}\n\n`{group.name}={path.stem}`: {about}\n\n{code(body)}")
        yield group.name, "\n\n".join(parts)


def split(text: str) -> tuple[str, str]:
    """The comment at the head of a file as a sentence, and the rest."""
    lines = text.splitlines()
    head = next((i for i, line in enumerate(lines) if not line.startswith("#") or line.startswith("# @")), len(lines))
    about = " ".join(line.lstrip("# ") for line in lines[:head])
    return re.sub(r"([<>*_])", r"\\\1", about), "\n".join(lines[head:])


def code(text: str) -> str:
    return f"```yaml\n{text.strip()}\n```\n"
