"""The report of a study as Markdown, for places that show no page."""

from collections.abc import Mapping, Sequence
from re import sub

from twoview.ablate import words
from twoview.ablate.figures import Drawing
from twoview.ablate.results import Study
from twoview.report.page import Cell


def markdown(study: Study, pictures: Mapping[Drawing, str]) -> str:
    """`pictures`: the files of the drawings beside it, the main one first."""
    main, *others = pictures
    parts = [f"# {escape(str(study.settings['title']))}"]
    parts += [escape(sentence) for sentence in words.headline(study)]
    parts += [f"> {escape(caveat)}" for caveat in words.caveats(study)]
    parts += [f"![{escape(main.alt)}]({pictures[main]})", escape(main.caption)]
    parts += [_table(*words.arms_table(study)), escape(words.TABLE_NOTE)]
    parts += [f"- {escape(run.arm)}, seed {run.seed}: {escape(words.error(run.facts))}" for run in study.failed]
    if others:
        parts.append("## Why")
    for drawing in others:
        parts += [escape(drawing.lead), f"![{escape(drawing.alt)}]({pictures[drawing]})", escape(drawing.caption)]
    if found := words.decode_table(study):
        parts += ["Which transform was applied, as a linear probe reads it, in percent:", _table(*found)]
    parts += ["## How it ran", *(f"- {what}: {escape(text)}" for what, text in words.environment(study))]
    if protocol := study.settings.get("protocol"):
        parts.append(f"- protocol: {escape(str(protocol))}")
    if command := study.settings.get("command"):
        parts += ["The whole study:", _block([str(command)])]
    lines = [line for arm in study.settings["arms"] for line in words.commands(study, arm)]
    parts += ["Each run by itself:", _block(lines)]
    return "\n\n".join(parts) + "\n"


def escape(text: str) -> str:
    """Text that Markdown shows as it is, on one line."""
    line = " ".join(text.split()).replace("&", "&amp;").replace("<", "&lt;")
    return sub(r"([\\`*_\[\]|#~>$])", r"\\\1", line)


def _block(lines: Sequence[str]) -> str:
    return "\n".join(f"    {part}" for line in lines for part in line.splitlines())


def _table(header: Sequence[str | Cell], rows: Sequence[Sequence[Cell]], align: str) -> str:
    def line(cells: Sequence[str | Cell]) -> str:
        texts = [cell if isinstance(cell, str) else f"{cell.text} {cell.note}" for cell in cells]
        return f"| {' | '.join(escape(text) for text in texts)} |"

    rule = f"| {' | '.join('---:' if letter == 'r' else '---' for letter in align)} |"
    return "\n".join([line(header), rule, *map(line, rows)])
