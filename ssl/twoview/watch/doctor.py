"""Is a run ill? One verdict from its configuration and its curves, with the evidence, the likely cause and the remedy.

What there is to find stands in `twoview.watch.illnesses`.
"""

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import yaml
from omegaconf import DictConfig

from twoview.cli import schema
from twoview.cli.entry import plain
from twoview.errors import UserError
from twoview.run.folder import CONFIG, METRICS, read_metrics
from twoview.watch import illnesses as ill
from twoview.watch.illnesses import Case, Finding

log = logging.getLogger(__name__)

HEALTHY, TOO_EARLY = "healthy", "too early to judge"
SHOWN = {"accuracy": "contrastive accuracy", "knn": "kNN", "waiting": "waiting for data"}


@dataclass(frozen=True)
class Diagnosis:
    """The gravest finding's name, "healthy" or "too early to judge"; all findings, the gravest first; the state in a
    line.
    """

    verdict: str
    findings: tuple[Finding, ...]
    state: str

    @property
    def code(self) -> int:
        """The command's exit code: 0 healthy, 2 ill, 3 too early to judge (1 is an error)."""
        return {HEALTHY: 0, TOO_EARLY: 3}.get(self.verdict, 2)

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
    """The verdict on a run from the rows of its `metrics.csv` and its configuration (what needs it is not judged
    without).
    """
    case = Case(rows, config or {})
    of_the_loss = (
        (ill.not_finite,)
        if case.too_early
        else (ill.not_finite, ill.too_fast, ill.collapse, ill.chance_level, ill.narrow)
    )
    others = (ill.queue, ill.input_bound) if case.too_early else (ill.shortcut, ill.queue, ill.input_bound)
    found = [finding for check in of_the_loss if (finding := check(case))][:1]  # the first explains the others
    found += [finding for check in others if (finding := check(case))]
    verdict = found[0].name if found else TOO_EARLY if case.too_early else HEALTHY
    return Diagnosis(verdict, tuple(found), _state(case))


def _state(case: Case) -> str:
    parts = [f"{case.steps:,} steps"]
    if case.ratios:
        parts.append(f"loss at {case.ratios[-1]:.0%} of chance level")
    parts += [f"{words} {case.curve(name)[-1]:.0%}" for name, words in SHOWN.items() if case.curve(name)]
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
