"""The text of a report: the answer in a few sentences, caveats, and tables."""

from collections.abc import Mapping
from typing import Any

from twoview.ablate.results import HEADLINE, Results
from twoview.cli.program import spelled
from twoview.errors import listed
from twoview.report.page import Cell
from twoview.report.words import NBSP, NONE, in_points, p_value, percent, span
from twoview.stats.blocks import Difference, compare

MARKS = {"better": "good", "worse": "bad"}
TABLE_NOTE = (
    f"Intervals hold 95{NBSP}%. Differences are paired by seed. p is corrected for the number of arms compared and "
    "decides the verdict (below 0.05). Detectable: the smallest true difference that such a study finds in 80 of 100 "
    "cases."
)

Table = tuple[list[str | Cell], list[list[Cell]], str]  # header, rows, alignment


def best(study: Results) -> str:
    """The arm that is furthest above the reference over the seeds that both have; without a reference, the arm with the
    highest mean. Means alone would favour arms of an unfinished study that have had the easier seeds.
    """
    scores = study.means
    if study.differences:
        scores = {study.reference: 0.0} | {arm: d.mean or 0.0 for arm, d in study.differences.items()}
    return max(scores, key=lambda arm: scores[arm])


def headline(study: Results) -> list[str]:
    """The answer: the first sentence gives it, the others say how sure it is."""
    first, home = best(study), study.reference
    reached = f"{percent(study.means[first], unit='%')} {span(study.intervals[first].limits)}".strip()
    reached += " in the linear probe"
    if len(study.means) == 1:
        return [f"Only one arm has finished: {first} reaches {reached}."]
    difference = study.differences.get(first)
    answer = f"{first}{', the reference,' if first == home else ''} {_rank(study, first)}: {reached}"
    if difference and difference.verdict in MARKS:
        answer += f", better than the reference, {home}, by {_by(difference)} points"
    elif difference and difference.p is not None:
        answer += f", but within the noise of the seeds of the reference, {home}"
    sentences = [answer + ".", *_rival(study, first)]
    for verdict in MARKS:
        arms = [arm for arm, d in study.differences.items() if d.verdict == verdict and arm != first]
        arms.sort(key=lambda arm: -abs(study.differences[arm].mean or 0.0))
        if arms:
            shown = [f"{arm} by {_by(study.differences[arm])}" for arm in arms]
            sentences.append(f"{verdict.capitalize()} than the reference, in points: {listed(shown, 4)}.")
    quiet = [arm for arm, d in study.differences.items() if d.p is not None and d.verdict not in MARKS]
    if quiet and quiet != [first]:
        sentences.append(f"Within the noise of the seeds: {listed(quiet, 6)}.")
    return sentences


def _rival(study: Results, first: str) -> list[str]:
    """The arm that comes nearest to the leading one, of three or more: paired by the seeds that both have."""
    behind = compare(study.values(HEADLINE), first) if len(study.means) > 2 else {}
    behind = {arm: gap for arm, gap in behind.items() if gap.mean is not None}
    if not behind:
        return []
    rival = max(behind, key=lambda arm: behind[arm].mean or 0.0)
    return [f"The nearest to it is {rival}, behind by {_by(behind[rival])} points."]


def _rank(study: Results, first: str) -> str:
    """What can be said of the leading arm. It is called the best only where it was compared with all others."""
    arms = f"{len(study.means)} arms"
    found = study.differences
    against = [found[first]] if first in found else list(found.values())
    if len(against) == len(study.means) - 1 and all(d.verdict in MARKS for d in against):
        return f"is the best of {arms}"
    rank = f"has the highest mean of {arms}"
    if found and len({interval.n for interval in study.intervals.values()}) > 1:
        rank = f"is ahead of {arms}, compared by the seeds that each has in common with the reference"
    return rank if any(d.p is not None for d in against) else f"{rank} (no interval can be given yet)"


def _by(difference: Difference) -> str:
    """How much better or worse: `6.1 [5.0, 7.2]`."""
    low, mean, high = difference.low, difference.mean or 0.0, difference.high
    if low is None or high is None:
        return percent(abs(mean))
    return f"{percent(abs(mean))} {span([low, high] if mean >= 0 else [-high, -low])}"


