"""The report of a study as Markdown, for places that show no page."""

from collections.abc import Mapping, Sequence
from re import sub

from twoview.ablate import findings
from twoview.ablate.figures import Chart
from twoview.ablate.results import Results
from twoview.report.page import Cell


def markdown(study: Results, files: Mapping[Chart, str]) -> str:
    """`files`: the names of the figures beside it, the main one first."""
    main, *others = files
    parts = [f"# {escape(str(study.settings['title']))}"]
    parts += [escape(sentence) for sentence in findings.headline(study)]
    parts += [f"> {escape(caveat)}" for caveat in findings.caveats(study)]
    parts += [f"![{escape(main.alt)}]({files[main]})", escape(main.caption)]
    parts += [_table(*findings.arms_table(study)), escape(findings.TABLE_NOTE)]
    parts += [f"- {escape(run.arm)}, seed {run.seed}: {escape(findings.error(run.result))}" for run in study.failed]
    if others:
        parts.append("## Why")
    for chart in others:
        parts += [escape(chart.lead), f"![{escape(chart.alt)}]({files[chart]})", escape(chart.caption)]
    if found := findings.decode_table(study):
        parts += ["Which transform was applied, as a linear probe reads it, in percent:", _table(*found)]
    parts += ["## How it ran", *(f"- {what}: {escape(where)}" for what, where in findings.environment(study))]
    if protocol := study.settings.get("protocol"):
        parts.append(f"- protocol: {escape(str(protocol))}")
    if command := study.settings.get("command"):
        parts += ["The whole study:", _block([str(command)])]
    lines = [line for arm in study.settings["arms"] for line in findings.commands(study, arm)]
    parts += ["Each run by itself:", _block(lines)]
    return "\n\n".join(parts) + "\n"


def escape(plain: str) -> str:
    """Text that Markdown shows as it is, on one line."""
    line = " ".join(plain.split()).replace("&", "&amp;").replace("<", "&lt;")
    return sub(r"([\\`*_\[\]|#~>$])", r"\\\1", line)


def _block(lines: Sequence[str]) -> str:
    return "\n".join(f"    {part}" for line in lines for part in line.splitlines())


def _table(header: Sequence[str | Cell], rows: Sequence[Sequence[Cell]], align: str) -> str:
    def line(cells: Sequence[str | Cell]) -> str:
        texts = [cell if isinstance(cell, str) else f"{cell.text} {cell.note}" for cell in cells]
        return f"| {' | '.join(escape(part) for part in texts)} |"

    rule = f"| {' | '.join('---:' if letter == 'r' else '---' for letter in align)} |"
    return "\n".join([line(header), rule, *map(line, rows)])
