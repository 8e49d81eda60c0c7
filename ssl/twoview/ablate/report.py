"""The report of a study: a page that a person would rather look at than a table, and the table for a program."""

import shlex
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from re import sub
from statistics import fmean, median
from typing import Any

from twoview.ablate import figures
from twoview.ablate.figures import HEADLINES, Drawing, in_points
from twoview.ablate.results import Study, as_csv, as_parquet, read, tidy
from twoview.ablate.statistics import Difference, Interval
from twoview.page import Cell, Page, Section, render, save

NONE = "–"
VERDICTS = {"better": "good", "worse": "bad"}


def write(folder: Path | str) -> dict[str, Path]:
    """Writes `report.html`, `report.md`, `results.csv`, `results.parquet` (with pyarrow) and the pictures into the
    folder of a study, whole or half done, and returns the paths: `html`, `md`, `csv`, `parquet`, `png` (the main
    picture) and one per further picture. UserError where there is nothing to report (`twoview.ablate.results.read`),
    or no place to write to.
    """
    folder = Path(folder)
    study, written = read(folder), {}

    def put(key: str, name: str, content: str | bytes) -> None:
        written[key] = folder / name
        save(written[key], content)

    rows = tidy(study)
    put("csv", "results.csv", as_csv(rows))
    if (table := as_parquet(rows)) is not None:
        put("parquet", "results.parquet", table)
    main, *others = drawings = [figures.accuracy(study), *_reasons(study)]
    names = {drawing: file_name(main.name, "" if drawing is main else drawing.name) for drawing in drawings}
    for drawing in drawings:
        put("png" if drawing is main else drawing.name, names[drawing], render(drawing.draw))
    put("md", "report.md", markdown(study, names))
    put("html", "report.html", page(study, main, others).html())
    return written


def file_name(study: str, what: str = "") -> str:
    """Of a picture. A study may have any name, a file may not."""
    stem = sub(r"[^A-Za-z0-9_-]+", "_", study).strip("_")[:60] or "study"
    return f"{stem}{'_' * bool(what)}{what}.png"


def _reasons(study: Study) -> list[Drawing]:
    """The pictures that tell why, as far as their numbers are there."""
    kinds: dict[str, Callable[[Study], Drawing]] = {
        "invariance": figures.invariance,
        "factors": figures.factors,
        "quality": figures.quality,
        "pretext": figures.pretext,
    }
    return [draw(study) for what, draw in kinds.items() if study.names(what)]


# In words


def percent(share: float | None, digits: int = 1) -> str:
    return NONE if share is None else f"{share * 100:.{digits}f}"


def between(interval: Interval | Difference, text: Callable[[float], str]) -> str:
    if interval.low is None or interval.high is None:
        return ""
    return f"[{text(interval.low)}, {text(interval.high)}]"


def listed(names: Sequence[str], most: int = 6) -> str:
    shown = [*names[:most], f"{len(names) - most} more"] if len(names) > most else list(names)
    return " and ".join([", ".join(shown[:-1]), shown[-1]] if len(shown) > 1 else shown)


def headline(study: Study) -> str:
    """The answer, in two or three sentences."""
    means, differences, home = study.means, study.differences, study.reference
    best = max(means, key=lambda arm: means[arm])
    if len(means) == 1:
        return f"One arm has finished: {best} reaches {percent(means[best])} % ({HEADLINES[study.headline]})."
    interval = between(study.intervals[best], percent)
    shown = f"{percent(means[best])} %{' ' * bool(interval)}{interval}"
    text = f"{best} is the best of {len(means)} arms on average: {shown} ({HEADLINES[study.headline]})."
    if not differences:
        return text
    if all(d.p_corrected is None for d in differences.values()):
        worst = min(differences, key=lambda arm: means[arm])
        gap = in_points(means[worst] - means[best])
        return f"{text} The arms span {gap.lstrip('−+')} points, but what the noise of the seeds is cannot be told."
    parts = [f"Against {home}, "]
    for verdict in ("better", "worse"):
        found = sorted(
            (a for a, d in differences.items() if d.verdict == verdict), key=lambda a: -abs(means[a] - means[home])
        )
        if found:
            told = [
                f"{arm} ({in_points(differences[arm].mean or 0)} {between(differences[arm], in_points)})"
                for arm in found
            ]
            parts.append(f"{verdict} by more than the noise of the seeds: {listed(told, 3)}; ")
    quiet = [arm for arm, d in differences.items() if d.verdict not in VERDICTS]
    if len(quiet) == len(differences):
        parts.append("no arm differs by more than the noise of the seeds.")
    elif quiet:
        parts.append(f"within the noise: {listed(quiet, 4)}.")
    return f"{text} {''.join(parts).rstrip('; ').rstrip('.')}" + (
        "" if quiet and False else " points." if False else "."
    )


