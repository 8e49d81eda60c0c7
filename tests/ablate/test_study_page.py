"""Reports of made-up studies of every kind, whole, half done, and hostile."""

import csv
import itertools
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("jinja2")
pytest.importorskip("matplotlib")
pytest.importorskip("scipy")

from twoview.ablate import figures, findings
from twoview.ablate import page as study_page
from twoview.ablate.explanations import explanations
from twoview.ablate.figures import MOST, few
from twoview.ablate.markdown import escape
from twoview.ablate.results import flat, read, tidy
from twoview.errors import UserError
from twoview.report import page
from twoview.report import theme as themes
from twoview.report.words import in_points, percent
from twoview.run.identity import BESIDE

PNG = b"\x89PNG\r\n\x1a\n made up"
NOISE = (0.004, -0.003, 0.001, 0.0, -0.002)  # of a seed, common to all arms
Place = dict[str, Any]


def study(
    folder: Path,
    arms: dict[str, tuple[Place, float]],
    kind: str = "curve",
    axes: dict[str, list[Any]] | None = None,
    reference: str | None = None,
    seeds: int = 3,
    failed: tuple[tuple[str, int], ...] = (),
    missing: tuple[tuple[str, int], ...] = (),
    change: Callable[[dict[str, Any]], None] = lambda result: None,
    **settings: Any,
) -> Path:
    """A study whose `arms` have places and true accuracies; `change` is called with each result before it is saved."""
    axes = axes or {"augment.strength": [place["augment.strength"] for place, _ in arms.values()]}
    about = {
        "name": "strength", "title": "Strength", "kind": kind,
        "axes": [{"key": key, "label": f"label of {key}", "values": values} for key, values in axes.items()],
        "reference": reference or next(iter(arms)), "arms": list(arms), "seeds": list(range(seeds)), "epochs": 2,
        "protocol": "linear probe", "protocol_hash": "abc", "metric": "linear", "words": [], "data": "shapes",
        "command": "python scripts/ablate_augment.py study=strength", "classes": 10, "chance": 0.1,
        "started": "2026-01-01T10:00:00", "budget_minutes": None,
    }  # fmt: skip
    folder.mkdir(exist_ok=True)
    (folder / "study.json").write_text(json.dumps(about | settings))
    for number, (arm, (place, accuracy)) in enumerate(arms.items()):
        for seed in range(seeds):
            if (arm, seed) in missing:
                continue
            top1 = accuracy + NOISE[seed] + 0.0005 * ((7 * number + 3 * seed * (number + 1)) % 5 - 2)
            result: dict[str, Any] = {
                "arm": arm, "seed": seed, "place": place, "hash": f"{number:06}{seed:06}", "status": "finished",
                "error": None, "words": [f"seed={seed}"], "command": f"python train.py seed={seed} # {number}",
                "protocol": "linear probe", "protocol_hash": "abc",
            }  # fmt: skip
            if (arm, seed) in failed:
                result |= {"status": "failed", "error": "the loss is <NaN>"}
            else:
                result |= metrics(top1)
            change(result)
            run = folder / "arms" / f"{number:06}{seed:06}"
            run.mkdir(parents=True, exist_ok=True)
            (run / "result.json").write_text(json.dumps(result))
            (run / "views.png").write_bytes(PNG)
    return folder


def metrics(top1: float) -> dict[str, Any]:
    curve = {"unit": "degrees", "levels": [0, 0.5, 1], "h": [1, 0.8, 0.6], "z": [1, 0.9, 0.8]}
    return {
        "linear": {"top1": top1, "interval": [top1 - 0.01, top1 + 0.01]},
        "knn": {"top1": top1 - 0.05},
        "pretext": {"loss": 5.0, "chance_loss": 6.9, "accuracy": 0.4},
        "quality": {space: {"alignment": 0.2, "uniformity": -2.0 - top1} for space in "hz"},
        "invariance": {
            "colour": curve | {"reference": {"h": 0.2, "z": 0.5}},
            "crop": curve | {"levels": [1, 0.5, 0.1]},
        },
        "decode": {"rotation": {"h": 0.9, "z": 0.4, "chance": 0.25, "what": "which of 4 angles"}},
        "factors": {
            "hue": {"h": 0.9, "z": -0.1, "chance": 0.0, "kind": "r2"},
            "texture": {"h": 0.8, "z": 0.3, "chance": 0.2, "kind": "accuracy"},
        },
        "cost": {"training_seconds": 60.0, "evaluation_seconds": 5.0, "images_per_second": 1234.5},
        "machine": {"cpu": "a processor", "cores": 2},
        "versions": {"torch": "2.11.0"},
        "commit": "0123abc",
    }


