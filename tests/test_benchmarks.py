"""What the benchmarks compute beside the clock: verdicts, ratios, memory on paper; and that each of them runs."""

import io
import json
import pickle
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from conftest import ROOT, SMALLEST
from rich.console import Console
from torch import Tensor

from twoview.ablate.study import override
from twoview.encoder.small import Small
from twoview.losses.contrastive import nt_xent
from twoview.parallel import precision

TINY = [
    *("data=shapes", "data.n_train=64", "data.n_test=8", "data.size=16", *SMALLEST, "model.projector.hidden_dim=16"),
    *("batch_size=16", "trainer=cpu", "trainer.precision=32-true", "augment.compile=false", "knn=null"),
]
NO_CROP = "augment.ops.crop.size=16"  # the views of `own.views` have the size of crops


@pytest.fixture
def load(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], ModuleType]:
    """`load("run")`: a module of benchmarks/."""
    import importlib

    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    return importlib.import_module


def case(network: str, engine: str, precision: str, *seconds: float, batch: int = 100) -> dict[str, Any]:
    return {
        "network": network,
        "engine": engine,
        "precision": precision,
        "batch": batch,
        "step_seconds": list(seconds),
        "extra_bytes": 1,
    }


@pytest.mark.parametrize(
    ("bound", "reached", "met"),
    [
        ({"at_least": 3.0}, 3.0, True),
        ({"at_least": 3.0}, 2.9, False),
        ({"at_most": 3.0}, 3.1, False),
        ({"at_most": 3.0}, 0.0, True),
        ({"at_least": 3.0}, None, None),
    ],
)
def test_a_goal_is_met_missed_or_open(load: Any, bound: dict[str, float], reached: Any, met: Any) -> None:
    found = load("record").goal("speed", reached, **bound)
    assert found["met"] is met
    assert found.items() >= bound.items()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_benchmark_that_is_stopped_keeps_what_it_has(load: Any, number: signal.Signals) -> None:
    before, done = signal.getsignal(number), []
    with load("record").until_stopped(Console(file=io.StringIO())):
        for i in range(3):
            done.append(i)
            if i == 1:
                signal.raise_signal(number)
    assert done == [0, 1]
    assert signal.getsignal(number) is before


def test_views_whose_peers_were_not_measured_leave_their_goals_open(load: Any) -> None:
    augment = load("augment")
    compiled = {"side": 32, "batch": 512, "engine": "compiled", "views_per_second": 80.0}
    kornia = {"side": 32, "batch": 512, "engine": "kornia", "views_per_second": 10.0}
    (found,) = augment.verdict([compiled, kornia])
    assert found["reached"] == {"torchvision": None, "kornia": 8.0}
    assert found["met"] == [None, True]


@pytest.mark.parametrize("engine", ["torchvision", "lightly"])
def test_pictures_reach_workers_that_are_not_forked(load: Any, engine: str) -> None:
    if engine == "lightly":
        pytest.importorskip("lightly")
    sent = pickle.loads(pickle.dumps(load("augment").Pictures(engine, 8)))
    assert [view.shape for view in sent[0]] == [(3, 8, 8)] * 2


def test_a_recipe_of_ours_has_no_peers(load: Any) -> None:
    assert {case[1] for case in load("train_step").schedule(["cifar10_fast"], "cpu")} == {"bare", "ours"}


@pytest.mark.parametrize("half", [torch.bfloat16, None])
def test_twins_take_turns_and_their_steps_are_pooled(
    load: Any, monkeypatch: pytest.MonkeyPatch, half: torch.dtype | None
) -> None:
    train_step = load("train_step")
    monkeypatch.setattr(precision, "native_half", lambda device: half)
    order = [engine for _, engine, _ in train_step.schedule(["small"], "cpu")]
    assert order[: 2 * train_step.TURNS] == ["bare", "ours"] * train_step.TURNS
    assert order.count("lightly") == (2 if half else 1)  # in float32, its default, and in what the CPU is faster with
    cases = train_step.pooled([case("small", "ours", "x", 1.0, 9.0), case("small", "ours", "x", 2.0)])
    assert [one["images_per_second"] for one in cases] == [50.0]  # of the median of all three


def test_what_was_not_measured_leaves_its_goal_open(load: Any) -> None:
    train_step = load("train_step")
    failed = {"network": "small", "engine": "bare", "precision": "x", "skipped": "out of memory"}
    cases = train_step.pooled([failed, case("small", "ours", "x", 1.0)])
    assert [goal["met"] for goal in train_step.verdict(cases, "cpu")] == [None]


