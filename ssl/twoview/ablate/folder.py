"""The folder of a study: what is written into it before the first run, and what it refuses to go on with."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from twoview.ablate.arm import ABOUT, RESULT, arm_hash
from twoview.ablate.jobs import Job
from twoview.ablate.judge import Judge
from twoview.ablate.results import mixed
from twoview.ablate.study import Plan, Study
from twoview.cli.entry import config_dir, overrides
from twoview.cli.program import spelled
from twoview.data.set import SampleSet
from twoview.errors import UserError, listed
from twoview.run.atomic import save
from twoview.run.folder import read_json
from twoview.run.identity import code_digest, data_digest, differences, relevant


def settings_of(study: Study, plan: Plan, judge: Judge, base: dict[str, Any], train: SampleSet) -> dict[str, Any]:
    """What `study.json` says."""
    given = overrides()
    return {
        "name": study.name,
        "title": study.title,
        "kind": plan.kind,
        "axes": [asdict(axis) for axis in plan.axes],
        "reference": plan.reference,
        "arms": [arm.name for arm in plan.arms],
        "seeds": study.seeds,
        "epochs": base["epochs"],
        "protocol": judge.protocol,
        "protocol_hash": judge.protocol_hash,
        "words": given,
        "command": spelled("ablate", *config_dir(), *given),
        "data": train.name,
        "classes": len(train.classes),
        "chance": 1 / len(train.classes),
        "started": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "base": arm_hash(base | {"seed": 0}),
        "config": relevant(base | {"seed": 0}),
        "allow_changes": bool(base.get("allow_changes")),
    }


def epochs_chosen_before(folder: Path, minutes: float) -> int | None:
    """The epochs that the same command chose when it began the study in this folder."""
    there = read_json(folder / "study.json")
    same = there.get("budget_minutes") == minutes and there.get("words") == overrides()
    return int(there["epochs"]) if same else None


def refuse_other_study(folder: Path, settings: dict[str, Any]) -> None:
    """A folder holds one study: of one name, one kind, and of runs that differ in nothing but what it varies."""
    there = read_json(folder / "study.json")
    changes = [
        f"{key} {settings[key]} instead of {there[key]}"
        for key in ("name", "kind")
        if key in there and there[key] != settings[key]
    ]
    if there.get("base", settings["base"]) != settings["base"]:
        changes += differences(there.get("config") or {}, settings["config"])
    if changes:
        raise UserError(
            f"{folder} holds another study ({there.get('command')}). This one has {listed(changes)}: give it a folder "
            "of its own by folder=..., or delete that one"
        )


def refuse_other_code(finished: Sequence[Job], settings: dict[str, Any], train: SampleSet) -> None:
    """The report would refuse to compare old arms with new ones; said here, before hours of training.
    What is known only once a run is assembled, the report compares.
    """
    now = {"code": code_digest(), "data": data_digest(train)}
    known = [read_json(job.folder / RESULT).get("identity") or {} for job in finished]
    unlike = mixed([*known, now], settings["axes"], but=("precision", "after", "test", "statistics", "weights"))
    if finished and unlike and not settings["allow_changes"]:
        raise UserError(
            f"{len(finished)} runs of the study were made with other {' and '.join(unlike)} than there are now: delete "
            "their folders under arms, or say allow_changes=true to go on and compare them all the same"
        )


def prepare(folder: Path, settings: dict[str, Any], todo: Sequence[Job], own: Sequence[str]) -> None:
    """Writes what is known before the first run starts: the study, and what each arm is."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _write(folder / "study.json", settings)
        for job in todo:
            job.folder.mkdir(parents=True, exist_ok=True)
            (job.folder / RESULT).unlink(missing_ok=True)
            command = spelled("train", *config_dir(), *own, *job.overrides)
            about = {"arm": job.arm.name, "seed": job.seed, "place": job.arm.place, "hash": job.hash}
            _write(job.folder / ABOUT, about | {"words": list(job.overrides), "command": command})
    except OSError as error:
        raise UserError(f"cannot write into {folder}: {error.strerror}; choose another by folder=...") from error


def _write(path: Path, content: Any) -> None:
    save(path, json.dumps(content, indent=1) + "\n")
