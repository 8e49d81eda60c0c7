"""Makes a card: every measurement on every encoder, one after the other, and then the page.

The features of all images are extracted once per encoder. All measurements work on these, but for those that change
images.
"""

import contextlib
import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from rich import get_console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from twoview.card import atlas, measures, page
from twoview.card.about import about, caveats, finite, unlabelled
from twoview.card.encoders import Network
from twoview.card.measures import RUN, Encoder, Judged
from twoview.data.set import SampleSet
from twoview.errors import UserError
from twoview.evaluate.features import extract
from twoview.evaluate.subject import Subject, frozen
from twoview.report.words import clock
from twoview.run.folder import METRICS, checkpoint_file, read_metrics
from twoview.watch.doctor import examine_run

log = logging.getLogger(__name__)

NEED_LABELS = ("linear", "knn", "few_labels", "robustness")
NEED_PROBE = ("few_labels", "robustness")
SHOWN = ("neighbours", "maps", "curves")  # in figures alone, not in card.json

Measurement = tuple[str, Callable[[], Any]]
Sets = tuple[SampleSet, SampleSet]  # train and test


def make(
    config: Mapping[str, Any],
    own: Subject,
    networks: Mapping[str, Network],
    elsewhere: Mapping[str, Sets],
    folder: Path,
) -> None:
    """Writes the card of `own` into `folder`. What cannot be measured is left out and said; UserError where an encoder
    gives no features or was changed by the evaluation.
    """
    started = time.monotonic()
    content: dict[str, Any] = about(config, own)
    shown: dict[str, Any] = {}
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

        todo: list[Measurement] = [(f"features, {name}", partial(features, name)) for name in networks]
        todo += _measurements(judged, folder, elsewhere)
        reason = unlabelled(own)
        for name, measure in _tracked(todo, seconds):
            if reason and name in NEED_LABELS:
                missing[name] = reason
                continue
            try:
                if name in NEED_PROBE and judged.encoders[RUN].head is None:
                    raise UserError("there is no linear probe")
                found = measure()
            except UserError as error:
                if name.startswith("features"):
                    raise
                missing[name] = str(error)
                continue
            if found is not None:
                (shown if name in SHOWN else content)[name] = found
        content["caveats"] = caveats(judged, own, missing)
        content["paired"] = measures.differences(judged.right)
        for network, _ in networks.values():
            network.to("cpu")
    for name, proof in proofs.items():
        content["encoders"][name] |= {"frozen": proof}
    content |= {"missing": missing, "seconds": seconds, "total_seconds": round(time.monotonic() - started, 2)}
    page.write(folder, finite(content), shown)


def _measurements(judged: Judged, folder: Path, elsewhere: Mapping[str, Sets]) -> list[Measurement]:
    """Those that the configuration asks for, in the order of the page."""
    config = judged.config
    ckpt = checkpoint_file(config["ckpt"]).parent

    def neighbours() -> list[atlas.Shown]:
        measures.neighbours(judged)
        return atlas.sheet(judged)

    every: list[tuple[bool, Measurement]] = [
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
    return [measurement for wanted, measurement in every if wanted]


def _tracked(todo: Sequence[Measurement], seconds: dict[str, float]) -> Iterator[Measurement]:
    """One after the other, with a bar on a terminal and a line for each elsewhere; `seconds` gets the time of each."""
    columns = SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()
    is_terminal = get_console().is_terminal
    with Progress(*columns, console=get_console(), transient=True, disable=not is_terminal) as bar:
        task = bar.add_task("", total=len(todo))
        for n, (name, measure) in enumerate(todo, start=1):
            began = time.monotonic()
            bar.update(task, description=name.replace("_", " "))
            yield name, measure
            seconds[name] = round(time.monotonic() - began, 2)
            bar.advance(task)
            if not is_terminal:
                log.info("%2d/%d  %s  %s", n, len(todo), clock(seconds[name]), name.replace("_", " "))
