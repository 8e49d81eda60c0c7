"""W devices compute what one computes: in float64, whole runs of every method end with the same weights, those too that
went half of their way on another number of devices.
"""

import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from twoview.run.checkpoint import read_checkpoint
from twoview.train import pretrain

NAMES = sorted(path.stem for path in (Path(__file__).parents[2] / "configs" / "model").glob("*.yaml"))
QUICK = ("simclr", "moco")
SMALL = {  # what makes a method tiny, wherever its configuration has the key
    "hidden_dim": 12,
    "out_dim": 6,
    "queue_size": 50,  # three batches and a part of one
    "prototypes": 10,
    "group": 16,
    "directions": 8,
    "split_batch_norm": 4,
}
STEPS = 20
WORDS = (  # 20 steps in 4 epochs, all of which leave a checkpoint
    *("data=shapes", "data.n_train=80", "data.n_test=10", "data.size=16", "encoder=small", "encoder.widths=[4,4,8,8]"),
    *("batch_size=16", "epochs=4", "optimizer.lr_per_256=0.3", "knn=null", "quality=null", "checkpoint.keep=4"),
    *("trainer=cpu", "trainer.precision=64-true", "augment.compile=false"),
)


def shrunk(node: dict[str, Any]) -> dict[str, Any]:
    return {
        key: shrunk(value) if isinstance(value, dict) else SMALL[key] if key in SMALL and value else value
        for key, value in node.items()
    }


def run(configs: dict[str, dict[str, Any]], world: int, folder: Path) -> None:
    """Fits all of them, each in a folder of its name, in this process or in so many that torchrun starts, where each
    makes all runs in turn.
    """
    if world == 1:
        for name, config in configs.items():
            pretrain.run(config, folder / name)
        return
    several = {"devices": world, "strategy": "ddp"}
    runs = {name: config | {"trainer": config["trainer"] | several} for name, config in configs.items()}
    folder.mkdir(parents=True)
    (folder / "runs.json").write_text(json.dumps(runs))
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={world}"]
    ended = subprocess.run([*torchrun, __file__, str(folder)], capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr


if __name__ == "__main__":  # one of the processes
    torch.set_num_threads(1)
    folder = Path(sys.argv[1])
    for name, config in json.loads((folder / "runs.json").read_text()).items():
        pretrain.run(config, folder / name)


def weights(checkpoint: Path) -> tuple[int, dict[str, Tensor]]:
    """Steps made, and weights, batch statistics, queues and whatever else a method keeps."""
    found = read_checkpoint(checkpoint)
    return found["global_step"], found["state_dict"]


def assert_same(found: Path, expected: Path) -> None:
    (steps, state), (_, alone) = weights(found), weights(expected)
    assert steps == STEPS
    assert state.keys() == alone.keys()
    for key, value in alone.items():
        assert value.dtype in (torch.float64, torch.int64), key
        torch.testing.assert_close(state[key], value, rtol=1e-9, atol=1e-9, msg=lambda m, k=key: f"{k}: {m}")


@pytest.mark.parametrize(
    ("names", "world", "then"),
    [
        (QUICK, 2, [1]),
        pytest.param(NAMES, 2, [1, 2, 4], marks=pytest.mark.slow),
        pytest.param(NAMES, 4, [2, 4], marks=pytest.mark.slow),
    ],
)
def test_processes_end_where_one_does_and_another_number_may_go_on(
    names: Sequence[str],
    world: int,
    then: Sequence[int],
    compose: Callable[..., dict[str, Any]],
    tmp_path: Path,
) -> None:
    """In float64 amplified rounding stays below what is compared; in float32 it would hide a mistake. Two that go on
    as two end with the same bits.
    """
    configs = {name: compose(f"model={name}", *WORDS) for name in names}
    halved = QUICK if world == 2 and 4 not in then else ("simclr",)  # on 4, MoCo's one group a device is no two pieces
    configs |= {f"{name} in pieces": compose(f"model={name}", "pieces=2", *WORDS) for name in halved}
    configs = {name: config | {"model": shrunk(config["model"])} for name, config in configs.items()}
    alone, together = tmp_path / "alone", tmp_path / "together"
    run(configs, 1, alone)
    run(configs, world, together)
    middle = {name: together / name / "last-2.ckpt" for name in configs}
    for number in then:
        resumed = {name: config | {"resume": str(middle[name])} for name, config in configs.items()}
        run(resumed, number, tmp_path / f"on {number}")
    for name in configs:
        first, last = (weights(alone / name / file)[1] for file in ("last-3.ckpt", "last.ckpt"))
        learned = [key for key, value in last.items() if value.is_floating_point() and "running" not in key]
        assert max((last[key] - first[key]).abs().max() for key in learned) > 1e-3  # what is compared is no constant
        assert_same(together / name, alone / name)
        assert weights(middle[name])[0] == STEPS // 2
        for number in then:
            assert_same(tmp_path / f"on {number}" / name, alone / name)
        if world == 2 and world in then:
            again = weights(tmp_path / f"on {world}" / name)[1]
            assert all(again[key].equal(value) for key, value in weights(together / name)[1].items())
