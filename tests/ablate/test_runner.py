"""A study from its command line to its report, on tiny runs."""

import errno
import functools
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from twoview.ablate import arm, budget, results
from twoview.cli.configs import CONFIGS
from twoview.errors import UserError
from twoview.train import pretrain
from twoview.train.budget import Cost

TWO = ("study=strength", "study.axes={augment.strength:[0,0.5]}", "judge.images=128", "judge.profile=8")
SCRIPT = CONFIGS.parent / "scripts" / "ablate_augment.py"

Command = Callable[..., Any]
pytestmark = pytest.mark.usefixtures("undrawn")  # test_study_page looks at the figures


@pytest.fixture
def tiny(tiny: list[str]) -> list[str]:
    """Without the monitors, which arms do not have."""
    return [word for word in tiny if not word.startswith(("knn", "quality"))]


@pytest.fixture
def study(command: Command, tiny: list[str]) -> Command:
    def run(*words: str) -> Any:
        mine = [word for word in TWO if not (word.startswith("study.axes") and other(words))]
        return command(*tiny, *mine, *words, name="ablate_augment")

    return run


def other(words: tuple[str, ...]) -> bool:
    """Whether the words name a study or axes of their own."""
    return any(word.startswith(("study=", "~study", "study.axes")) for word in words)


def found(folder: Path) -> dict[tuple[str, int], dict[str, Any]]:
    files = [json.loads(path.read_text()) for path in folder.glob("arms/*/result.json")]
    return {(result["arm"], result["seed"]): result for result in files}


def times(folder: Path) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in folder.glob("arms/*/*")}


def test_a_study_runs_its_arms_once_and_reports(study: Command, tmp_path: Path) -> None:
    folder = tmp_path / "study"
    ended = study("study.seeds=2", f"folder={folder}")
    assert ended.code == 0, ended.err
    assert "strength=0" in ended.out
    assert "no interval" not in ended.out
    runs = found(folder)
    assert set(runs) == {(arm, seed) for arm in ("strength=0", "strength=0.5") for seed in (0, 1)}
    for path in folder.glob("arms/*/result.json"):
        result = json.loads(path.read_text())
        assert (result["status"], result["hash"]) == ("finished", path.parent.name)
        assert 0 <= result["linear"]["top1"] <= 1
        assert {"invariance", "decode", "factors", "quality", "cost", "commit", "pretext"} <= set(result)
        assert (path.parent / "views.png").exists()
        assert f"seed={result['seed']}" in result["command"]
    assert {"report.html", "report.md", "results.csv", "results.parquet", "strength.png"} <= set(os.listdir(folder))
    before = times(folder)
    assert study("study.seeds=2", f"folder={folder}").code == 0
    assert times(folder) == before  # nothing was to do
    assert study("study.seeds=3", f"folder={folder}").code == 0
    assert before.items() <= times(folder).items()  # the third seed alone
    assert len(found(folder)) == 6
    assert study("study.seeds=3", f"folder={folder}", "judge.k=50").code == 0  # judged again, not trained again
    after = times(folder)
    assert {path.name for path in before if before[path] != after.get(path)} <= {"result.json", "arm.json", "log.txt"}
    assert {result["protocol_hash"] for result in found(folder).values()} == {
        json.loads((folder / "study.json").read_text())["protocol_hash"]
    }


def test_the_command_of_an_arm_makes_the_same_run(study: Command, command: Command, tmp_path: Path) -> None:
    import shlex

    assert study("study.seeds=1", "folder=study").code == 0
    result = found(tmp_path / "study")["strength=0", 0]
    words = shlex.split(result["command"])[2:]
    assert command(*words, "knn=null", "quality=null", "hydra.run.dir=alone", name="train").code == 0
    alone = json.loads((tmp_path / "alone" / "summary.json").read_text())
    assert alone["loss"] == result["pretext"]["loss"]


