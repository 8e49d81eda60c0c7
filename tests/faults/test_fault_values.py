"""Every key of every configuration, with values of every wrong kind: one message that names the key, or a run that
ends.
"""

import functools
import json
import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from omegaconf import DictConfig, OmegaConf

from faults.battery import table
from twoview.cli.configs import CONFIGS
from twoview.cli.entry import plain
from twoview.cli.explain import explain
from twoview.train import pretrain
from twoview.train.config import SECTIONS

TINY = ("data=shapes", "data.n_train=16", "data.n_test=8", "data.size=8", "encoder=small", "encoder.widths=[4,4,4,4]")
TINY += ("model.projector.hidden_dim=8", "batch_size=8", "epochs=1", "loader.max_batches=1", "trainer=cpu")
TINY += ("log_every_steps=1", "knn.every_epochs=1")
LIMIT = "00:02"  # of a run whose other values are healthy

# Each key gets one value of each kind: those of a kind take the same way through the code, whatever the key.
VALUES: dict[str, dict[str, Any]] = {
    "of a wrong type": {"text": "wrong", "no text": "", "true": True, "list": [], "section": {}},
    "null": {"null": None},
    "out of range": {"negative": -1, "zero": 0, "half": 0.5, "tiny": 1e-300},
    "huge": {"huge": 10**18, "beyond 64 bits": 10**30},
    "no number": {"infinite": float("inf"), "not a number": float("nan")},
}
ALL = {name: value for kind in VALUES.values() for name, value in kind.items()}
# They start that many processes, wait for that many machines, or for a compiler.
HONEST = {("trainer.devices", "huge"), ("trainer.num_nodes", "huge"), ("augment.compile", "true")}
# Keys whose message tells of the matter in words of its own.
SAID = {"resume": "checkpoint", "size": "pixel", "ops": "augment", "root": "folder", "devices": "device"}
# What training itself finds out, with the run folder begun.
FOUND_BY_TRAINING = ("is not finite", "NaN or infinite features")


def leaves(node: Any, path: str) -> Iterator[str]:
    if isinstance(node, dict) and node:
        for key, value in node.items():
            yield from leaves(value, f"{path}.{key}" if path else str(key))
    else:
        yield path


def keys() -> Iterator[tuple[str, str]]:
    """(option, key), from the files themselves: composing them all would take seconds."""
    skipped = ("defaults", "hydra")
    train = yaml.safe_load((CONFIGS / "train.yaml").read_text())
    for key in leaves({name: value for name, value in train.items() if name not in skipped}, ""):
        yield "", key
    seen = set()
    for path in sorted(CONFIGS.glob("*/*.yaml")):
        group, option = path.parent.name, path.stem
        content = yaml.safe_load(path.read_text())
        if path.name == "audio.yaml":  # no policy for images: tests/augment/audio tries its values
            continue
        if group not in SECTIONS or path.read_text().startswith("# @package"):
            continue
        for key in leaves({name: value for name, value in content.items() if name not in skipped}, group):
            known = (content.get("_target_", "").replace("34", "18").replace("50", "18"), key)
            if known not in seen:
                seen.add(known)
                yield f"{group}={option}", key


def cases() -> Iterator[tuple[str, str, str, Any]]:
    for option, key in keys():
        for kind, values in VALUES.items():
            name = random.Random(f"{option} {key} {kind}").choice(list(values))
            if (key, name) not in HONEST and key != "debug":
                yield f"{option} {key} {name}".strip(), option, key, values[name]


@functools.cache
def healthy(option: str) -> DictConfig:
    """A tiny run with an option, unresolved: what refers to a key follows it."""
    group, _, name = option.partition("=")
    words = [
        word for word in TINY if not group or word.partition("=")[0].partition(".")[0] != group or group == "model"
    ]
    words += [option] if option else []
    words += {
        "encoder=small": ["encoder.widths=[4,4,4,4]"],
        "encoder=timm": ["data.size=32"],  # the smallest that its network takes is above 8
        "augment=simclr_imagenet": ["augment.ops.crop.size=8"],
        "model=moco": ["model.split_batch_norm=2"],
        "model=mocov3": ["model.predictor.hidden_dim=8"],
        "model=swav": ["model.prototypes=8"],
        "model=wmse": ["model.group=8", "model.projector.out_dim=4"],
    }.get(option, [])
    if group == "optimizer":
        words.append("optimizer.warmup_epochs=0")
    if group == "data" and name != "shapes":
        words.append("data.root=nowhere")
    GlobalHydra.instance().clear()
    with initialize_config_dir(version_base="1.3", config_dir=str(CONFIGS)):
        return compose("train", overrides=words)


def with_value(option: str, key: str, value: Any) -> dict[str, Any]:
    config = healthy(option).copy()
    OmegaConf.set_struct(config, False)
    if key != "trainer.max_time" and isinstance(config.get("trainer"), DictConfig):
        config.trainer.max_time = LIMIT
    OmegaConf.update(config, key, value, merge=False)
    return plain(config)


def assert_named(message: str, key: str) -> None:
    last = key.rpartition(".")[2]
    assert last in message or SAID.get(last, last) in message.lower(), message
    assert len(message) < 900
    assert "debug=true shows where" not in message, message
    assert "\n" not in message