def caveats(study: Study) -> list[str]:
    """What a reader must know before believing the numbers."""
    told = []
    if study.missing or study.failed:
        text = f"Incomplete: {len(study.finished)} of {len(study.planned)} runs have finished."
        if study.missing:
            text += f" Not run yet: {listed([f'{arm} (seed {seed})' for arm, seed in study.missing])}."
        if study.failed:
            text += f" Failed: {listed([f'{run.arm} (seed {run.seed})' for run in study.failed])}; see below."
        told.append(text)
    if len(study.settings["seeds"]) == 1:
        told.append(
            "One seed: no interval can be given, and no difference can be told from the noise of the seeds. "
            "Three seeds or more can."
        )
    if study.reference not in study.means:
        told.append(f"The reference, {study.reference}, has no finished run: nothing can be compared with it yet.")
    return told


def _p(p: float | None) -> str:
    return NONE if p is None else "< 0.001" if p < 0.001 else f"{p:.3f}"


def table(study: Study) -> tuple[list[str | Cell], list[list[Cell]], str]:
    """The arms: header, rows and alignment."""
    header: list[str | Cell] = [
        "arm", "seeds", Cell("linear probe, %", "mean [95 %]"), "kNN, %", Cell("difference, points", "paired [95 %]"),
        Cell("detectable", "points"), Cell("p", "corrected"), "verdict",
    ]  # fmt: skip
    if study.headline == "knn.top1":
        header[2], header[3] = Cell("kNN, %", "mean [95 %]"), "linear, %"
    other = "linear.top1" if study.headline == "knn.top1" else "knn.top1"
    best = max(study.means, key=lambda arm: study.means[arm])
    rows = []
    for arm in study.settings["arms"]:
        if arm not in study.means:
            failed = any(run.arm == arm for run in study.failed)
            rows.append(
                [
                    Cell(arm, mark="pale"),
                    *[Cell(NONE, mark="pale")] * 6,
                    Cell("failed" if failed else "not run", mark="pale"),
                ]
            )
            continue
        score, difference = study.intervals[arm], study.differences.get(arm)
        cells = [
            Cell(arm),
            Cell(str(score.n)),
            Cell(percent(study.means[arm]), between(score, percent), "best" if arm == best else ""),
            Cell(percent(study.mean(arm, other))),
        ]
        if difference is None:
            cells += [Cell(NONE)] * 3 + [Cell("the reference" if arm == study.reference else NONE, mark="pale")]
        else:
            cells += [
                Cell(in_points(difference.mean or 0.0), between(difference, in_points)),
                Cell(percent(difference.detectable)),
                Cell(_p(difference.p_corrected)),
                Cell(difference.verdict, mark=VERDICTS.get(difference.verdict, "")),
            ]
        rows.append(cells)
    return header, rows, "lrrrrrrl"


TABLE_NOTE = (
    "Intervals hold 95 %. Differences are paired by seed. Detectable: the smallest true difference that this study "
    "finds in 80 of 100 cases. p is corrected for the number of arms compared, and decides the verdict (below 0.05)."
)


def decodable(study: Study) -> tuple[list[str | Cell], list[list[Cell]], str] | None:
    """Which transform was applied, as a linear probe reads it from h and from z."""
    questions = study.names("decode")
    if not questions:
        return None
    header: list[str | Cell] = ["arm"]
    for name in questions:
        fact = study.fact("decode", name)
        header += [Cell(f"{name}, h", f"chance {percent(fact.get('chance'), 0)}"), Cell("z")]
    rows = [
        [
            Cell(arm),
            *(
                Cell(percent(study.mean(arm, f"decode.{q}.{s}")), mark="pale" * (s == "z"))
                for q in questions
                for s in "hz"
            ),
        ]
        for arm in study.arms
    ]
    return header, rows, "l" + "rr" * len(questions)


