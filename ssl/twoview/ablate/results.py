"""The results of a study, read from its folder, by arm, seed and metric."""

import csv
import io
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from statistics import fmean
from typing import Any

from twoview.errors import UserError
from twoview.run.identity import apart
from twoview.stats.blocks import Difference, compare
from twoview.stats.intervals import Interval, mean_interval

HEADLINE = "linear.top1"  # the metric that verdicts are about
NOT_METRICS = {"place", "machine", "versions", "words", "identity"}


@dataclass(frozen=True)
class Run:
    """One arm with one seed: the content of its `result.json`, and the metrics in it by dotted names, finite or NaN."""

    arm: str
    seed: int
    result: Mapping[str, Any]
    metrics: Mapping[str, float]
    folder: Path

    @property
    def finished(self) -> bool:
        return self.result.get("status") == "finished"


@dataclass(frozen=True)
class Results:
    """`study.json` and those of its runs that have been made."""

    folder: Path
    settings: Mapping[str, Any]
    runs: Mapping[tuple[str, int], Run]

    @property
    def reference(self) -> str:
        return str(self.settings["reference"])

    @cached_property
    def planned(self) -> list[tuple[str, int]]:
        return [(arm, seed) for arm in self.settings["arms"] for seed in self.settings["seeds"]]

    @cached_property
    def failed(self) -> list[Run]:
        return [run for key in self.planned if (run := self.runs.get(key)) and not run.finished]

    @cached_property
    def missing(self) -> list[tuple[str, int]]:
        return [key for key in self.planned if key not in self.runs]

    @cached_property
    def finished(self) -> list[Run]:
        return [run for key in self.planned if (run := self.runs.get(key)) and run.finished]

    @cached_property
    def arms(self) -> list[str]:
        """The arms with a finished run, in the order of the study."""
        return list(dict.fromkeys(run.arm for run in self.finished))

    def of(self, arm: str) -> list[Run]:
        return [run for run in self.finished if run.arm == arm]

    def values(self, metric: str) -> dict[str, dict[int, float]]:
        """Finite values of a metric by arm and seed; arms without any are left out."""
        found: dict[str, dict[int, float]] = {}
        for run in self.finished:
            if math.isfinite(value := run.metrics.get(metric, math.nan)):
                found.setdefault(run.arm, {})[run.seed] = value
        return found

    def mean(self, arm: str, metric: str) -> float | None:
        """Over the seeds."""
        values = self.values(metric).get(arm)
        return fmean(values.values()) if values else None

    def place(self, arm: str) -> dict[str, Any]:
        """Where the arm is on the axes; empty if none of its runs has begun."""
        return next((dict(run.result.get("place") or {}) for (name, _), run in self.runs.items() if name == arm), {})

    def names(self, what: str) -> list[str]:
        """The second parts of the metrics `what.<name>...` of any run, as the transforms of `invariance`."""
        found = (name.split(".")[1] for run in self.finished for name in run.metrics if name.startswith(f"{what}."))
        return list(dict.fromkeys(found))

    def entry(self, what: str, name: str) -> dict[str, Any]:
        """`{...}` of `what: {name: {...}}` in the first run that has it."""
        return next((run.result[what][name] for run in self.finished if name in (run.result.get(what) or {})), {})

    @cached_property
    def unlike(self) -> list[str]:
        """In what the runs differ beyond what the study varies, in words: code, training images, precision."""
        return mixed([dict(run.result.get("identity") or {}) for run in self.finished], self.settings["axes"])

    @cached_property
    def means(self) -> dict[str, float]:
        """Means of `HEADLINE` over the seeds, by arm."""
        return {arm: fmean(by.values()) for arm, by in self.values(HEADLINE).items()}

    @cached_property
    def intervals(self) -> dict[str, Interval]:
        return {arm: mean_interval(list(by.values())) for arm, by in self.values(HEADLINE).items()}

    @cached_property
    def differences(self) -> dict[str, Difference]:
        """Differences of `HEADLINE` to the reference, of all arms that have a seed in common with it."""
        values = self.values(HEADLINE)
        found = compare(values, self.reference) if self.reference in values and len(values) > 1 else {}
        return {arm: difference for arm, difference in found.items() if difference.mean is not None}


def read(folder: Path) -> Results:
    """UserError for a folder without a study, without any finished run, or with runs of two studies."""
    settings = _load(folder / "study.json", "give the folder of a study")
    needed = {"name", "title", "kind", "axes", "reference", "arms", "seeds", "protocol_hash"}
    if lacking := sorted(needed - settings.keys()):
        raise UserError(f"{folder / 'study.json'} lacks {', '.join(lacking)}; run the study again")
    runs: dict[tuple[str, int], Run] = {}
    for path, result in _results(folder):
        arm: Any = result.get("arm")
        seed: Any = result.get("seed")
        if arm not in settings["arms"] or seed not in settings["seeds"]:
            continue
        judged = result.get("status") == "finished"
        if judged and result.get("protocol_hash") != settings["protocol_hash"]:
            raise UserError(
                f"{path} was judged by protocol {result.get('protocol_hash')} and the study by "
                f"{settings['protocol_hash']}: accuracies of different protocols do not compare. "
                "Run the study again in a folder of its own"
            )
        if (arm, seed) in runs:
            raise UserError(
                f"{arm} with seed {seed} has two results, {runs[arm, seed].folder.name} and {path.parent.name}: two "
                f"studies share {folder}. Give each a folder of its own, or delete the one that you do not want"
            )
        runs[arm, seed] = Run(arm, seed, result, dict(flat(result)), path.parent)
    study = Results(folder, settings, runs)
    if study.unlike and not settings.get("allow_changes"):
        raise UserError(
            f"runs of the study in {folder} differ in what it does not vary ({', '.join(study.unlike)}): delete the "
            "old ones, or say allow_changes=true to compare them all the same"
        )
    if not study.values(HEADLINE):
        failed = f"; the first failed with: {study.failed[0].result.get('error')}" if study.failed else ""
        raise UserError(f"no arm of the study in {folder} has finished, so there is nothing to report{failed}")
    return study


