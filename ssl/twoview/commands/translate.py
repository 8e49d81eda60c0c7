"""Writes another version of every text of a file, by programs that translate or paraphrase."""

import logging
from pathlib import Path
from typing import Literal

from omegaconf import DictConfig

from twoview.cli import schema
from twoview.cli.entry import plain
from twoview.data.table.read import read_table, read_text
from twoview.data.text.versions import APERTIUM, translate
from twoview.errors import UserError
from twoview.run.atomic import save

log = logging.getLogger(__name__)

KEYS = {
    "texts": str | None,
    "text_column": str,
    "out": str,
    "column": str,
    "engine": Literal["apertium", "command"],
    "command": list[str] | None,
}


def translate_command(composed: DictConfig) -> int:
    """`twoview translate`."""
    config = plain(composed)
    schema.check_keys(config, KEYS)
    if not config["texts"]:
        raise UserError("which texts? Name a file of them: texts=train.csv")
    if (config["engine"] == "command") != bool(config["command"]):
        raise UserError("engine=command takes its programs from command=[...], and engine=apertium has its own")
    file, column = Path(config["texts"]).expanduser(), config["text_column"]
    if file.suffix.lower() == ".txt":
        texts = read_text(file).splitlines()
    else:
        table = read_table(file, [column])
        if column not in table:
            raise UserError(f"text_column={column}: the columns of {file} are {', '.join(table)}")
        texts = [str(text) for text in table[column] if text is not None]
    apertium = config["engine"] == "apertium"  # it reads across the ends of lines that have no blank one between them
    programs, between = (APERTIUM, "\n\n") if apertium else (config["command"], "\n")
    out = Path(config["out"]).expanduser()

    def write(text: str) -> None:
        save(out, text, "name another file by out=...")

    new = translate(texts, programs, out, config["column"], between, write)
    log.info("%s new versions; a run takes them by +augment.ops.back._target_=...others.Cached (docs/text.md)", new)
    log.info("written to %s", out)
    return 0
