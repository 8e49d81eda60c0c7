"""Is a run ill? One verdict from its configuration and its curves, with the evidence, the likely cause and the remedy.

What there is to find stands in `twoview.watch.illnesses`.
"""

import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import yaml
from omegaconf import DictConfig

from twoview.cli import schema
from twoview.cli.entry import plain
from twoview.errors import UserError
from twoview.run.folder import CONFIG, METRICS, read_metrics
from twoview.watch.illnesses import OF_LEARNING, OTHERS, Case, Finding, Illness

log = logging.getLogger(__name__)

HEALTHY, TOO_EARLY, UNKNOWN = "healthy", "too early to judge", "cannot be judged"


@dataclass(frozen=True)
class Diagnosis:
    """The gravest finding's name, "healthy", "too early to judge" or "cannot be judged"; all findings, the gravest
    first; the state in a line.
    """

    verdict: str
    findings: tuple[Finding, ...]
    state: str

    @property
    def code(self) -> int:
        """The command's exit code: 0 healthy, 2 ill, 3 not judged (1 is an error)."""
        return {HEALTHY: 0, TOO_EARLY: 3, UNKNOWN: 3}.get(self.verdict, 2)

    def plain(self) -> dict[str, Any]:
        """For JSON."""
        findings = [asdict(f) | {"evidence": [asdict(proof) for proof in f.evidence]} for f in self.findings]
        return {"verdict": self.verdict, "state": self.state, "findings": findings}

    def brief(self) -> list[str]:
        """For the end of a run: a line if it is healthy, and two per illness if not."""
        lines = [f"doctor: {self.verdict} ({self.state})"]
        for finding in self.findings:
            proof = finding.evidence[0]
            lines.append(f"  {finding.name}: {proof.what} {proof.value:.4g} ({proof.limit}); {finding.cause}")
            lines.append(f"    try: {finding.remedy}")
        return lines

    def table(self) -> list[str]:
        """For the command: every finding with all of its evidence."""
        lines = [f"verdict: {self.verdict} ({self.state})"]
        for finding in self.findings:
            lines += ["", finding.name]
            width = max(len(proof.what) for proof in finding.evidence)
            for proof in finding.evidence:
                lines.append(f"  {proof.what:{width}}  {proof.value:<9.4g} {proof.limit}; {proof.source}")
            lines += [f"  likely cause: {finding.cause}", f"  try: {finding.remedy}"]
        return lines


def examine(rows: Sequence[Mapping[str, float]], config: Mapping[str, Any] | None = None) -> Diagnosis:
    """The verdict on a run from the rows of its `metrics.csv` and its configuration. What needs more than they tell is
    not judged; a loss without a chance level that no spread was measured beside proves nothing, good or bad.
    """
    case = Case(rows, config or {})
    found = [*list(_found(case, OF_LEARNING))[:1], *_found(case, OTHERS)]
    if found:
        verdict = found[0].name
    elif case.too_early:
        verdict = TOO_EARLY
    else:
        verdict = HEALTHY if case.has("chance") or case.has("spread") else UNKNOWN
    return Diagnosis(verdict, tuple(found), _state(case))


def _found(case: Case, illnesses: Sequence[Illness]) -> Iterator[Finding]:
    for illness in illnesses:
        looked_for = (illness.early or not case.too_early) and all(map(case.has, illness.needs))
        if looked_for and (finding := illness.look(case)):
            yield finding


def _state(case: Case) -> str:
    parts = [f"{case.steps:,} steps"]
    if case.has("chance"):
        parts.append(f"loss at {case.last:.0%} of chance level")
    elif case.has("loss"):
        parts.append(f"loss {case.curve('loss')[-1]:.3g}")
    if case.has("accuracy"):
        parts.append(f"contrastive accuracy {case.curve('accuracy')[-1]:.0%}")
    elif case.has("spread"):
        parts.append(f"spread {case.spread[1][-1]:.2f}")
    for name, words in {"knn": "kNN", "waiting": "waiting for data"}.items():
        if case.has(name):
            parts.append(f"{words} {case.curve(name)[-1]:.0%}")
    return ", ".join(parts)


def examine_run(run: Path) -> Diagnosis:
    """`examine` with what lies in a run's folder."""
    rows, path = read_metrics(run / METRICS), run / CONFIG
    try:
        config = yaml.safe_load(path.read_text()) if path.is_file() else None
    except yaml.YAMLError as error:
        raise UserError(f"{path} is damaged: {str(error).splitlines()[0]}") from error
    if config is None:
        log.warning("%s has no config.yaml: judged by its curves alone", run)
    elif not isinstance(config, dict):
        raise UserError(f"{path} is damaged: it holds no configuration")
    return examine(rows, config)


def parting_words(run: Path, config: Mapping[str, Any]) -> dict[str, Any] | None:
    """Logs the verdict on a run that ends, and returns it as plain containers for its summary. An error of the doctor's
    own is logged, not raised, and gives None.
    """
    try:
        diagnosis = examine(read_metrics(run / METRICS), config)
    except UserError as error:
        log.warning("doctor: no verdict: %s", error)
        return None
    except Exception as error:  # the run is worth more than its diagnosis
        log.warning("doctor: no verdict, because of an error of its own: %s: %s", type(error).__name__, error)
        return None
    for line in diagnosis.brief():
        log.log(logging.WARNING if diagnosis.findings else logging.INFO, "%s", line)
    return diagnosis.plain()


def doctor_command(composed: DictConfig) -> int:
    """`twoview doctor`."""
    config = plain(composed)
    schema.check_keys(config, {"run": str | None, "out": str | None, "debug": bool})
    if not config["run"]:
        raise UserError("which run? Give its folder: run=runs/<name>/<date>")
    diagnosis = examine_run(Path(config["run"]))
    for line in diagnosis.table():
        log.info("%s", line)
    if config["out"]:
        try:
            Path(config["out"]).write_text(json.dumps(diagnosis.plain(), indent=2) + "\n")
        except OSError as error:
            raise UserError(f"cannot write {config['out']}: {error.strerror}; name another file by out=...") from error
    return diagnosis.code