def test_runs_that_differ_in_more_than_the_study_varies_are_refused(tmp_path: Path) -> None:
    who = {"data": "d", "test": "t", "code": "c", "precision": "32-true", "statistics": "global batch", "after": ""}
    numbers = itertools.count()

    def on(part: str) -> Callable[[dict[str, Any]], None]:
        return lambda result: result.update(identity=who | {part: str(next(numbers))})

    for part, what in BESIDE.items():
        folder = study(tmp_path / part, at(0, 0.5), change=on(part))
        with pytest.raises(UserError, match=f"{what}.*allow_changes=true"):
            read(folder)
        study(folder, at(0, 0.5), change=on(part), allow_changes=True)
        assert what in findings.caveats(read(folder))[0]
    varied = {"data": [1, 2]}
    arms: dict[str, tuple[Place, float]] = {f"data={n}": ({"data": n}, 0.6) for n in (1, 2)}
    assert not read(study(tmp_path / "varied", arms, axes=varied, change=on("data"))).unlike


def at(*strengths: float) -> dict[str, tuple[Place, float]]:
    return {f"s={s:g}": ({"augment.strength": s}, 0.60 + 0.1 * min(s, 0.5)) for s in strengths}


KINDS: dict[str, dict[str, Any]] = {
    "curve": {"arms": at(0, 0.25, 0.5), "reference": "s=0.5"},
    "two curves": {
        "arms": {
            "as it is": ({"a": 1, "b": "x"}, 0.6), "a=2": ({"a": 2}, 0.62), "b=y": ({"b": "y"}, 0.5),
        },
        "axes": {"a": [1, 2], "b": ["x", "y"]},
    },
    "compose": {
        "arms": {
            "crop": ({"first": "crop", "second": "crop"}, 0.5),
            "crop + blur": ({"first": "crop", "second": "blur"}, 0.55),
            "blur": ({"first": "blur", "second": "blur"}, 0.3),
        },
        "kind": "compose", "axes": {"first": ["crop", "blur"], "second": ["crop", "blur"]},
    },
    "grid": {
        "arms": {f"a={a}, b={b}": ({"a": a, "b": b}, 0.5 + a / 100) for a in (1, 2) for b in ([0.1, 1], [0.5, 1])},
        "kind": "grid", "axes": {"a": [1, 2], "b": [[0.1, 1], [0.5, 1]]},
    },
    "cells": {
        "arms": {
            f"{a}{b}{c}": ({"a": a, "b": b, "c": c}, 0.5 + a / 50) for a in (1, 2) for b in (1, 2) for c in (1, 2)
        },
        "kind": "grid", "axes": {"a": [1, 2], "b": [1, 2], "c": [1, 2]},
    },
    "categories": {
        "arms": {"all": ({"left out": "nothing"}, 0.6), "without crop": ({"left out": "crop"}, 0.4)},
        "kind": "categories", "axes": {"left out": ["nothing", "crop"]},
    },
}  # fmt: skip


@pytest.fixture(autouse=True)
def one_drawing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Figures are drawn once and small, not four times more for the page, as tests/report/test_page.py holds."""
    monkeypatch.setattr(page, "_svg", lambda plot, theme: "data:image/svg+xml;base64,PHN2Zy8+")
    monkeypatch.setattr(study_page, "render", lambda plot: themes.render(plot, dpi=30))


class Text(HTMLParser):
    """The text of a page, the rows of its tables, and its elements."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.text, self.tags, self.sources, self.depth = "", [], [], []  # type: ignore[var-annotated]
        self.feed(html)
        self.close()
        assert self.depth == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.sources += [value for name, value in attrs if name in ("src", "srcset", "href")]
        if tag not in ("meta", "img", "source"):
            self.depth.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.depth.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def html(written: dict[str, Path]) -> Text:
    content = Text(written["html"].read_text(encoding="utf-8"))
    assert "script" not in content.tags
    assert all(source.startswith("data:image/") for source in content.sources)
    return content