# The page


def page(study: Study, main: Drawing, others: Sequence[Drawing]) -> Page:
    settings = study.settings
    seeds = len(settings["seeds"])
    about = [str(settings.get("data", "")), f"{len(settings['arms'])} arms", f"{seeds} seed{'s' * (seeds > 1)}"]
    if settings.get("epochs") is not None:
        about.append(f"{settings['epochs']} epochs")
    if settings.get("started"):
        about.append(str(settings["started"])[:16].replace("T", " "))
    report = Page(str(settings["title"]), " · ".join(part for part in about if part), str(settings.get("protocol", "")))
    report.lead(headline(study))
    for caveat in caveats(study):
        report.notice(caveat)
    report.figure(main.draw, main.alt, main.caption)
    report.numbers(_numbers(study))
    section = report.section("Arms and verdicts")
    section.table(*table(study), caption=TABLE_NOTE)
    if study.failed:
        section.paragraph("Failed:")
        section.table(["arm", "seed", "error"], [[r.arm, str(r.seed), _error(r.facts)] for r in study.failed], "lrl")
    views = [(data, arm) for arm in study.arms if (data := _views(study, arm))]
    if views:
        section = report.section("What the views look like")
        section.paragraph("Pairs of views of the same images, as each arm's encoder was trained on them.")
        section.images(views, "Views")
    if others or study.names("decode"):
        _why(report.section("Why"), study, {drawing.name: drawing for drawing in others})
    _cost(report.section("Cost"), study)
    _commands(report.section("Commands"), study)
    return report


def _numbers(study: Study) -> list[tuple[str, str]]:
    numbers = [(f"{percent(max(study.means.values()))} %", f"best arm, {HEADLINES[study.headline]}")]
    if study.reference in study.means:
        numbers.append((f"{percent(study.means[study.reference])} %", f"the reference, {study.reference}"))
    detectable = [d.detectable for d in study.differences.values() if d.detectable is not None]
    if detectable:
        numbers.append((f"{percent(median(detectable))} points", "smallest difference that could be detected"))
    seconds = sum(
        run.metrics.get(f"cost.{what}_seconds", 0.0) for run in study.finished for what in ("training", "evaluation")
    )
    if seconds:
        numbers.append((_time(seconds), f"computing, {len(study.finished)} of {len(study.planned)} runs"))
    return numbers


def _time(seconds: float) -> str:
    minutes = round(seconds / 60)
    return (
        f"{seconds:.0f} s"
        if seconds < 100
        else f"{minutes} min"
        if minutes < 100
        else f"{minutes // 60} h {minutes % 60:02} min"
    )


def _error(facts: Mapping[str, Any]) -> str:
    text = " ".join(str(facts.get("error") or "unknown").split())
    return text if len(text) <= 400 else text[:399] + "…"


def _views(study: Study, arm: str) -> bytes | None:
    for run in study.of(arm):
        try:
            data = (run.folder / "views.png").read_bytes()
        except OSError:
            continue
        if data.startswith(b"\x89PNG"):
            return data
    return None


WHY = {
    "invariance": "What each encoder ignores: the flatter the curve, the less it sees of the transform.",
    "factors": "What each encoder knows about an image, and what it has forgotten.",
    "quality": "How close the two views of an image lie, and how evenly all images spread.",
    "pretext": "A pretext task that is solved more often is not a better representation.",
}


def _why(section: Section, study: Study, drawings: Mapping[str, Drawing]) -> None:
    if drawings and len(study.arms) > figures.MOST:
        section.paragraph(
            f"Drawn in colour: {listed(figures.few(study), figures.MOST)}. The files beside hold all arms."
        )
    for name, drawing in drawings.items():
        section.paragraph(WHY[name])
        section.figure(drawing.draw, drawing.alt, drawing.caption)
        if name == "invariance":
            _decodable(section, study)
    if "invariance" not in drawings:
        _decodable(section, study)


