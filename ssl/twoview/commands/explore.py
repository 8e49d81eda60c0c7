"""`twoview explore`: answers about one's own images, from the features of a run's encoder."""

import importlib.util
import logging
import math
import shlex
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

import numpy as np
import torch
from omegaconf import DictConfig
from torch import Tensor

from twoview.cli.entry import overrides, plain
from twoview.cli.program import spelled
from twoview.encoder.frozen import Frozen
from twoview.errors import UserError
from twoview.evaluate.files import blocks_of, dim_of
from twoview.evaluate.subject import Split, check_run, device_of, frozen, names_other_data, sets_of
from twoview.explore import kept, labels
from twoview.explore.clusters import Method
from twoview.explore.gallery import Gallery
from twoview.explore.make import explore, look_up, write_projection, write_tables
from twoview.explore.neighbours import Search
from twoview.explore.page import compose
from twoview.explore.plane import Kind
from twoview.explore.queries import queries
from twoview.report.words import clock
from twoview.run.atomic import filling
from twoview.run.checkpoint import EncoderOf, load_encoder
from twoview.run.folder import checkpoint_file

log = logging.getLogger(__name__)

KEYS = {
    "ckpt": str | None,
    "query": str | list[str] | None,
    "labels": str | None,
    "next": int,
    "projector": int,
    "split": Split,
    "k": int,
    "duplicates": float,
    "clusters": int | None,
    "method": Method,
    "map": Kind,
    "seed": int,
    "search": Search,
    "encoder_of": EncoderOf,
    "batch_size": int,
    "device": Literal["auto", "cpu", "cuda"],
    "force": bool,
    "out": str | None,
}
TOLD = 5  # nearest images of a query that are printed


def explore_command(composed: DictConfig) -> int:
    """`twoview explore`."""
    started = time.monotonic()
    config = plain(composed)
    _check(config)
    encoder = load_encoder(config["ckpt"], config["encoder_of"])
    sets = sets_of(config, encoder)
    gallery = Gallery(sets)
    asked, inside = queries(_words(config["query"]), encoder, gallery.names)
    given = labels.read(Path(config["labels"]).expanduser(), gallery.names) if config["labels"] else {}
    outside = Gallery({"query": asked}) if asked is not None else None
    name = next(iter(sets.values())).name
    folder, decided = _folder(config, name), kept.key(encoder, sets)
    before = kept.read(folder, decided)
    with frozen(encoder):
        device = device_of(config["device"])
        encoder.to(device)
        if before is None:
            features = _features(encoder, gallery, config)
        else:
            log.info("features are those kept in %s", folder / kept.FILE)
            features = torch.from_numpy(before).to(device)
        of_queries = _features(encoder, outside, config) if outside is not None else features[:0]
        encoder.to("cpu")
    found = explore(gallery, features, given, config)
    look_up(found, features, outside, of_queries, inside, config)
    page = compose(found, {"data": name, "encoder": _encoder(encoder), **_lines(folder)})
    with filling(folder) as part:
        if before is None:
            kept.write(part, features, sets, decided)
        write_tables(part, found)
        page.write(part / "explore.html")
    if config["projector"]:
        write_projection(folder / "projector", found, features, config["projector"])
        log.info("to walk through them:  tensorboard --logdir %s", shlex.quote(str(folder / "projector")))
    if not found.queries:
        for table in ("queries.csv", "queries.parquet"):
            (folder / table).unlink(missing_ok=True)  # an earlier page's
    for query in found.queries:
        shown = list(zip(query.rows, query.similarity, strict=True))[:TOLD]
        log.info("%s: %s", query.name, ", ".join(f"{gallery.names[row]} ({s:.3f})" for row, s in shown))
    copies = sum(len(group.rows) for group in found.groups)
    log.info("%s images, %s near duplicates in %s groups", f"{len(gallery):,}", f"{copies:,}", f"{len(found.groups):,}")
    log.info("done in %s: %s", clock(time.monotonic() - started), folder / "explore.html")
    return 0


def _check(config: dict[str, Any]) -> None:
    check_run(config, KEYS)
    for key, least in (("batch_size", 1), ("k", 1), ("next", 0), ("projector", 0)):
        if config[key] < least:
            raise UserError(f"{key}={config[key]} must be at least {least}")
    if not 0 < config["duplicates"] <= 1 or not math.isfinite(config["duplicates"]):
        raise UserError(f"duplicates={config['duplicates']} is a likeness: above 0, and 1 for the same image")
    if config["clusters"] is not None and config["clusters"] < 1:
        raise UserError(f"clusters={config['clusters']} must be at least 1, or null: as many as there are")
    if not 0 <= config["seed"] < 2**32:
        raise UserError(f"seed={config['seed']} must lie in [0, 2^32)")
    if lacking := [name for name in ("jinja2", "scipy", "sklearn") if importlib.util.find_spec(name) is None]:
        raise UserError(f"explore needs {' and '.join(lacking)}: pip install 'twoview[explore]'")
    if config["search"] == "faiss" and importlib.util.find_spec("faiss") is None:
        raise UserError("search=faiss needs faiss: pip install 'twoview[faiss]'; or use search=exact")
    if config["map"] == "umap" and importlib.util.find_spec("umap") is None:
        raise UserError("map=umap needs umap-learn: pip install 'twoview[umap]'; or use map=pca")


def _lines(folder: Path) -> dict[str, str]:
    """The line that made the page, and those that ask for more, to be typed."""
    words = overrides()
    rest = [word for word in words if not word.startswith(("query=", "labels="))]
    return {
        "command": spelled("explore", *words),
        "search": spelled("explore", *rest, "query=<value>"),
        "labels": spelled("explore", *rest, f"labels={folder / 'to_label.csv'}"),
    }


def _words(query: str | list[str] | None) -> list[str]:
    return [query] if isinstance(query, str) else list(query or [])


def _features(encoder: Frozen, gallery: Gallery, config: dict[str, Any]) -> Tensor:
    """float32 (N, D) on the device of the encoder."""
    dim_of(encoder, next(iter(gallery.sets.values())))  # UserError for images that do not fit
    blocks = list(blocks_of(encoder, gallery.sets, config["batch_size"]))
    return torch.from_numpy(np.concatenate(blocks)).to(next(encoder.parameters()).device)


def _encoder(encoder: Frozen) -> str:
    run = encoder.config
    method = str(run.get("model", {}).get("_target_", "")).rpartition(".")[2]
    return f"the encoder of {run.get('name', 'a run')} ({method}, {encoder.dim} features)"


def _folder(config: dict[str, Any], data: str) -> Path:
    """The folder of the page. UserError, before minutes of work, where it cannot be written."""
    name = f"explore_{data}" if names_other_data(config) else "explore"
    folder = Path(config["out"]).expanduser() if config["out"] else checkpoint_file(config["ckpt"]).parent / name
    remedy = "name another folder by out=..."
    if folder.exists() and not folder.is_dir():
        raise UserError(f"cannot write {folder}: it is a file; {remedy}")
    try:
        with TemporaryDirectory(dir=folder if folder.is_dir() else folder.parent, prefix=".explore."):
            pass
    except OSError as error:
        raise UserError(f"cannot write {folder}: {error.strerror}; {remedy}") from error
    return folder