def caveats(study: Results) -> list[str]:
    """What a reader must know before believing the numbers."""
    found = []
    if study.missing or study.failed:
        text = f"Incomplete: {len(study.finished)} of {len(study.planned)} runs have finished."
        if study.missing:
            text += f" Not run yet: {listed([f'{arm} (seed {seed})' for arm, seed in study.missing])}."
        if study.failed:
            text += f" Failed: {listed([f'{run.arm} (seed {run.seed})' for run in study.failed])}; see below."
        found.append(text)
    if study.unlike:
        found.append(
            f"Compared although more differs than the study varies (allow_changes=true): {listed(study.unlike)}."
        )
    if len(study.settings["seeds"]) == 1:
        found.append(
            "One seed: no interval can be given, and no difference can be told from the noise of the seeds. "
            "Run the study with three seeds or more."
        )
    if study.reference not in study.means:
        found.append(f"The reference, {study.reference}, has no finished run: nothing can be compared with it yet.")
    return found


def arms_table(study: Results) -> Table:
    """Each arm with its accuracy, its difference to the reference and the verdict."""
    header: list[str | Cell] = [
        "arm",
        Cell("linear probe, %", f"mean [95{NBSP}%]"),
        Cell("difference", f"points [95{NBSP}%]"),
        "verdict",
        Cell("p", "corrected"),
        Cell("detectable", "points"),
        "kNN, %",
        "seeds",
    ]
    rows = []
    for arm in study.settings["arms"]:
        if arm not in study.means:
            why = "failed" if any(run.arm == arm for run in study.failed) else "not run"
            cells = [arm, NONE, NONE, why, NONE, NONE, NONE, "0"]
            rows.append([Cell(text, mark="pale") for text in cells])
            continue
        interval, found = study.intervals[arm], study.differences.get(arm)
        score = Cell(percent(study.means[arm]), span(interval.limits), "best" if arm == best(study) else "")
        tail = [Cell(percent(study.mean(arm, "knn.top1"))), Cell(str(interval.n))]
        if found is None:
            verdict = Cell("the reference" if arm == study.reference else NONE, mark="pale")
            rows.append([Cell(arm), score, Cell(NONE, mark="pale"), verdict, *[Cell(NONE, mark="pale")] * 2, *tail])
        else:
            difference = Cell(in_points(found.mean or 0.0), span(found.limits, in_points))
            numbers = [Cell(p_value(found.p_corrected)), Cell(percent(found.detectable))]
            rows.append([Cell(arm), score, difference, _verdict(found), *numbers, *tail])
    return header, rows, "lrrlrrrr"


def _verdict(difference: Difference) -> Cell:
    text, _, note = difference.verdict.partition(": ")
    if not note and " of " in text:
        text, _, note = text.partition(" of ")
        note = f"of {note}"
    return Cell(text, note, MARKS.get(difference.verdict, ""))


def decode_table(study: Results) -> Table | None:
    """Which transform was applied, as a linear probe reads it from h and from z."""
    questions = study.names("decode")
    if not questions:
        return None
    header: list[str | Cell] = ["arm"]
    for name in questions:
        header += [Cell(f"{name}, h", f"chance {percent(study.entry('decode', name).get('chance'), 0)}"), Cell("z")]
    rows = []
    for arm in study.arms:
        found = [(space, study.mean(arm, f"decode.{name}.{space}")) for name in questions for space in "hz"]
        rows.append([Cell(arm), *(Cell(percent(x), mark="pale" if space == "z" else "") for space, x in found)])
    return header, rows, "l" + "rr" * len(questions)


def environment(study: Results) -> list[tuple[str, str]]:
    """Machine, versions and commit, all of them where the runs differ."""

    def text(about: Any) -> str:
        if not isinstance(about, Mapping):
            return str(about)
        known = {key: x for key, x in about.items() if x not in (None, [], "")}
        return ", ".join(f"{str(key).replace('_', ' ')} {_plain(x)}" for key, x in known.items())

    found = []
    for what in ("machine", "versions", "commit"):
        different = dict.fromkeys(text(run.result[what]) for run in study.finished if run.result.get(what))
        if different:
            found.append((what, "; or: ".join(different)))
    return found


def _plain(x: Any) -> str:
    return ", ".join(map(str, x)) if isinstance(x, list) else str(x)


def commands(study: Results, arm: str) -> list[str]:
    """The command line of each seed that has begun."""
    lines = []
    for key in study.planned:
        if key[0] == arm and (run := study.runs.get(key)):
            words = map(str, run.result.get("words") or [])
            lines.append(str(run.result.get("command") or spelled("train", *words)))
    return lines


def error(result: Mapping[str, Any]) -> str:
    """Why a run failed, on one line."""
    text = " ".join(str(result.get("error") or "unknown").split())
    return text if len(text) <= 400 else text[:399] + "…"