def test_a_search_can_leave_the_test_set_closed(
    study: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from twoview.data.image import shapes as module

    load, asked = module.shapes, []

    @functools.wraps(load)
    def watched(*args: Any, **settings: Any) -> Any:
        asked.append(settings["split"])
        return load(*args, **settings)

    monkeypatch.setattr(module, "shapes", watched)
    assert study("study.seeds=1", "folder=closed", "judge.scored_on=train").code == 0
    assert asked
    assert "test" not in asked
    assert "the test set stays closed" in (tmp_path / "closed" / "report.md").read_text()


def test_the_folder_of_ones_own_configurations_is_recorded(study: Command, tmp_path: Path) -> None:
    """The line that a report shows makes the same study and the same arm again."""
    own = tmp_path / "own" / "encoder"
    own.mkdir(parents=True)
    shutil.copy(CONFIGS / "encoder" / "small.yaml", own / "mine.yaml")
    words = ("encoder=mine", "encoder.widths=[4,4,8,8]", "study.seeds=1", "folder=study")
    assert study("--config-dir", "own", *words).code == 0
    command_of_it = json.loads((tmp_path / "study" / "study.json").read_text())["command"]
    lines = [command_of_it, *(result["command"] for result in found(tmp_path / "study").values())]
    assert all(f"--config-dir={own.parent}" in line for line in lines), lines


def test_one_seed_has_no_interval(study: Command, tmp_path: Path) -> None:
    ended = study("study.seeds=1", "folder=study")
    assert ended.code == 0
    assert "no interval" in ended.out
    assert "one seed" in (tmp_path / "study" / "report.html").read_text().lower()


def test_an_arm_that_fails_is_written_down_and_the_others_go_on(study: Command, tmp_path: Path) -> None:
    axes = ("~study.axes", "+study.axes={batch_size:[64,512]}")
    ended = study(*axes, "study.seeds=1", "folder=study")
    assert ended.code == 1
    runs = found(tmp_path / "study")
    assert runs["batch_size=64", 0]["status"] == "finished"
    failed = runs["batch_size=512", 0]
    assert failed["status"] == "failed"
    assert "batch_size" in failed["error"]
    assert failed["error"] in ended.out.replace("\n", " ")
    assert "Traceback" in (tmp_path / "study" / "arms" / failed["hash"] / "log.txt").read_text()
    assert "batch_size=512" in (tmp_path / "study" / "report.md").read_text()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["study.axes={augment.strength:[0,-1]}"], "arm 'strength=-1' of the study"),
        (["~study.axes", "+study.axes={augment.ops.blur.p:[0,1]}"], "augment.ops.blur.p, which the run lacks"),
        (["~study.axes", "+study.axes={augment.ops.blur.p:[0,1]}"], "its policy has: crop, flip, jitter, gray"),
        (["study.axes={augment.ops.blur.p:[0,0.5]}"], "write '~study.axes' '+study.axes={...}'"),
        (["study.axes={model:[simclr,moco]}"], "write '~study.axes' '+study.axes={...}'"),
        (["report=study"], "there is no study/study.json"),
        (["report=5"], "there is no 5/study.json"),
        (["study=leave_one_out", "study.ops=[blur]"], "which the policy lacks"),
        (["study=strengh"], "Did you mean strength"),
        (["study.sedes=1"], "Did you mean seeds"),
        (["study.seeds=0"], "study.seeds"),
        (["study=null"], "set to the name of an option"),
        (["budget=-1"], "budget=-1"),
        (["budget=much"], "budget='much' is not"),
        (["budget=0.001"], "too few"),
        (["judge.images=1"], "judge.images"),
        (["judge.strengths=[]"], "strengths"),
        (["model=supcon", "judge.scored_on=train"], "whose labels the method has learned from"),
        (["judge.scored_on=val"], "judge.scored_on is test, or train"),
        (["judge.scored_on=train", "judge.images=null"], "needs a number of judge.images"),
        (["judge.scored_on=train", "judge.images=100000"], "to score on; take fewer"),
        (["resume=x"], "the same command"),
        (["~study.axes", "+study.axes={name:[a,b]}"], "are the same run"),
        (["data.n_test=0"], "test split"),
        (["model.temperatur=1"], "Did you mean temperature"),
        (["folder=/proc/no/such"], "cannot write"),
    ],
)
def test_mistakes_are_said_before_the_first_run(study: Command, tmp_path: Path, words: list[str], message: str) -> None:
    assert message in study("study.seeds=1", "folder=study", *words).error
    assert not (tmp_path / "study").exists()


def test_data_without_labels_are_refused(command: Command, tmp_path: Path) -> None:
    from PIL import Image

    (tmp_path / "photos").mkdir()
    for i in range(3):
        Image.new("RGB", (16, 16), (i, i, i)).save(tmp_path / "photos" / f"{i}.png")
    ended = command("data=image_folder", "data.root=photos", "trainer=cpu", name="ablate_augment")
    assert "lacks labels" in ended.error


def test_another_study_in_the_folder_is_refused(study: Command, tmp_path: Path) -> None:
    assert study("study.seeds=1", "folder=study").code == 0
    before = times(tmp_path / "study")
    error = study("study.seeds=1", "folder=study", "epochs=3", "augment.ops.flip.p=0.1").error
    assert "holds another study" in error
    assert "This one has epochs=3 instead of 2 and augment.ops.flip.p=0.1 instead of 0.5: " in error
    assert "holds another study" in study("study=leave_one_out", "folder=study").error
    assert times(tmp_path / "study") == before


