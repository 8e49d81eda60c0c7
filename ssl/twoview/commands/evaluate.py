"""`scripts/evaluate.py`: everything that an encoder is worth, in one page, one JSON file and pictures.

Features of all images are extracted once per encoder: of the run, of an untrained encoder of the same shape and, with
`against`, of another run. All parts but those that change images work on what is stored.
"""

import contextlib
import importlib.util
import logging
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import hydra
from omegaconf import DictConfig
from rich import get_console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from twoview.card import atlas, measures, page
from twoview.card.about import about, caveats, finite, unlabelled
from twoview.card.measures import OTHER, RUN, UNTRAINED, Encoder, Judged
from twoview.cli import schema
from twoview.cli.configs import options
from twoview.cli.entry import plain
from twoview.cli.schema import unknown_option
from twoview.data.set import SampleSet
from twoview.encoder.frozen import Frozen
from twoview.errors import UserError
from twoview.evaluate.classify.labelled import check_strengths
from twoview.evaluate.features import extract
from twoview.evaluate.subject import Subject, checkpoint_file, frozen, subject
from twoview.report.words import clock
from twoview.run.checkpoint import instantiate_own, load_projector
from twoview.run.folder import METRICS, read_metrics
from twoview.run.identity import apart
from twoview.watch.doctor import examine_run

log = logging.getLogger(__name__)

KEYS = {
    "strengths": list[float],
    "holdout": float,
    "against": str | None,
    "across": bool,
    "transfer": list[str],
    "k": list[int],
    "temperature": list[float],
    "fractions": list[float],
    "label_seeds": int,
    "corruption_images": int,
    "quality_images": int,
    "invariance_images": int,
    "map_images": int,
}
SUBJECT = ("ckpt", "encoder_of", "device", "force", "out", "debug", "data", "strengths", "holdout", "seed")

Part = tuple[str, Callable[[], Any]]
Sets = tuple[SampleSet, SampleSet]  # train and test


def evaluate_command(composed: DictConfig) -> int:
    """`scripts/evaluate.py`."""
    config = plain(composed)
    _check(config)
    _need_extra()
    started = time.monotonic()
    own = subject(_for_subject(config), labelled=False)
    elsewhere = {name: _elsewhere(config, name) for name in config["transfer"]}
    networks = _networks(config, own)
    folder = _folder(config, own)
    facts: dict[str, Any] = about(config, own)
    seconds: dict[str, float] = {}
    missing: dict[str, str] = {}
    with contextlib.ExitStack() as stack:
        proofs = {name: stack.enter_context(frozen(network)) for name, (network, _) in networks.items()}
        judged = Judged(own.train, own.test, {}, config, own.device)

        def features(name: str) -> None:
            network, projector = networks[name]
            x, y = (extract(network, images, device=own.device).to(own.device) for images in (own.train, own.test))
            network.to(own.device)
            judged.encoders[name] = Encoder(network, projector and projector.to(own.device), x, y)

        todo: list[Part] = [(f"features, {name}", partial(features, name)) for name in networks]
        todo += _parts(judged, folder, elsewhere)
        reason = unlabelled(own)
        drawn: dict[str, Any] = {}
        for name, part in _shown(todo, seconds):
            if reason and name in NEED_LABELS:
                missing[name] = reason
                continue
            try:
                if name in NEED_PROBE and judged.encoders[RUN].head is None:
                    raise UserError("there is no linear probe")
                found = part()
            except UserError as error:
                if name.startswith("features"):
                    raise
                missing[name] = str(error)
                continue
            if found is not None:
                (drawn if name in DRAWN else facts)[name] = found
        facts["caveats"] = caveats(judged, own, missing)
        facts["paired"] = measures.differences(judged.right)
        for network, _ in networks.values():
            network.to("cpu")
    for name, proof in proofs.items():
        facts["encoders"][name] |= {"frozen": proof}
    facts |= {"missing": missing, "seconds": seconds, "total_seconds": round(time.monotonic() - started, 2)}
    began = time.monotonic()
    page.write(folder, finite(facts), drawn)
    log.debug("page and pictures in %.1f s", time.monotonic() - began)
    log.info("done in %s: %s", clock(time.monotonic() - started), folder / "card.html")
    return 0


NEED_LABELS = ("linear", "knn", "few_labels", "robustness")
NEED_PROBE = ("few_labels", "robustness")
DRAWN = ("neighbours", "maps", "curves")


def _parts(judged: Judged, folder: Path, elsewhere: Mapping[str, Sets]) -> list[Part]:
    config = judged.config
    ckpt = checkpoint_file(config["ckpt"]).parent

    def neighbours() -> list[atlas.Shown]:
        measures.neighbours(judged)
        return atlas.sheet(judged)

    every: list[tuple[bool, Part]] = [
        (True, ("linear", lambda: measures.linear(judged))),
        (True, ("neighbours", neighbours)),
        (True, ("knn", lambda: measures.knn(judged))),
        (bool(config["fractions"]), ("few_labels", lambda: measures.few_labels(judged))),
        (bool(config["transfer"]), ("transfer", lambda: measures.transfer(judged, elsewhere))),
        (config["corruption_images"] > 0, ("robustness", lambda: measures.robustness(judged))),
        (config["quality_images"] > 0, ("quality", lambda: measures.pairs(judged))),
        (config["invariance_images"] > 0, ("invariance", lambda: measures.ignored(judged))),
        (config["map_images"] > 0, ("maps", lambda: atlas.maps(judged))),
        (
            config["map_images"] > 0,
            ("projector", lambda: atlas.projector(judged, judged.encoders[RUN], folder / "projector")),
        ),
        (True, ("curves", lambda: read_metrics(ckpt / METRICS))),
        (True, ("doctor", lambda: examine_run(ckpt).plain())),
    ]
    return [part for wanted, part in every if wanted]