@pytest.mark.parametrize("theme", [replace(themes.LIGHT, width=themes.NARROW), themes.DARK], ids=["narrow", "dark"])
@pytest.mark.parametrize("kind", ["two curves", "compose", "categories"])
def test_every_picture_can_be_drawn_narrow_and_dark(kind: str, theme: themes.Theme, tmp_path: Path) -> None:
    found = read(study(tmp_path / "study", **KINDS[kind]))
    for chart in [figures.accuracy(found), *explanations(found)]:
        assert themes.render(chart.plot, theme, "svg").rstrip().endswith(b"</svg>")


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_has_its_report(kind: str, tmp_path: Path) -> None:
    folder = study(tmp_path / "study", **KINDS[kind])
    written = study_page.write(folder)
    assert {"html", "md", "csv", "png", "invariance", "factors", "quality", "pretext"} <= written.keys()
    assert written["png"] == folder / "strength.png"
    assert all(
        written[name].read_bytes().startswith(b"\x89PNG") for name in ("png", "invariance", "factors", "quality")
    )
    content, markdown = html(written), written["md"].read_text()
    for arm in KINDS[kind]["arms"]:
        assert arm in content.text
        assert escape(arm) in markdown
    for text in (
        "which of 4 angles",
        "a processor",
        "torch 2.11.0",
        "0123abc",
        "python train.py seed=2 # 1",
        "1,234",
        "python scripts/ablate_augment.py study=strength",
        "linear probe",
    ):
        assert text in content.text, text
    assert "(strength.png)" in markdown
    assert "Incomplete" not in content.text
    assert content.tags.count("picture") == 5
    assert sorted(path.name for path in folder.iterdir() if path.name.startswith(".")) == []


def test_the_answer_stands_at_the_top(tmp_path: Path) -> None:
    found = read(study(tmp_path / "study", **KINDS["curve"]))
    lead, *more = plain_spaces(findings.headline(found))
    assert re.fullmatch(
        r"s=0\.5, the reference, is the best of 3 arms: 65\.\d % \[\d\d\.\d, \d\d\.\d\] in the linear probe\.", lead
    )
    assert re.fullmatch(
        r"Worse than the reference, in points: s=0 by 5\.\d \[4\.\d, 5\.\d\] and s=0\.25 by 2\.\d \[\d\.\d, \d\.\d\]\.",
        more[1],
    )
    assert re.fullmatch(r"The nearest to it is s=0\.25, behind by 2\.\d \[\d\.\d, \d\.\d\] points\.", more[0])
    found = read(study(tmp_path / "better", at(0, 0.5), reference="s=0"))
    lead, *more = plain_spaces(findings.headline(found))
    assert re.search(r"s=0\.5 is the best of 2 arms: .*, better than the reference, s=0, by 5\.\d \[", lead)
    assert more == []


@pytest.mark.parametrize("reference", ["s=0.9", "s=0.1"])
@pytest.mark.parametrize("seeds", [1, 3])
def test_the_nearest_rival_is_always_named(tmp_path: Path, reference: str, seeds: int) -> None:
    """However many arms there are: lists of arms end in "and 3 more"."""
    places = {f"s=0.{n}": ({"augment.strength": n / 10}, 0.5 + n / 100) for n in range(1, 10)}
    found = read(study(tmp_path / "study", places, reference=reference, seeds=seeds))
    said = " ".join(plain_spaces(findings.headline(found)))
    assert re.search(r"^s=0\.9", said)
    assert re.search(r"The nearest to it is s=0\.8, behind by [01]\.\d( \[[−\d]+\.\d, \d\.\d\])? points\.", said)
    assert "s=0.8" in html(study_page.write(tmp_path / "study")).text