def test_two_studies_at_once_in_a_folder_are_refused(study: Command, tmp_path: Path) -> None:
    hold = "import sys, pathlib; from twoview.run.place import held\nwith held(pathlib.Path(sys.argv[1])):\n"
    hold += " print(1, flush=True)\n sys.stdin.read()"
    words = [sys.executable, "-c", hold, str(tmp_path / "study")]
    first = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert first.stdout is not None
    assert first.stdout.readline()
    error = study("study.seeds=1", "folder=study").error
    assert f"another process is at work in study (process {first.pid} on " in error
    assert "by folder=..." in error
    assert [path.name for path in (tmp_path / "study").iterdir()] == [".lock"]
    first.communicate()
    assert not (tmp_path / "study").exists()


def test_arms_of_other_code_are_not_mixed_unless_a_flag_says_so(study: Command, tmp_path: Path) -> None:
    assert study("study.seeds=1", "folder=study").code == 0
    for path in (tmp_path / "study").glob("arms/*/result.json"):
        result = json.loads(path.read_text())
        path.write_text(json.dumps(result | {"identity": result["identity"] | {"code": "of old"}}))
    assert study("study.seeds=1", "folder=study").code == 0  # all are of one code
    before = times(tmp_path / "study")
    error = study("study.seeds=2", "folder=study").error
    assert "2 runs of the study were made with other code of twoview" in error
    assert times(tmp_path / "study") == before
    assert study("study.seeds=2", "folder=study", "allow_changes=true").code == 0
    assert "more differs than the study varies" in (tmp_path / "study" / "report.md").read_text()


def test_results_of_different_protocols_are_refused(study: Command, tmp_path: Path) -> None:
    assert study("study.seeds=1", "folder=study").code == 0
    path = next((tmp_path / "study").glob("arms/*/result.json"))
    path.write_text(path.read_text().replace('"protocol_hash": "', '"protocol_hash": "other'))
    with pytest.raises(UserError, match="different protocols"):
        results.read(tmp_path / "study")


def test_a_dry_run_lists_arms_and_time_and_writes_nothing(study: Command, tmp_path: Path) -> None:
    ended = study("study.seeds=2", "folder=study", "dry_run=true")
    assert ended.code == 0, ended.err
    assert ended.out.count("to do") >= 4
    assert "for each arm of 2 epochs" in ended.out
    assert not (tmp_path / "study").exists()