def test_the_verdict_on_whole_loops_holds_defaults_against_defaults(load: Any) -> None:
    run, pooled = load("run"), load("train_step").pooled
    cases = pooled(
        [
            case("resnet18", "bare", "bf16-mixed", 1.0),
            case("resnet18", "ours", "bf16-mixed", 1.1),
            case("resnet18", "lightly", "32-true", 4.0),
            case("resnet18", "lightly", "bf16-mixed", 1.5),
            case("small", "bare", "bf16-mixed", 0.1),
            case("small", "ours", "bf16-mixed", 0.1),
        ]
    )
    goals = {goal["goal"]: goal for goal in run.verdict(cases, "cpu")}
    assert goals["whole loop of ours, resnet18, of the bare step"]["met"] is False  # 0.91
    assert goals["whole loop of ours, resnet18, of lightly's default"]["reached"] == pytest.approx(4 / 1.1)
    assert goals["images/s of ours, small"]["met"] is True  # 1000
    on_gpu = {goal["goal"]: goal for goal in run.verdict(cases, "cuda")}
    assert on_gpu["seconds per epoch, resnet18"]["reached"] == pytest.approx(50_000 / (100 / 1.1))


def test_memory_on_paper_is_what_autograd_keeps(load: Any) -> None:
    """Activations by the formula, beside the bytes that the graph of a forward pass holds on to."""
    widths, side, rows = [16, 32, 64, 128], 24, 8
    model = Small(widths).to(memory_format=torch.channels_last)
    own = {p.data_ptr() for p in [*model.parameters(), *model.buffers()]}
    kept: dict[int, int] = {}

    def note(x: Tensor) -> Tensor:
        if x.data_ptr() not in own and x.ndim == 4 and x.shape[0] == rows:
            kept[x.data_ptr()] = x.untyped_storage().nbytes()
        return x

    with torch.autograd.graph.saved_tensors_hooks(note, lambda x: x), torch.autocast("cpu", torch.bfloat16):
        h = model(torch.randn(rows, 3, side, side))
    assert h.requires_grad
    on_paper = load("scaling").paper(0, rows // 2, side, widths, 0)["activations"]
    views = 4 * rows * 3 * side**2  # in float32: held by whoever made them
    assert sum(kept.values()) == pytest.approx(on_paper - views, rel=0.02)


def test_a_step_across_the_end_of_an_epoch_is_told_apart(load: Any) -> None:
    scaling = load("scaling")
    first = scaling.WARM  # steps before the first that is measured
    within, across = scaling.parts([float(i) for i in range(8)], per_epoch=4)
    assert across == [float(i) for i in range(8) if (first + i) % 4 == 0]
    assert len(within) + len(across) == 8


def test_the_dearest_image_counts_only_where_all_were_measured(load: Any) -> None:
    unevenness = load("scaling").unevenness
    assert unevenness([{"images_per_second": 100.0}, {"images_per_second": 80.0}]) == 1.25
    assert unevenness([{"images_per_second": 100.0}, {"skipped": "why"}]) is None


@pytest.mark.parametrize(
    ("top1", "word", "code"), [(0.69, "below", 2), (0.70, "reached", 0), (0.79, "reached", 0), (0.81, "above", 0)]
)
def test_a_row_is_reached_within_the_interval(load: Any, top1: float, word: str, code: int) -> None:
    reproduce = load("reproduce")
    judged = reproduce.judge({"top1": top1}, {"top1": 0.75, "interval": [0.70, 0.80]})
    assert judged == word
    assert reproduce.exit_code([judged, "reached"]) == code
    assert reproduce.judge({"top1": top1}, None) == "not committed"


def test_every_measured_row_of_the_results_can_be_compared(load: Any) -> None:
    reproduce = load("reproduce")
    rows = [
        line.split("|")
        for line in (ROOT / "docs" / "results.md").read_text().splitlines()
        if "train.py experiment=" in line
    ]
    measured = [r[1].split("experiment=")[1].split("`")[0] for r in rows if len(r) > 4 and "**" in r[4]]
    assert "cifar10_cpu" in measured
    for row in measured:
        assert reproduce.figures(reproduce.RESULTS / row).keys() == {"linear", "knn"}, row


def test_the_plainest_nt_xent_is_ours(load: Any) -> None:
    z1, z2 = torch.randn(2, 6, 4).double()
    assert float(load("peers").nt_xent(z1, z2, 0.3)) == pytest.approx(float(nt_xent(z1, z2, 0.3)), rel=1e-5)


@pytest.mark.parametrize("name", ["lightly", "solo-learn-like", "dkobak-like"])
def test_a_peer_trains_until_it_is_told_to_stop(load: Any, name: str) -> None:
    if name == "lightly":
        pytest.importorskip("lightly")
    peers, images = load("peers"), load("scaling").synthetic(8, "train")
    peer, steps = peers.PEERS[name]("small"), []
    before = [p.clone() for p in peer.parameters()]

    def progress() -> float:
        steps.append(1)
        return len(steps) / 3

    peer.fit(peers.loader(peer, images, 4, 0, "cpu"), 4, "32-true", "cpu", progress)
    assert len(steps) == 3
    assert any(not torch.equal(p, q) for p, q in zip(before, peer.parameters(), strict=True))
    v1, v2 = peers.Pictures(images, peer.transform(32))[0]
    assert v1.shape == v2.shape == (3, 32, 32)
    assert not torch.equal(v1, v2)


@pytest.mark.parametrize("engine", ["bare", "ours", "dkobak-like"])
def test_a_step_is_measured(load: Any, engine: str) -> None:
    found = load("train_step").measure(engine, "small", [*TINY, NO_CROP], "32-true", "cpu", budget=0.0)
    assert len(found["step_seconds"]) == 3
    assert min(found["step_seconds"]) > 0


@pytest.mark.parametrize("engine", ["ours", "dkobak-like"])
def test_a_whole_loop_is_measured(load: Any, engine: str, monkeypatch: pytest.MonkeyPatch) -> None:
    run = load("run")
    monkeypatch.setattr(run, "cores", lambda: 1)
    found = run.measure(engine, "small", TINY, "32-true", "cpu", share=0.0)
    assert len(found["step_seconds"]) >= 1
    assert min(found["step_seconds"]) > 0


def test_a_run_is_measured_beside_its_memory_on_paper(load: Any) -> None:
    words = [word for word in TINY if not word.startswith(("data", "batch_size"))]
    found = load("scaling").measure(words, "sgd", n=48, batch=16, steps=5, processes=1, threads=0)
    assert found["images_per_second"] > 0
    assert found["epoch_end_seconds"] is not None  # an epoch of three steps ended
    assert found["paper_bytes"]["images"] == 48 * 3 * 32 * 32


@pytest.mark.slow
@pytest.mark.parametrize("script", ["train_step", "run", "scaling"])
def test_the_command_writes_its_record(script: str, tmp_path: Path) -> None:
    pytest.importorskip("lightly")
    out = tmp_path / "result.json"
    command = [sys.executable, str(ROOT / "benchmarks" / f"{script}.py"), "--quick", "--out", str(out)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    result = json.loads(out.read_text())
    assert {"verdict", "machine", "versions", "commit"} <= result.keys()
    assert "skipped" not in out.read_text()
    assert script != "run" or out.with_suffix(".png").exists()


@pytest.mark.slow
def test_a_row_is_run_again_in_slices(tmp_path: Path) -> None:
    """A first slice that ends too early, then the same command to the end, where the shrunk row falls short."""
    tiny = [word for word in TINY if not word.startswith(("knn", "data=", "batch_size"))]
    words = [*tiny, "batch_size=32", "epochs=40", "knn.every_epochs=40", NO_CROP, "optimizer.warmup_epochs=0"]
    command = [sys.executable, str(ROOT / "benchmarks" / "reproduce.py"), "row=demo", f"out={tmp_path / 'run'}", *words]
    first = subprocess.run([*command, "minutes=0.02"], capture_output=True, text=True)
    assert first.returncode == 3, first.stdout + first.stderr
    second = subprocess.run(command, capture_output=True, text=True)
    assert second.returncode == 2, second.stdout + second.stderr
    judged = json.loads((tmp_path / "run" / "reproduce.json").read_text())["judged"]
    assert judged == {"linear": "below", "knn": "below"}


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("engine", ["bare", "ours"])
def test_a_step_on_a_gpu_is_measured_in_the_allocators_bytes(load: Any, engine: str) -> None:
    words = ["encoder=resnet18", "batch_size=32", "data=shapes"]
    found = load("train_step").measure(engine, "resnet18", words, "bf16-mixed", "cuda", budget=0.0)
    weights = 4 * 11_000_000
    assert found["extra_bytes"] > 3 * weights  # with gradients and momentum
    assert min(found["step_seconds"]) > 0


def test_the_search_for_recipes_changes_what_each_method_has(load: Any) -> None:
    """Its axes name keys of the configurations, and its trials come in the order of the study."""
    from hydra import compose, initialize_config_dir

    recipes = load("method_recipes")
    with initialize_config_dir(str(ROOT / "configs"), version_base="1.3"):
        for method, axes in recipes.AXES.items():
            words = recipes.command(method, 2, False, Path("folder"))
            experiment = next(word for word in words if word.startswith("experiment="))
            for key, values in axes.items():
                for value in values:
                    assert compose("train", [experiment, override(key, value)]) != compose("train", [experiment])


def test_the_trials_of_a_search_come_in_the_order_of_the_study(load: Any, tmp_path: Path) -> None:
    (tmp_path / "study.json").write_text(json.dumps({"arms": ["as it is", "faster"]}))
    runs = {"b": {"arm": "faster", "status": "failed"}, "a": {"arm": "as it is", "status": "finished", "hash": "a"}}
    (tmp_path / "runs.json").write_text(json.dumps(runs))
    assert load("method_recipes").trials(tmp_path) == [
        {"arm": "as it is", "status": "finished"},
        {"arm": "faster", "status": "failed"},
    ]