def plain_spaces(sentences: list[str]) -> list[str]:
    """A number and its unit, or the ends of an interval, stand on one line of a page."""
    assert not any(re.search(r"\d %|\d, [−\d.]+\]", sentence) for sentence in sentences)
    return [sentence.replace("\N{NO-BREAK SPACE}", " ") for sentence in sentences]


def test_what_the_noise_hides_is_called_so(tmp_path: Path) -> None:
    arms = {"a": ({"augment.strength": 0}, 0.6), "b": ({"augment.strength": 1}, 0.6001)}
    (lead,) = findings.headline(read(study(tmp_path / "study", arms)))
    assert "but within the noise of the seeds of the reference, a" in lead
    assert "within the noise" in html(study_page.write(tmp_path / "study")).text


def test_differences_are_the_paired_ones(tmp_path: Path) -> None:
    """The noise of the seeds is in every arm's interval, and in no difference."""
    found = read(study(tmp_path / "study", **KINDS["curve"]))
    alone, paired = found.intervals["s=0"], found.differences["s=0"]
    assert alone.low is not None
    assert alone.high is not None
    assert paired.low is not None
    assert paired.high is not None
    assert paired.high - paired.low < 0.5 * (alone.high - alone.low)
    values = found.values("linear.top1")
    by_hand = sum(values["s=0"][seed] - values["s=0.5"][seed] for seed in range(3)) / 3
    assert paired.mean == pytest.approx(by_hand, abs=1e-12)
    header, rows, _ = findings.arms_table(found)
    assert rows[0][2].text == in_points(by_hand)
    assert rows[2][3].text == "the reference"
    assert len(header) == len(rows[0])


def test_with_one_seed_there_is_no_interval(tmp_path: Path) -> None:
    for kind in ("curve", "compose", "categories"):
        folder = study(tmp_path / kind, seeds=1, **KINDS[kind])
        content = html(study_page.write(folder))
        assert "One seed: no interval can be given" in content.text
        assert re.search(r"has the highest mean of \d arms \(no interval can be given yet\)", content.text)
        assert not re.search(r"\[[−+]?\d+\.\d, ", content.text)
        assert "One seed" in (folder / "report.md").read_text()


def test_arms_of_an_unfinished_study_are_compared_by_the_seeds_they_share(tmp_path: Path) -> None:
    """Seed 0 is an easy one: the arm that has had no other has the highest mean, and is worse all the same."""
    missing = (("s=0.25", 1), ("s=0.25", 2))
    arms = {"s=0.25": ({"augment.strength": 0.25}, 0.649), "s=0.5": ({"augment.strength": 0.5}, 0.65)}
    found = read(study(tmp_path / "study", arms, reference="s=0.5", missing=missing))
    assert found.means["s=0.25"] > found.means["s=0.5"]
    lead = findings.headline(found)[0]
    assert lead.startswith("s=0.5, the reference, is ahead of 2 arms, compared by the seeds that each has in common")
    assert "(no interval can be given yet)" in lead
    arms["s=0.25"] = {"augment.strength": 0.25}, 0.66
    written = study_page.write(study(tmp_path / "ahead", arms, reference="s=0.5", missing=missing))
    found = read(tmp_path / "ahead")
    first, other = (found.values("linear.top1")[arm][0] for arm in ("s=0.25", "s=0.5"))
    text = html(written).text
    assert f"s=0.25, linear probe{percent(first, unit='%')}" in re.sub(r"\s*\n\s*", "", text)
    assert f"s=0.5, the reference, 1 seed in common{percent(other, unit='%')}" in re.sub(r"\s*\n\s*", "", text)


def test_an_arm_held_against_the_reference_alone_is_not_called_the_best(
    tmp_path: Path,
) -> None:
    arms = at(0, 0.25, 0.5)
    assert (
        "s=0.5 has the highest mean of 3 arms: " in findings.headline(read(study(tmp_path, arms, reference="s=0")))[0]
    )