@pytest.mark.parametrize(("name", "option", "key", "value"), table("keys x wrong values", cases(), quick=60))
def test_a_value_is_refused_by_name_or_harmless(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, option: str, key: str, value: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("twoview.data.image.cifar._reachable", lambda url: False)
    folder = tmp_path / "run"
    try:
        summary = pretrain.run(with_value(option, key, value), folder)
    except Exception as error:
        message = explain(error)
        if any(words in message for words in FOUND_BY_TRAINING):
            assert not (folder / "encoder.safetensors").exists()
            return
        if "data.root=nowhere" in str(option) or "nowhere" in message:  # all the rest was accepted
            return
        assert_named(message, key)
        assert not list(folder.rglob("*")), "something was written before the refusal"
    else:
        assert summary["status"] in ("finished", "stopped: trainer.max_time is over")
        assert json.loads((folder / "summary.json").read_text()) == json.loads(json.dumps(summary))


def words(value: Any) -> str:
    return {None: "null", True: "true"}.get(value, str(value)) if not isinstance(value, list | dict) else str(value)


def typed() -> Iterator[tuple[str, str, str, str]]:
    """Each key once, typed."""
    for option, key in keys():
        name = random.Random(f"{option} {key}").choice(["text", "negative", "beyond 64 bits"])
        if "_partial_" not in key and key != "debug":
            yield f"{option} {key} {name}".strip(), option, key, words(ALL[name])


@pytest.mark.parametrize(("name", "option", "key", "value"), table("keys x wrong words typed", typed(), quick=10))
def test_typed_it_ends_in_one_message_or_a_run(
    tmp_path: Path, command: Callable[..., Any], monkeypatch: pytest.MonkeyPatch,
    name: str, option: str, key: str, value: str,
) -> None:  # fmt: skip
    monkeypatch.setattr("twoview.data.image.cifar._reachable", lambda url: False)
    group = option.partition("=")[0]
    chosen = [word for word in TINY if not group or word.partition("=")[0].partition(".")[0] != group]
    ended = command(*chosen, *([option] if option else []), f"trainer.max_time={LIMIT}", f"{key}={value}")
    assert ended.code in (0, 1), ended.err
    if ended.code == 1:
        assert "debug=true" not in ended.error
        assert "Traceback" not in ended.out
        assert not list(tmp_path.rglob("*.ckpt"))


RUN = "the run"  # stands for the folder of a finished run
QUICK = ["data=shapes", "data.n_train=16", "data.size=8"]
# Of every command with a configuration of its own: words that make a moment of it.
SCRIPTS: dict[str, list[str]] = {
    "ablate": [*TINY[:-1], "study=strength", "study.axes={augment.strength:[0,1]}", "folder=f", "dry_run=true"],
    "doctor": [f"run={RUN}", "out=out.json"],
    "embed": [f"ckpt={RUN}", "out=out.npz"],
    "evaluate": [f"ckpt={RUN}", "out=card", "strengths=[0.01]", "k=[5]", "temperature=[0.1]", "fractions=[]"]
    + [f"{part}_images=0" for part in ("corruption", "quality", "invariance", "map")],
    "explore": [f"ckpt={RUN}", "out=explore"],
    "export": [f"ckpt={RUN}", "format=safetensors", "out=out.safetensors"],
    "finetune": [f"ckpt={RUN}", "epochs=1", "label_fraction=0.5", "lr_per_256=[0.1]", "out=out.json"],
    "knn": [f"ckpt={RUN}", "out=out.json"],
    "probe": [f"ckpt={RUN}", "strengths=[0.01]", "out=out.json"],
    "plot": [f"run={RUN}", "out=out.png"],
    "preview": [*QUICK, "images=2", "strengths=[0]", "out=out.png"],
    "selftest": ["devices=cpu", "world=2"],
}
NO_TYPE = {"list of lists": [[1]]}  # of no key: what takes it reads the key nowhere
LONG = {("selftest", "world", "beyond 64 bits"), ("ablate", "dry_run", "null")}


def script_cases() -> Iterator[tuple[str, str, str, Any]]:
    """Every key of every command's own configuration with a value of each kind."""
    for script in SCRIPTS:
        content = yaml.safe_load((CONFIGS / f"{script}.yaml").read_text())
        for key in leaves({k: v for k, v in content.items() if k not in ("defaults", "hydra", "debug")}, ""):
            for kind, values in (VALUES | {"of a wrong type": NO_TYPE}).items():
                name = random.Random(f"{script} {key} {kind}").choice(list(values))
                if kind != "no number" and (script, key, name) not in LONG:
                    yield f"{script} {key} {name}", script, key, values[name]


def content(path: Path) -> Any:
    """What is compared of a file: the header of safetensors has an order by chance, and an export writes it again."""
    data = path.read_bytes()
    if path.suffix != ".safetensors":
        return data
    start = 8 + int.from_bytes(data[:8], "little")
    return json.loads(data[8:start]), data[start:]


@pytest.mark.parametrize(("name", "script", "key", "value"), table("keys of scripts", script_cases(), quick=8))
def test_scripts_too(
    finished: Path, tmp_path: Path, command: Callable[..., Any], name: str, script: str, key: str, value: Any
) -> None:
    start = [word.replace(RUN, str(finished)) for word in SCRIPTS[script] if not word.startswith(f"{key}=")]
    before = {path: content(path) for path in finished.iterdir()}
    ended = command(*start, f"{key}={words(value)}", name=script)
    assert ended.code in ((0, 1, 2, 3) if script == "doctor" else (0, 1)), ended.err  # its verdicts
    assert ended.code == 1 or value != [[1]], "a key that nothing reads"
    if ended.code == 1:
        assert key.rpartition(".")[2] in ended.error or SAID.get(key, key) in ended.error, ended.error
        assert "debug=true" not in ended.error
        assert not [path for path in tmp_path.rglob("*") if path.is_file()]
    for path in set(finished.iterdir()) - before.keys():  # of a command without `out`
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    assert {path: content(path) for path in finished.iterdir()} == before
