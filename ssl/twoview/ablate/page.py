"""The report of a study as files: a page for people, tables for programs, and a PNG of each figure."""

from collections.abc import Sequence
from pathlib import Path
from re import sub
from statistics import fmean, median

from twoview.ablate import figures, findings
from twoview.ablate.explanations import explanations
from twoview.ablate.figures import Chart
from twoview.ablate.markdown import markdown
from twoview.ablate.results import HEADLINE, Results, as_csv, as_json, as_parquet, read, tidy
from twoview.errors import listed
from twoview.report.page import Page, Section
from twoview.report.theme import render
from twoview.report.words import NONE, duration, percent
from twoview.run.atomic import save
from twoview.run.folder import VIEWS

KEPT = "views"  # in the folder of a study: a sheet of each arm, by its number


def write(folder: Path | str) -> dict[str, Path]:
    """Writes `report.html`, `report.md`, `results.csv`, `results.parquet` (with pyarrow), `runs.json` and the figures
    into the folder of a study, finished or not. Returns the paths: `html`, `md`, `csv`, `parquet`, `runs`, `png` (the
    main figure) and one per further figure.

    From `study.json`, `runs.json` and the pictures in `views/` all of it can be written again, without the runs.
    UserError where there is nothing to report (`twoview.ablate.results.read`), or no place to write to.
    """
    folder = Path(folder)
    study = read(folder)
    main, *others = charts = [figures.accuracy(study), *explanations(study)]
    names = {chart: file_name(study, "" if chart is main else chart.name) for chart in charts}
    rows = tidy(study)
    contents: dict[str, tuple[str, str | bytes | None]] = {
        "runs": ("runs.json", as_json(study)),
        "csv": ("results.csv", as_csv(rows)),
        "parquet": ("results.parquet", as_parquet(rows)),
        "md": ("report.md", markdown(study, names)),
        "html": ("report.html", page(study, main, others, folder).html()),
    }
    for chart in charts:
        contents["png" if chart is main else chart.name] = names[chart], render(chart.plot)
    for n, arm in enumerate(study.arms):
        if data := _views(study, folder, arm):
            (folder / KEPT).mkdir(exist_ok=True)
            save(folder / KEPT / f"{n}.png", data)
    written = {key: folder / name for key, (name, content) in contents.items() if content is not None}
    for key, path in written.items():
        save(path, contents[key][1] or "")
    return written


def file_name(study: Results, what: str = "") -> str:
    """The name of a figure's file: a study may have any name, a file may not."""
    stem = sub(r"[^A-Za-z0-9_-]+", "_", str(study.settings["name"])).strip("_")[:60] or "study"
    return f"{stem}_{what}.png" if what else f"{stem}.png"


def page(study: Results, main: Chart, others: Sequence[Chart], folder: Path) -> Page:
    settings = study.settings
    seeds, epochs = len(settings["seeds"]), settings.get("epochs")
    about = [str(settings.get("data") or ""), f"{len(settings['arms'])} arms", f"{seeds} seed{'s' * (seeds > 1)}"]
    if epochs is not None:
        about.append(f"{epochs} epoch{'s' * (epochs != 1)}")
    about.append(str(settings.get("started") or "")[:10])
    foot = f"Protocol: {settings['protocol']}." if settings.get("protocol") else ""
    report = Page(str(settings["title"]), " · ".join(part for part in about if part), foot)
    lead, *sentences = findings.headline(study)
    report.lead(lead)
    for sentence in sentences:
        report.paragraph(sentence)
    for caveat in findings.caveats(study):
        report.notice(caveat)
    report.figure(main.plot, main.alt, main.caption)
    report.numbers(_numbers(study))
    section = report.section("Arms and verdicts")
    header, rows, align = findings.arms_table(study)
    section.table(header, rows, align, findings.TABLE_NOTE)
    if study.failed:
        section.paragraph("What failed, and why:")
        failed = [[run.arm, str(run.seed), findings.error(run.result)] for run in study.failed]
        section.table(["arm", "seed", "error"], failed, "lrl")
    views = [(data, arm) for arm in study.arms if (data := _views(study, folder, arm))]
    if views:
        section = report.section("What the views look like")
        section.paragraph("Images, and below each its two views as the arm makes them.")
        section.images(views, "Views")
    if others or study.names("decode"):
        _why(report.section("Why"), study, others)
    _cost(report.section("Cost"), study)
    _commands(report.section("Commands"), study)
    return report


