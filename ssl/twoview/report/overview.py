"""All runs, cards and studies of a folder on one page, sorted by whatever column is asked for: a file, no server."""

import io
import os
from collections.abc import Callable, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

from PIL import Image

from twoview.data.image.pixels import WHITE
from twoview.errors import UserError
from twoview.report.page import Cell, Page, Section
from twoview.report.words import NONE, duration, percent
from twoview.run.folder import VIEWS, read_json
from twoview.run.registry import Run, find_runs

STUDY, CARD, REPORT = "study.json", "card.json", "report.html"
PICTURES = 3  # of a run's first images, in its thumbnail
HEIGHT = 40  # pixels of a thumbnail

Row = tuple[list[Cell], list[Any]]  # cells, and what they are sorted by


def overview(root: Path, out: Path) -> Page:
    """The page of what lies below `root`, with links as they hold from the file `out`. UserError where nothing lies."""
    if not root.is_dir():
        raise UserError(f"there is no folder {root}; name that of your runs: --root runs")
    studies = sorted(path.parent for path in root.rglob(STUDY) if (path.parent / REPORT).is_file())
    cards = sorted(path.parent for path in root.rglob(CARD) if path.with_suffix(".html").is_file())
    apart = set(studies)
    runs = [run for run in _runs(root) if not apart & set(run.folder.parents)]
    if not (runs or cards or studies):
        raise UserError(f"there is no run, card or study below {root}; name the folder of your runs: --root runs")
    link = _links(out)
    page = Page(
        "Runs", f"{root} · {datetime.now().astimezone():%Y-%m-%d %H:%M}", "Runs of a study stand in its report."
    )
    page.numbers([(str(len(found)), name) for found, name in ((runs, "runs"), (cards, "cards"), (studies, "studies"))])
    if runs:
        head = ["run", "views", "method", "data", "epochs", "loss", "kNN (%)", "linear (%)", "time", "began", "state"]
        _table(page.section("Runs"), head, "lcllrrrrrll", [_run(run, root, link) for run in runs], by=9)
    if cards:
        head = ["card", "method", "data", "network", "linear (%)", "kNN (%)", "made"]
        _table(page.section("Cards"), head, "llllrrl", [_card(folder, root, link) for folder in cards], by=4)
    if studies:
        head = ["study", "varies", "data", "arms", "seeds", "epochs", "started"]
        _table(page.section("Studies"), head, "lllrrrl", [_study(folder, root, link) for folder in studies], by=6)
    return page


def _runs(root: Path) -> list[Run]:
    try:
        return find_runs(root)
    except UserError as error:
        if "there is no run below" in str(error):
            return []
        raise


def _links(out: Path) -> Callable[[Path], str]:
    """Addresses of files as they are reached from `out`."""

    def link(path: Path) -> str:
        from urllib.parse import quote

        return quote(Path(os.path.relpath(path, out.parent)).as_posix())

    return link


def _table(section: Section, head: list[str], align: str, rows: list[Row], by: int) -> None:
    section.sortable(head, [cells for cells, _ in rows], [keys for _, keys in rows], align, by)


def _run(run: Run, root: Path, link: Callable[[Path], str]) -> Row:
    found, summary = run.row(), run.summary
    loss, chance = summary.get("loss"), summary.get("chance_loss")
    began = str(found["began"] or "")
    method = _short(run.config.get("model"))
    data = _data(run.config.get("data"))
    seconds = found["seconds"]
    views = run.folder / VIEWS
    cells = [
        Cell(_name(run.folder, root), str(found["name"] or ""), link=link(run.folder) + "/"),
        Cell("", picture=thumbnail(views), link=link(views)) if views.is_file() else Cell(NONE),
        Cell(method, _short(run.config.get("encoder"))),
        Cell(data),
        Cell(_number(found["epochs"], "{:g}")),
        Cell(_number(loss, "{:.3f}"), f"chance {chance:.3f}" if isinstance(chance, float) else ""),
        Cell(percent(found["knn"])),
        Cell(percent(found["linear"])),
        Cell(duration(seconds) if isinstance(seconds, int | float) else NONE),
        Cell(began[:16].replace("T", " ")),
        Cell(found["status"], mark="" if found["status"] == "finished" else "bad"),
    ]
    keys = [cells[0].text, None, method, data, found["epochs"], loss, found["knn"], found["linear"], seconds, began]
    return cells, [*keys, found["status"]]


def _card(folder: Path, root: Path, link: Callable[[Path], str]) -> Row:
    content = read_json(folder / CARD)
    linear, knn = (_top1(content.get(name)) for name in ("linear", "knn"))
    texts = [str(content.get(key) or "") for key in ("method", "data", "network")]
    made = str(content.get("made") or "")
    cells = [
        Cell(_name(folder, root), str(content.get("name") or ""), link=link(folder / "card.html")),
        *map(Cell, texts),
        Cell(percent(linear)),
        Cell(percent(knn)),
        Cell(made[:16].replace("T", " ")),
    ]
    return cells, [cells[0].text, *texts, linear, knn, made]


def _study(folder: Path, root: Path, link: Callable[[Path], str]) -> Row:
    content = read_json(folder / STUDY)
    arms, seeds = (len(content.get(key) or []) for key in ("arms", "seeds"))
    axes = content.get("axes")
    varied = (
        ", ".join(str(axis.get("key", "")) for axis in axes if isinstance(axis, dict)) if isinstance(axes, list) else ""
    )
    started = str(content.get("started") or "")
    cells = [
        Cell(_name(folder, root), str(content.get("title") or ""), link=link(folder / REPORT)),
        Cell(varied),
        Cell(str(content.get("data") or "")),
        Cell(str(arms)),
        Cell(str(seeds)),
        Cell(_number(content.get("epochs"), "{:g}")),
        Cell(started[:16].replace("T", " ")),
    ]
    return cells, [cells[0].text, varied, cells[2].text, arms, seeds, content.get("epochs"), started]


def thumbnail(path: Path) -> bytes:
    """The first images of a sheet of views, each above its views: a PNG; empty where the file is none."""
    try:
        with Image.open(path) as sheet:
            image = sheet.convert("RGB")
    except OSError:
        return b""
    side = round(image.width / 16)  # as `twoview.watch.views` lays them out
    image = image.crop((0, 0, min(image.width, PICTURES * side), image.height))
    image.thumbnail((WHITE, 3 * HEIGHT))
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


def _name(folder: Path, root: Path) -> str:
    return folder.relative_to(root).as_posix() if folder != root else folder.name


def _short(section: Any) -> str:
    """What a section of the configuration builds."""
    return str(section.get("_target_", "")).rpartition(".")[2] if isinstance(section, Mapping) else ""


def _data(section: Any) -> str:
    if not isinstance(section, Mapping):
        return ""
    place = str(section.get("root") or "").rstrip("/").rpartition("/")[2]
    return _short(section) + (f" {place}" if place else "")


def _top1(entry: Any) -> float | None:
    own = entry.get("run") if isinstance(entry, Mapping) else None
    top1 = own.get("top1") if isinstance(own, Mapping) else None
    return top1 if isinstance(top1, float) else None


def _number(value: Any, form: str) -> str:
    return form.format(value) if isinstance(value, int | float) else NONE