def _for_subject(config: dict[str, Any]) -> dict[str, Any]:
    return {key: config[key] for key in SUBJECT if key in config}


def _need_extra() -> None:
    """What the page is made with: its lack is known before minutes of work."""
    lacking = [name for name in ("jinja2", "matplotlib", "scipy") if importlib.util.find_spec(name) is None]
    if lacking:
        raise UserError(f"a card needs {' and '.join(lacking)}: pip install 'twoview[report]'")


def _check(config: dict[str, Any]) -> None:
    schema.check_keys(config, KEYS)
    check_strengths(config["strengths"])
    if not 0 < config["holdout"] < 1:
        raise UserError(f"holdout={config['holdout']} must lie between 0 and 1")
    if not config["k"] or min(config["k"]) < 1:
        raise UserError(f"k={config['k']} must be one or more numbers of at least 1")
    if not config["temperature"] or not all(0 < t < math.inf for t in config["temperature"]):
        raise UserError(f"temperature={config['temperature']} must be one or more positive numbers")
    if not all(0 < share <= 1 for share in config["fractions"]):
        raise UserError(f"fractions={config['fractions']} are shares of the labels: above 0 and up to 1")
    for key in ("label_seeds", *(key for key in KEYS if key.endswith("_images"))):
        if config[key] < (key == "label_seeds"):
            raise UserError(f"{key}={config[key]} is too few")


def _elsewhere(config: dict[str, Any], name: str) -> Sets:
    """The images of a data option, loaded and checked as `data=<name>` is."""
    if name not in options("data"):
        raise UserError("transfer: " + unknown_option("data", name, options("data")))
    composed = plain(hydra.compose("evaluate", overrides=[f"data={name}"]))
    other = subject(_for_subject(config) | {"data": composed["data"]})
    return other.train, other.test


def _networks(config: dict[str, Any], own: Subject) -> dict[str, tuple[Frozen, Any]]:
    """Every encoder of the card with its projection head, where the file holds one."""
    found = {RUN: (own.encoder, _projector(config["ckpt"]))}
    fresh = own.untrained()  # seeds torch's generator: nothing may be drawn before the head is
    found[UNTRAINED] = fresh, _untrained_projector(own, fresh)
    if config["against"]:
        other = subject(_for_subject(config) | {"ckpt": config["against"]}, labelled=False)
        if not config.get("data"):
            for split in ("train", "test"):
                mine, theirs = getattr(own, split), getattr(other, split)
                if mine.digest() != theirs.digest():
                    raise UserError(
                        f"against={config['against']} was made for other data: its {split} split ({theirs.name}, "
                        f"{len(theirs):,} images) is not this run's ({mine.name}, {len(mine):,}); judge both on the "
                        "same set by data=..."
                    )
        unlike = apart(own.encoder.identity, other.encoder.identity)  # type: ignore[arg-type]
        if unlike and not config["across"]:
            raise UserError(
                f"against={config['against']}: {', '.join(unlike)} of the two runs differ or are unknown, so more than "
                "their configurations would be compared; across=true compares them all the same"
            )
        found[OTHER] = (other.encoder, _projector(config["against"]))
    return found


def _projector(ckpt: str) -> Any:
    return None if checkpoint_file(ckpt).suffix == ".safetensors" else load_projector(ckpt)


def _untrained_projector(own: Subject, fresh: Frozen) -> Any:
    """The head that the run started from: drawn right after the encoder."""
    run: dict[str, Any] = own.encoder.config  # type: ignore[assignment]
    if not isinstance(run.get("model"), dict) or not isinstance(run.get("optimizer"), dict):
        return None
    recipe = instantiate_own(run["optimizer"], "optimizer")
    model = instantiate_own(run["model"], "model", encoder=fresh.encoder, optimizer=recipe)
    projector = next(iter(model.heads().values()), None)
    return projector and projector.requires_grad_(False).eval()


def _folder(config: dict[str, Any], own: Subject) -> Path:
    """Made at once: what cannot be written is known before minutes of work."""
    name = f"card_{own.train.name}" if config.get("data") else "card"
    folder = Path(config["out"]).expanduser() if config["out"] else checkpoint_file(config["ckpt"]).parent / name
    try:
        folder.mkdir(parents=True, exist_ok=True)
        trial = folder / ".card.part"
        trial.touch()
        trial.unlink()
    except OSError as error:
        raise UserError(f"cannot write into {folder}: {error.strerror}; name another folder by out=...") from error
    return folder


def _shown(todo: Sequence[Part], seconds: dict[str, float]) -> Iterator[Part]:
    """Part by part, with a bar on a terminal and a line for each elsewhere; `seconds` gets the time of each."""
    columns = SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()
    shows = get_console().is_terminal
    with Progress(*columns, console=get_console(), transient=True, disable=not shows) as bar:
        task = bar.add_task("", total=len(todo))
        for n, (name, part) in enumerate(todo, start=1):
            began = time.monotonic()
            bar.update(task, description=name.replace("_", " "))
            yield name, part
            seconds[name] = round(time.monotonic() - began, 2)
            bar.advance(task)
            if not shows:
                log.info("%2d/%d  %s  %s", n, len(todo), clock(seconds[name]), name.replace("_", " "))