def _numbers(study: Results) -> list[tuple[str, str]]:
    first, home = findings.best(study), study.reference
    own, reference = (study.values(HEADLINE).get(arm, {}) for arm in (first, home))
    common = own.keys() & reference.keys() or own.keys()
    some = "" if own.keys() == reference.keys() else f", {len(common)} seed{'s' * (len(common) > 1)} in common"
    numbers = [(percent(fmean(own[s] for s in common), unit="%"), f"{first}, linear probe")]
    if first in study.differences:
        numbers.append((percent(fmean(reference[s] for s in common), unit="%"), f"{home}, the reference{some}"))
    elif study.differences:
        span = -min(d.mean or 0.0 for d in study.differences.values())
        numbers.append((percent(span, unit="points"), "from the worst arm to the best"))
    detectable = [d.detectable for d in study.differences.values() if d.detectable is not None]
    if detectable:
        numbers.append((percent(median(detectable), unit="points"), "smallest difference that could be detected"))
    parts = ("cost.training_seconds", "cost.evaluation_seconds")
    seconds = sum(run.metrics.get(part, 0.0) for run in study.finished for part in parts)
    if seconds:
        numbers.append((duration(seconds), f"of computing, {len(study.finished)} of {len(study.planned)} runs"))
    return numbers


def _views(study: Results, folder: Path, arm: str) -> bytes | None:
    """The sheet of a run of the arm; of runs that are gone, the one that an earlier report kept."""
    kept = folder / KEPT / f"{study.arms.index(arm)}.png"
    for path in (*(run.folder / VIEWS for run in study.of(arm)), kept):
        try:
            data = path.read_bytes()
        except OSError:
            continue
        if data.startswith(b"\x89PNG"):
            return data
    return None


def _why(section: Section, study: Results, charts: Sequence[Chart]) -> None:
    if charts and len(study.arms) > figures.MOST:
        section.paragraph(
            f"In colour: {listed(figures.few(study), figures.MOST)}. results.csv has the numbers of all arms."
        )
    for chart in charts:
        section.paragraph(chart.lead)
        section.figure(chart.plot, chart.alt, chart.caption)
    if found := findings.decode_table(study):
        section.paragraph("Which transform was applied, as a linear probe reads it from h and from z, in percent.")
        asked = [f"{name}: {study.entry('decode', name).get('what', name)}" for name in study.names("decode")]
        section.table(*found, caption=f"What is asked: {'; '.join(asked)}. Means over the seeds.")


def _cost(section: Section, study: Results) -> None:
    rows = []
    for arm in study.arms:
        names = ("training_seconds", "evaluation_seconds", "images_per_second")
        training, evaluation, rate = (study.mean(arm, f"cost.{name}") for name in names)
        times = [NONE if x is None else duration(x) for x in (training, evaluation)]
        rows.append([arm, *times, NONE if rate is None else f"{rate:,.0f}"])
    section.table(["arm", "training", "evaluation", "images/s"], rows, "lrrr", "Of one run; means over the seeds.")
    for what, where in findings.environment(study):
        section.paragraph(f"{what.capitalize()}: {where}.")


def _commands(section: Section, study: Results) -> None:
    if command := study.settings.get("command"):
        section.paragraph("The whole study:")
        section.code(str(command))
    section.paragraph("Each run by itself:")
    for arm in study.settings["arms"]:
        if lines := findings.commands(study, arm):
            section.code("\n".join(lines), arm)