def test_a_study_put_away_without_its_runs_is_written_again(tmp_path: Path) -> None:
    folder = study(tmp_path / "study", failed=(("s=0", 1),), **KINDS["curve"])
    before = {path: path.read_bytes() for key, path in study_page.write(folder).items() if key != "html"}
    shutil.rmtree(folder / "arms")
    for path in before:
        if path.name != "runs.json":
            path.unlink()
    assert "What the views look like" in html(study_page.write(folder)).text  # from the sheets that it kept
    shutil.rmtree(folder / "views")
    written = study_page.write(folder)
    assert {path: path.read_bytes() for path in before} == before
    assert "What the views look like" not in html(written).text
    (folder / "runs.json").write_text('{"a": 1}')
    with pytest.raises(UserError, match=r"runs\.json is damaged"):
        read(folder)


def test_half_a_study_has_a_report_that_says_so(tmp_path: Path) -> None:
    folder = study(
        tmp_path / "study", at(0, 0.25, 0.5, 1), reference="s=0.5",
        missing=(("s=0", 0), ("s=0", 1), ("s=0", 2)), failed=(("s=1", 0), ("s=1", 1), ("s=1", 2), ("s=0.25", 1)),
    )  # fmt: skip
    found = read(folder)
    rows = {row[0].text: [cell.text for cell in row] for row in findings.arms_table(found)[1]}
    assert rows["s=0"][3] == "not run"
    assert rows["s=1"][3] == "failed"
    assert rows["s=0.25"][-1] == "2"
    content = html(study_page.write(folder))
    assert "Incomplete: 5 of 12 runs have finished." in content.text
    assert "Not run yet: s=0 (seed 0), s=0 (seed 1) and s=0 (seed 2)." in content.text
    assert "the loss is <NaN>" in content.text
    assert content.text.count("python train.py") == 9


@pytest.mark.parametrize("kind", ["two curves", "compose", "categories"])
def test_without_the_reference_nothing_is_compared(kind: str, tmp_path: Path) -> None:
    """But all else is reported, also when a single arm is left."""
    arms = list(KINDS[kind]["arms"])
    reference = KINDS[kind].get("reference", arms[0])
    gone = tuple((reference, seed) for seed in range(3))
    content = html(study_page.write(study(tmp_path / "some", missing=gone, **KINDS[kind])))
    assert f"The reference, {reference}, has no finished run" in content.text
    kept = next(arm for arm in arms if arm != reference)
    gone = tuple((arm, seed) for arm in arms for seed in range(3) if arm != kept)
    content = html(study_page.write(study(tmp_path / "one", failed=gone, **KINDS[kind])))
    assert f"Only one arm has finished: {kept}" in content.text


def test_what_was_not_measured_is_left_out(tmp_path: Path) -> None:
    def poor(result: dict[str, Any]) -> None:
        for key in ("quality", "invariance", "decode", "factors", "pretext", "machine", "versions", "commit", "cost"):
            result.pop(key)

    written = study_page.write(study(tmp_path / "study", at(0, 1), change=poor))
    assert written.keys() - {"parquet"} == {"html", "md", "csv", "runs", "png"}
    assert html(written).tags.count("picture") == 1


def test_methods_without_accuracy_chance_level_and_head_are_compared_by_what_they_have(tmp_path: Path) -> None:
    def without(result: dict[str, Any]) -> None:
        result["pretext"] = {"loss": 0.5, "chance_loss": None, "spread": 0.9}
        for entry in (*result["invariance"].values(), *result["decode"].values(), *result["factors"].values()):
            entry.pop("z")
        result["quality"].pop("z")

    written = study_page.write(study(tmp_path / "study", at(0, 1), change=without))
    assert {"invariance", "factors", "quality"} <= written.keys()
    assert "pretext" not in written


def test_numbers_that_are_none_do_not_count(tmp_path: Path) -> None:
    def collapse(result: dict[str, Any]) -> None:
        if (result["arm"], result["seed"]) == ("s=0", 1):
            result["linear"]["top1"] = float("nan")
            result["invariance"]["colour"]["h"] = [1, None, float("nan")]
            result["quality"]["h"]["uniformity"] = None
        if result["arm"] == "s=1":
            result["linear"] = {"top1": None}
            result["invariance"]["colour"]["reference"]["h"] = 1.0

    folder = study(tmp_path / "study", at(0, 0.5, 1), reference="s=0.5", change=collapse)
    found = read(folder)
    assert found.values("linear.top1").keys() == {"s=0", "s=0.5"}
    assert found.intervals["s=0"].n == 2
    html(study_page.write(folder))