def _results(folder: Path) -> Iterator[tuple[Path, dict[str, Any]]]:
    """What the runs have written; of a study that is archived without their folders, what `runs.json` holds."""
    paths = sorted(folder.glob("arms/*/result.json"))
    for path in paths:
        yield path, _load(path, "delete it and run the study again")
    if not paths and (folder / "runs.json").exists():
        for name, result in _load(folder / "runs.json", "run the study again").items():
            if not isinstance(result, dict):
                raise UserError(f"{folder / 'runs.json'} is damaged; run the study again")
            yield folder / "arms" / name / "result.json", result


def mixed(
    identities: Sequence[Mapping[str, Any]], axes: Sequence[Mapping[str, Any]], but: Sequence[str] = ()
) -> list[str]:
    """In what identities differ beyond what these axes vary, in words; nothing where no run states its identity."""
    varied = {str(axis.get("key")).partition(".")[0] for axis in axes}
    may = {part for part, section in (("data", "data"), ("precision", "trainer")) if section in varied}
    return apart(*identities, but={*may, *but}) if any(identities) else []


def _load(path: Path, remedy: str) -> dict[str, Any]:
    if path.exists() and not path.is_file():  # a pipe would be waited for
        raise UserError(f"{path} is no file; {remedy}")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise UserError(f"there is no {path}; {remedy}") from error
    except (OSError, ValueError) as error:
        raise UserError(f"cannot read {path}: {error}; {remedy}") from error
    if not isinstance(content, dict):
        raise UserError(f"{path} is damaged; {remedy}")
    return dict(_printable(content))


def _printable(content: Any) -> Any:
    """The content without control characters, surrogates and the like, which garble a page or a terminal."""
    if isinstance(content, str):
        return "".join(c if c.isprintable() or c in "\n\t" else "\ufffd" for c in content)
    if isinstance(content, list):
        return [_printable(item) for item in content]
    if isinstance(content, dict):
        return {_printable(key): _printable(item) for key, item in content.items()}
    return content


def flat(result: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, float]]:
    """The numbers in nested dicts, by dotted names. A list beside `levels` gives a number per level (`h@0.5`), an
    interval its two ends.
    """
    for key, value in result.items():
        name = prefix + str(key)
        if isinstance(value, bool) or (not prefix and (key in NOT_METRICS or not isinstance(value, dict))):
            continue
        if isinstance(value, int | float):
            yield name, float(value)
        elif isinstance(value, dict):
            yield from flat(value, name + ".")
        elif isinstance(value, list) and key == "interval":
            yield from flat(dict(zip(("low", "high"), value, strict=False)), name + ".")
        elif isinstance(value, list) and key != "levels":
            for level, y in zip(result.get("levels") or (), value, strict=False):
                if isinstance(y, int | float):
                    yield f"{name}@{level}", float(y)


def as_json(study: Results) -> str:
    """What all runs have written, by the names of their folders, which an archive can then do without."""
    return json.dumps({run.folder.name: run.result for run in study.runs.values()}, indent=1) + "\n"


def tidy(study: Results) -> list[dict[str, Any]]:
    """A row for each metric of each finished run, and a row without a metric for each failed run."""
    keys = list(dict.fromkeys(key for run in study.runs.values() for key in run.result.get("place") or {}))
    rows = []
    for arm, seed in study.planned:
        if run := study.runs.get((arm, seed)):
            place = study.place(arm)
            known = {"study": study.settings["name"], "arm": arm} | {key: place.get(key) for key in keys}
            known |= {"seed": seed, "hash": run.result.get("hash"), "status": run.result.get("status")}
            metrics = run.metrics.items() if run.finished else [("", None)]
            rows += [known | {"metric": name, "value": value} for name, value in metrics]
    return rows


def as_csv(rows: list[dict[str, Any]]) -> str:
    file = io.StringIO()
    writer = csv.DictWriter(file, fieldnames=list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return file.getvalue()


def as_parquet(rows: list[dict[str, Any]]) -> bytes | None:
    """None without pyarrow. A column of places that mixes numbers and strings becomes one of strings."""
    try:
        import pyarrow as pa
        from pyarrow import parquet
    except ImportError:
        return None
    columns = {name: [row[name] for row in rows] for name in rows[0]}
    for name, column in columns.items():
        if not all(x is None or (isinstance(x, int | float) and not isinstance(x, bool)) for x in column):
            columns[name] = [None if x is None else str(x) for x in column]
        elif any(isinstance(x, float) for x in column):
            columns[name] = [None if x is None else float(x) for x in column]
    columns["value"] = pa.array(columns["value"], pa.float64())
    file = io.BytesIO()
    parquet.write_table(pa.table(columns), file)
    return file.getvalue()