def test_a_budget_chooses_the_epochs_and_keeps_to_its_choice(
    study: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A real trial, on a machine that is so slow that one epoch fits."""
    measured = budget.measured

    def slowly(*args: Any) -> Cost:
        cost = measured(*args)
        assert 0 < cost.step < cost.epoch < 60 < 600 > cost.fixed > 0
        return Cost(0.0, 600 / cost.steps, 0.0, cost.steps)

    monkeypatch.setattr(budget, "measured", slowly)
    ended = study("study.seeds=1", "folder=study", "budget=30")
    assert ended.code == 0, ended.err
    settings = json.loads((tmp_path / "study" / "study.json").read_text())
    assert settings["budget_minutes"] == 30
    assert settings["epochs"] == 1
    assert "1 epochs for each of 2 runs fill 20 of 30 minutes" in " ".join(ended.out.split())
    again = study("study.seeds=1", "folder=study", "budget=30")
    assert again.code == 0
    assert "trial" not in again.out  # which might have come out otherwise


def second_time(first: Callable[..., Any], then: Callable[[], Any]) -> Callable[..., Any]:
    """`first`, and at its second call `then` before it."""
    calls: list[int] = []

    def call(*args: Any) -> Any:
        calls.append(1)
        if len(calls) == 2:
            then()
        return first(*args)

    return call


def test_a_signal_while_an_arm_is_judged_stops_the_study_with_its_report(
    study: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = signal.getsignal(signal.SIGTERM)
    with monkeypatch.context() as patch:
        patch.setattr(arm, "judged", second_time(arm.judged, lambda: os.kill(os.getpid(), signal.SIGTERM)))
        ended = study("study.seeds=1", "folder=study")
    assert ended.code == 143, ended.err
    assert "stopped (SIGTERM). The same command goes on" in ended.out
    assert "Incomplete: 1 of 2 runs have finished." in (tmp_path / "study" / "report.html").read_text()
    assert signal.getsignal(signal.SIGTERM) == before
    assert len(found(tmp_path / "study")) == 1
    assert study("study.seeds=1", "folder=study").code == 0


def test_a_signal_while_an_arm_is_trained_begins_no_other(
    study: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started = []

    def stopped(config: dict[str, Any], folder: Path) -> dict[str, Any]:
        started.append(folder)
        return {"status": "stopped: ctrl-C"}

    monkeypatch.setattr(pretrain, "run", stopped)
    ended = study("study.seeds=1", "folder=study")
    assert ended.code == 130, ended.err
    assert "stopped (ctrl-C)" in ended.out
    assert len(started) == 1
    assert not (tmp_path / "study" / "report.html").exists()  # there is nothing to report yet


def test_a_disk_that_fills_up_ends_the_study_with_one_message(
    study: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = Path.write_bytes

    def full(path: Path, data: bytes) -> int:
        if "result.json" in path.name:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return write(path, data)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_bytes", full)
        error = study("study.seeds=1", "folder=study").error
    assert "result.json: No space left on device; make room" in error
    assert error.endswith("The same command goes on")
    assert len(list((tmp_path / "study").glob("arms/*/summary.json"))) == 1  # the next arm was not begun
    assert study("study.seeds=1", "folder=study").code == 0


def test_a_report_is_written_again_from_what_was_put_away(study: Command, tmp_path: Path) -> None:
    assert study("study.seeds=1", "folder=study").code == 0
    (tmp_path / "kept").mkdir()
    for name in ("study.json", "runs.json"):
        shutil.copy(tmp_path / "study" / name, tmp_path / "kept")
    ended = study("report=kept")
    assert ended.code == 0, ended.err
    assert "report: kept/report.html" in ended.out
    for name in ("report.md", "results.csv", "strength.png"):
        assert (tmp_path / "kept" / name).read_bytes() == (tmp_path / "study" / name).read_bytes()


def run_process(*words: str, folder: Path) -> "subprocess.Popen[str]":
    command = [sys.executable, str(SCRIPT), *words]
    return subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


@pytest.mark.parametrize(
    "number", [signal.SIGKILL, pytest.param(signal.SIGINT, marks=pytest.mark.slow)], ids=["killed", "ctrl-C"]
)
def test_an_interrupted_study_goes_on_where_it_was(
    command: Command, tiny: list[str], tmp_path: Path, number: int
) -> None:
    words = [*tiny, *TWO, "study.seeds=1", "study.axes={augment.strength:[0,0.5]}", "epochs=6", "knn=null"]
    assert command(*words, "folder=straight", name="ablate_augment").code == 0
    process = run_process(*words, "folder=study", folder=tmp_path)
    until(lambda: any((tmp_path / "study" / "arms").glob("*/last.ckpt")), process)
    process.send_signal(number)
    out = process.communicate(timeout=120)[0]
    assert process.returncode in ((-9,) if number == signal.SIGKILL else (130, 0)), out
    again = run_process(*words, "folder=study", folder=tmp_path)
    out = again.communicate(timeout=240)[0]
    assert again.returncode == 0, out
    expected, got = found(tmp_path / "straight"), found(tmp_path / "study")
    for key, result in expected.items():
        for part in ("linear", "knn", "pretext", "quality", "invariance"):
            assert got[key][part] == result[part], (key, part)


def until(condition: Callable[[], bool], process: "subprocess.Popen[str]", seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while not condition() and process.poll() is None:
        assert time.monotonic() < end
        time.sleep(0.01)


@pytest.mark.slow
def test_several_arms_at_once(tiny: list[str], tmp_path: Path) -> None:
    pytest.importorskip("hydra_plugins.hydra_joblib_launcher")
    words = [*tiny, *TWO, "study.seeds=1", "folder=study", "hydra/launcher=joblib", "hydra.launcher.n_jobs=2"]
    process = run_process(*words, folder=tmp_path)
    out = process.communicate(timeout=240)[0]
    assert process.returncode == 0, out
    assert "2 of 2" in out
    assert {result["status"] for result in found(tmp_path / "study").values()} == {"finished"}


@pytest.mark.parametrize(
    ("plugin", "launcher"),
    [("submitit", "submitit_local"), ("submitit", "submitit_slurm"), ("ray", "ray"), ("joblib", "joblib")],
)
def test_launchers_of_clusters_compose(command: Command, tiny: list[str], plugin: str, launcher: str) -> None:
    pytest.importorskip(f"hydra_plugins.hydra_{plugin}_launcher")
    show = ["--cfg", "hydra", "-p", "hydra.launcher"]
    ended = command(*tiny, f"hydra/launcher={launcher}", *show, name="ablate_augment")
    assert ended.code == 0, ended.err
    assert "_target_: hydra_plugins" in ended.out


def test_the_sweep_that_users_of_hydra_know(command: Command, tiny: list[str], tmp_path: Path) -> None:
    words = [*tiny, "knn=null", "epochs=1", "augment.strength=0,0.5", "hydra.sweep.dir=sweep"]
    assert command("-m", *words, name="train").code == 0
    assert len(list((tmp_path / "sweep").glob("*/summary.json"))) == 2