def _decodable(section: Section, study: Study) -> None:
    if found := decodable(study):
        section.paragraph("Which transform was applied, as a linear probe reads it from h and from z, in percent.")
        what = "; ".join(f"{q}: {study.fact('decode', q).get('what', q)}" for q in study.names("decode"))
        section.table(*found, caption=f"What is asked: {what}.")


def _cost(section: Section, study: Study) -> None:
    rows = []
    for arm in study.arms:
        training, evaluation, rate = (
            study.mean(arm, f"cost.{what}") for what in ("training_seconds", "evaluation_seconds", "images_per_second")
        )
        cells = [NONE if x is None else _time(x) for x in (training, evaluation)]
        rows.append([arm, *cells, NONE if rate is None else f"{rate:,.0f}"])
    section.table(["arm", "training", "evaluation", "images/s"], rows, "lrrr", "Means over the seeds, for one run.")
    facts = [[what, text] for what, text in environment(study) if text]
    if facts:
        section.table(["what", "where it ran"], facts)


def environment(study: Study) -> list[tuple[str, str]]:
    """Machine, versions and commit; several where the runs differ."""

    def found(what: str) -> str:
        told = (run.facts.get(what) for run in study.finished)
        return " / ".join(dict.fromkeys(_plain(x) for x in told if x))

    return [(what, found(what)) for what in ("machine", "versions", "commit")]


def _plain(x: Any) -> str:
    return ", ".join(f"{k} {v}" for k, v in x.items() if v is not None) if isinstance(x, Mapping) else str(x)


def _commands(section: Section, study: Study) -> None:
    if study.settings.get("command"):
        section.paragraph("The whole study:")
        section.code(str(study.settings["command"]))
    section.paragraph("Each run by itself:")
    for arm in study.settings["arms"]:
        if lines := commands(study, arm):
            section.code("\n".join(lines), arm)


def commands(study: Study, arm: str) -> list[str]:
    return [_command(run.facts) for key in study.planned if key[0] == arm and (run := study.runs.get(key))]


def _command(facts: Mapping[str, Any]) -> str:
    return str(facts.get("command") or shlex.join(["python", "train.py", *map(str, facts.get("words") or [])]))


# Markdown


def markdown(study: Study, pictures: Mapping[Drawing, str]) -> str:
    """The report for a place that shows Markdown: `pictures` by their files."""
    main, *others = pictures
    parts = [f"# {escape(str(study.settings['title']))}", escape(headline(study))]
    parts += [f"> {escape(caveat)}" for caveat in caveats(study)]
    parts += [
        f"![{escape(main.alt)}]({pictures[main]})",
        escape(main.caption),
        _markdown_table(*table(study)),
        TABLE_NOTE,
    ]
    parts += [f"- {escape(run.arm)}, seed {run.seed}: {escape(_error(run.facts))}" for run in study.failed]
    if others:
        parts.append("## Why")
    for drawing in others:
        parts += [WHY[drawing.name], f"![{escape(drawing.alt)}]({pictures[drawing]})", escape(drawing.caption)]
    if found := decodable(study):
        parts += ["Which transform was applied, as a linear probe reads it, in percent:", _markdown_table(*found)]
    parts += ["## How it ran", *(f"- {what}: {escape(text)}" for what, text in environment(study) if text)]
    parts += [_block(str(study.settings.get("command") or "")), "Each run by itself:"]
    parts += [_block("\n".join(line for arm in study.settings["arms"] for line in commands(study, arm)))]
    return "\n\n".join(part for part in parts if part) + "\n"


def escape(text: str) -> str:
    """Text that Markdown shows as it is, on one line."""
    line = " ".join(text.split()).replace("&", "&amp;").replace("<", "&lt;")
    return sub(r"([\\`*_{}\[\]|#~>$])", r"\\\1", line)


def _block(code: str) -> str:
    return "\n".join(f"    {line}" for line in code.splitlines())


def _markdown_table(header: Sequence[str | Cell], rows: Sequence[Sequence[Cell]], align: str) -> str:
    def cell(content: str | Cell) -> str:
        text, note, _ = content if isinstance(content, Cell) else Cell(content)
        return escape(f"{text} {note}")

    lines = [
        [cell(c) for c in header],
        ["---:" if a == "r" else "---" for a in align],
        *([cell(c) for c in r] for r in rows),
    ]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