HOSTILE = [
    "<script>alert(1)</script>",
    "a|b`c`*d*",
    "\"quotes' & <b>",
    "名前 ﷽ \u202e",
    "$x^{",
    "word " * 60,
    "w" * 300,
    "a\nb\ud800",
]


@pytest.mark.parametrize("kind", ["compose", "categories"])
def test_names_do_no_harm(kind: str, tmp_path: Path) -> None:
    axes = {"first": HOSTILE, "second": HOSTILE} if kind == "compose" else {"augment.strength": HOSTILE}
    arms: dict[str, tuple[Place, float]] = {
        name: (dict.fromkeys(axes, name), 0.5 + i / 100) for i, name in enumerate(HOSTILE)
    }
    folder = study(
        tmp_path / "study", arms, kind, axes,
        title=HOSTILE[0], command=HOSTILE[0], protocol=HOSTILE[2], name="../../<up>", data=HOSTILE[2],
        failed=((HOSTILE[1], 0),),
    )  # fmt: skip
    written = study_page.write(folder)
    content = html(written)
    for name in HOSTILE[:3]:
        assert name in content.text
    assert "\u202e" not in content.text  # it would turn the line round
    assert {path.parent for path in written.values()} == {folder}
    assert written["png"].name == "up.png"
    markdown = written["md"].read_text(encoding="utf-8").split("## How it ran")[0]
    assert "<script" not in markdown
    assert "<b>" not in markdown
    lines = [re.sub(r"\\.", "", line) for line in markdown.splitlines() if line.startswith("| ")]
    assert {line.count("|") for line in lines} == {9, 4}  # the columns of the two tables


def test_tidy_rows_hold_every_number(tmp_path: Path) -> None:
    folder = study(tmp_path / "study", failed=(("s=0", 1),), **KINDS["curve"])
    written = study_page.write(folder)
    with written["csv"].open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["study", "arm", "augment.strength", "seed", "hash", "status", "metric", "value"]
    (row,) = [r for r in rows if (r["arm"], r["seed"], r["metric"]) == ("s=0.25", "2", "invariance.colour.h@0.5")]
    assert row["value"] == "0.8"
    assert row["augment.strength"] == "0.25"
    (row,) = [r for r in rows if r["status"] == "failed"]
    assert (row["arm"], row["seed"], row["metric"], row["value"]) == ("s=0", "1", "", "")
    names = {r["metric"] for r in rows}
    assert {"linear.top1", "linear.interval.low", "quality.h.uniformity", "cost.training_seconds", "factors.hue.z",
            "decode.rotation.chance", "pretext.chance_loss", "invariance.crop.z@0.1"} <= names  # fmt: skip
    parquet = pytest.importorskip("pyarrow.parquet")
    table = parquet.read_table(written["parquet"])
    assert table.num_rows == len(rows)
    assert [None if x is None else float(x) for x in table["value"].to_pylist()] == [
        float(r["value"]) if r["value"] else None for r in rows
    ]


