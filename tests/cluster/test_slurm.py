"""Jobs on a real SLURM with two nodes: whatever happens to a job, its run ends with the bits of one left alone.

`make test-cluster` runs them; where SLURM's packages are missing they are skipped.
"""

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from cluster import cluster, missing

from twoview.run.checkpoint import read_checkpoint

ROOT = Path(__file__).parents[2]
pytestmark = [
    pytest.mark.slurm,
    pytest.mark.skipif(bool(missing()), reason=f"not installed: {', '.join(missing())}"),
]
EPOCHS = 24
WORDS = (
    *("data=shapes", "data.n_train=256", "data.n_test=64", "data.size=16", "encoder=small", "encoder.widths=[4,4,8,8]"),
    *("model=moco", "model.projector.hidden_dim=16", "model.queue_size=100", "model.split_batch_norm=2"),
    *("batch_size=64", f"epochs={EPOCHS}", "knn=null", "quality=null", "augment.compile=false", "resume=auto"),
)
ALONE = ("trainer=cpu",)
BOTH = ("trainer=ddp", "trainer.accelerator=cpu", "trainer.devices=1", "trainer.num_nodes=2")


class Jobs:
    """SLURM's commands."""

    def __init__(self, environment: dict[str, str], folder: Path) -> None:
        self.environment = environment | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT / "ssl")}
        self.folder = folder

    def call(self, *command: str) -> str:
        ended = subprocess.run(command, env=self.environment, cwd=self.folder, capture_output=True, text=True)
        assert ended.returncode == 0, ended.stderr
        return ended.stdout

    def submit(self, words: tuple[str, ...], nodes: int = 1, *options: str, srun: str = "exec srun") -> str:
        script = self.folder / "job.sh"
        script.write_text(
            f"#!/bin/bash\n#SBATCH --nodes={nodes}\n#SBATCH --ntasks-per-node=1\n#SBATCH --requeue\n"
            f"#SBATCH --open-mode=append\n#SBATCH --output={self.folder}/%A_%a.out\n"
            f"{srun} {sys.executable} {ROOT}/train.py {' '.join(words)}\n"
        )
        return self.call("sbatch", "--parsable", "--job-name=train", *options, str(script)).strip()

    def told(self, job: str) -> dict[str, str]:
        """What SLURM says of a job."""
        return dict(re.findall(r"(\w+)=(\S+)", self.call("scontrol", "show", "job", job)))

    def wait(self, job: str, *states: str, restarts: int = 0, seconds: float = 300) -> dict[str, str]:
        """Until a job is in one of the states, after so many restarts. One that was requeued is not let wait."""
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            found = self.told(job)
            if found["JobState"] in states and int(found["Restarts"]) >= restarts:
                return found
            if found["JobState"] == "PENDING" and found.get("Reason") == "BeginTime":
                self.call("scontrol", "update", f"JobId={job}", "StartTime=now")
            time.sleep(0.3)
        raise AssertionError(f"{self.told(job)}\n{self.out()}")

    def out(self) -> str:
        return "\n".join(f"{path.name}:\n{path.read_text()[-3000:]}" for path in self.folder.glob("*.out"))


@pytest.fixture(scope="module")
def slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    with cluster(tmp_path_factory.mktemp("slurm")) as environment:
        yield environment


@pytest.fixture
def jobs(slurm: dict[str, str], tmp_path: Path) -> Jobs:
    return Jobs(slurm, tmp_path)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """The same runs outside of SLURM, on one process and on two."""
    made: dict[tuple[str, ...], Path] = {}

    def run(*words: str) -> Path:
        if words not in made:
            folder = tmp_path_factory.mktemp("alone")
            torchrun = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2")
            several = ("trainer.num_nodes=1", "trainer.devices=2") if BOTH[0] in words else ()
            command = [sys.executable, *(torchrun if several else ()), f"{ROOT}/train.py", *WORDS, *words, *several]
            environment = {name: value for name, value in os.environ.items() if not name.startswith("SLURM")}
            environment |= {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT / "ssl")}
            subprocess.run([*command, f"hydra.run.dir={folder}"], check=True, capture_output=True, env=environment)
            made[words] = folder
        return made[words]

    return run


def steps(folder: Path) -> int:
    path = folder / "last.ckpt"
    return int(read_checkpoint(path)["global_step"]) if path.exists() else 0


def at_work(folder: Path, jobs: Jobs, beyond: int = 0) -> int:
    """Waits until a run has made more steps, and gives how many."""
    until = time.monotonic() + 240
    while (made := steps(folder)) <= beyond:
        assert time.monotonic() < until, jobs.out()
        time.sleep(0.2)
    return made


def assert_same(folder: Path, expected: Path) -> None:
    found, straight = (read_checkpoint(path) for path in (folder, expected))
    assert found["global_step"] == straight["global_step"] == 4 * EPOCHS
    for key, value in straight["state_dict"].items():
        assert found["state_dict"][key].equal(value), key
    assert json.loads((folder / "summary.json").read_text())["status"] == "finished"
    assert not list(folder.glob("hpc_ckpt*"))


@pytest.mark.parametrize(("nodes", "words"), [(1, ALONE), (2, BOTH)])
def test_a_preempted_job_is_requeued_twice_and_ends_with_the_same_bits(
    nodes: int, words: tuple[str, ...], jobs: Jobs, undisturbed: Callable[..., Path], tmp_path: Path
) -> None:
    run = tmp_path / "run"
    job = jobs.submit((*WORDS, *words, f"hydra.run.dir={run}"), nodes)
    for restarts in (1, 2):
        at_work(run, jobs, steps(run))
        jobs.call("scancel", "--signal=USR1", job)  # as `#SBATCH --signal=USR1@90` before the time is over
        jobs.wait(job, "RUNNING", restarts=restarts)
    ended = jobs.wait(job, "COMPLETED", "FAILED")
    assert (ended["JobState"], ended["Restarts"]) == ("COMPLETED", "2"), jobs.out()
    assert_same(run, undisturbed(*words))


@pytest.mark.parametrize("signal", ["TERM", "cancelled"])
def test_a_job_that_is_ended_has_saved_and_the_next_one_goes_on(
    signal: str, jobs: Jobs, undisturbed: Callable[..., Path], tmp_path: Path
) -> None:
    run = tmp_path / "run"
    job = jobs.submit((*WORDS, *ALONE, f"hydra.run.dir={run}"))
    before = at_work(run, jobs)
    jobs.call("scancel", *(["--signal=TERM"] if signal == "TERM" else []), job)
    ended = jobs.wait(job, "FAILED", "CANCELLED", "COMPLETED")
    until = time.monotonic() + 30
    while "stopped (SIGTERM) and saved" not in jobs.out():
        assert time.monotonic() < until, jobs.out()
        time.sleep(0.2)
    if signal == "TERM":
        assert (ended["JobState"], ended["ExitCode"]) == ("FAILED", "143:0")
    assert before <= steps(run) < 4 * EPOCHS
    jobs.wait(jobs.submit((*WORDS, *ALONE, f"hydra.run.dir={run}")), "COMPLETED")
    assert_same(run, undisturbed(*ALONE))