def test_places_of_several_kinds_fit_a_table(tmp_path: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    values = {"a": 1, "b": "y", "c": [0.1, 1], "d": None}
    arms: dict[str, tuple[Place, float]] = {arm: ({"x": value}, 0.5) for arm, value in values.items()}
    folder = study(tmp_path / "study", arms, "grid", {"x": list(values.values())})
    table = parquet.read_table(study_page.write(folder)["parquet"])
    assert set(table["x"].to_pylist()) == {"1", "y", "[0.1, 1]", None}


def test_flat_tells_numbers_from_the_rest() -> None:
    found = dict(
        flat({"arm": "a", "seed": 3, "place": {"x": 1}, "linear": {"top1": 1, "is": True, "note": "n", "l2": None}})
    )
    assert found == {"linear.top1": 1.0}


def test_results_of_other_studies_are_left_alone(tmp_path: Path) -> None:
    def stray(result: dict[str, Any]) -> None:
        if result["arm"] == "s=1":
            result |= {"arm": "another", "protocol_hash": "other"}

    folder = study(tmp_path / "study", at(0, 0.5, 1), change=stray)
    assert {row["arm"] for row in tidy(read(folder))} == {"s=0", "s=0.5"}


def protocol(result: dict[str, Any]) -> None:
    result["protocol_hash"] = "another"


def second_name(result: dict[str, Any]) -> None:
    result["arm"] = "s=0"


def pipe(name: str) -> Callable[[Path], None]:
    def put(folder: Path) -> None:
        (folder / name).unlink()
        os.mkfifo(folder / name)

    return put


def broken() -> Iterator[Any]:
    def spoil(name: str, content: str) -> Callable[[Path], None]:
        return lambda folder: next(folder.glob(name)).write_text(content) and None  # type: ignore[return-value]

    yield pytest.param({}, lambda folder: (folder / "study.json").unlink(), "there is no .*study.json", id="no study")
    yield pytest.param({}, spoil("study.json", "{"), "cannot read .*study.json", id="damaged study")
    yield pytest.param({}, spoil("study.json", "[]"), "damaged", id="no object")
    yield pytest.param({}, pipe("study.json"), "is no file", id="a pipe for a study")
    yield pytest.param({}, spoil("study.json", "{}"), "lacks arms, axes", id="lacking keys")
    yield pytest.param({}, spoil("arms/*/result.json", '{"arm"'), "cannot read .*delete it", id="damaged result")
    yield pytest.param({"change": protocol}, None, "judged by protocol another", id="another protocol")
    yield pytest.param({"change": second_name}, None, "two results.*two studies share", id="two studies")
    yield pytest.param(
        {"missing": tuple((f"s={s}", i) for s in (0, 1) for i in range(3))}, None, "no arm", id="none run"
    )
    yield pytest.param(
        {"failed": tuple((f"s={s}", i) for s in (0, 1) for i in range(3))},
        None,
        "no arm.*the loss is <NaN>",
        id="all failed",
    )


@pytest.mark.parametrize(("how", "then", "message"), list(broken()))
def test_what_cannot_be_reported_is_told(
    how: dict[str, Any], then: Callable[[Path], None] | None, message: str, tmp_path: Path
) -> None:
    folder = study(tmp_path / "study", at(0, 1), **how)
    if then is not None:
        then(folder)
    with pytest.raises(UserError, match=message):
        study_page.write(folder)
    assert not (folder / "report.html").exists()


def test_a_failed_run_of_another_protocol_does_not_matter(tmp_path: Path) -> None:
    """It has no numbers, and nothing has judged it."""

    def forget(result: dict[str, Any]) -> None:
        if result["status"] == "failed":
            del result["protocol"], result["protocol_hash"]

    folder = study(tmp_path / "study", at(0, 1), failed=(("s=1", 0),), change=forget)
    assert len(read(folder).failed) == 1


def test_a_full_disk_is_told_and_leaves_the_last_report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = study(tmp_path / "study", at(0, 1))
    before = {path: path.read_bytes() for path in study_page.write(folder).values()}

    def full(self: Path, data: bytes) -> int:
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(UserError, match=r"cannot write .*No space left on device"):
        study_page.write(folder)
    assert {path: path.read_bytes() for path in before} == before


def test_what_stands_in_the_way_is_told(tmp_path: Path) -> None:
    folder = study(tmp_path / "study", at(0, 1))
    (folder / "report.md").mkdir()
    with pytest.raises(UserError, match=r"cannot write .*report\.md"):
        study_page.write(folder)
    assert not [path for path in folder.iterdir() if path.name.startswith(".")]


def test_few_arms_are_the_best_the_worst_and_the_reference(tmp_path: Path) -> None:
    found = read(
        study(tmp_path / "study", {f"s={i}": ({"augment.strength": i}, 0.5 + 0.01 * i) for i in range(30)}, seeds=1)
    )
    assert len(few(found)) <= MOST
    assert {"s=0", "s=29"} <= set(few(found))
    assert few(found) == [arm for arm in found.arms if arm in few(found)]
