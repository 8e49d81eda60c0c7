"""What a card states besides its measurements: what was judged and how, and caveats."""

import hashlib
import json
import math
from collections.abc import Mapping
from datetime import datetime
from typing import Any

from twoview.card import measures
from twoview.card.measures import OTHER, RUN, UNTRAINED, Judged
from twoview.cli.entry import overrides
from twoview.cli.program import spelled
from twoview.data.demand import shape_words
from twoview.encoder.frozen import Frozen
from twoview.evaluate.classify.score import fingerprint
from twoview.evaluate.subject import Subject
from twoview.run.folder import checkpoint_file
from twoview.run.identity import apart, differences
from twoview.run.provenance import commit, machine, versions

SETTINGS = (  # on which the numbers depend
    *("strengths", "holdout", "seed", "k", "temperature", "fractions", "label_seeds"),
    *("corruption_images", "quality_images", "invariance_images", "map_images"),
)


def unlabelled(own: Subject) -> str:
    """Why what needs labels cannot be measured; empty where it can."""
    for images, split in ((own.train, "train"), (own.test, "test")):
        if images.labels is None:
            return f"{images.name} has no labels in its {split} split"
    return ""


def about(config: Mapping[str, Any], own: Subject) -> dict[str, Any]:
    """The run, the data, the settings and the machine."""
    run = own.encoder.config
    settings = {key: config[key] for key in SETTINGS}
    encoders = {RUN: _encoder(config["ckpt"]), UNTRAINED: {"seed": run.get("seed")}}
    if config["against"]:
        encoders[OTHER] = _encoder(config["against"])
    return {
        "name": str(run.get("name", "run")),
        "method": str(run.get("model", {}).get("_target_", "")).rpartition(".")[2],
        "network": str(run["encoder"].get("_target_", "")).rpartition(".")[2],
        "dim": own.encoder.dim,
        "parameters": sum(p.numel() for p in own.encoder.parameters()),
        "data": own.train.name,
        "classes": list(own.train.classes),
        "shape": own.train.shape,
        "trained_on_shape": own.encoder.shape,
        "train_size": len(own.train),
        "test_size": len(own.test),
        "test_counts": None
        if own.test.labels is None
        else own.test.labels.bincount(minlength=len(own.test.classes)).tolist(),
        "epochs": run.get("epochs"),
        "encoder_of": config["encoder_of"],
        "encoders": encoders,
        "settings": settings,
        "settings_hash": fingerprint(settings),
        "command": spelled("evaluate", *overrides()),
        "machine": machine(),
        "versions": versions(),
        "commit": commit(),
        "made": datetime.now().astimezone().isoformat(timespec="seconds"),
    }


def _encoder(ckpt: str) -> dict[str, Any]:
    file = checkpoint_file(ckpt)
    return {"checkpoint": str(ckpt), "checkpoint_sha256": hashlib.sha256(file.read_bytes()).hexdigest()}


def caveats(judged: Judged, own: Subject, missing: Mapping[str, str]) -> list[str]:
    """What a reader must know before believing the rest."""
    found = []
    seen = own.encoder.shape
    if seen is not None and seen != own.train.shape:
        shapes = shape_words(seen), shape_words(own.train.shape)
        found.append(f"The encoder was trained on samples of {shapes[0]} and is judged on {shapes[1]}.")
    if OTHER in judged.encoders:
        found += _unlike(own.encoder, judged.encoders[OTHER].network)
    names = {RUN: "the encoder", UNTRAINED: "the untrained encoder", OTHER: "the other run's encoder"}
    same = [names[name] for name in measures.collapsed(judged.encoders)]
    found += [f"All training images have the same features: {name} tells nothing apart." for name in same]
    reason = unlabelled(own)  # stated in the head of the page
    if not reason and judged.test.labels is not None:
        there = judged.test.labels.bincount(minlength=judged.classes)
        if len(judged.test) < judged.classes:
            found.append(f"{len(judged.test)} test images for {judged.classes} classes: the intervals are wide.")
        elif bool((there == 0).any()):
            found.append(f"{int((there == 0).sum())} of {judged.classes} classes have no test image, and no accuracy.")
    quiet = ("curves", "doctor")  # stated in their place on the page
    left_out = {name: why for name, why in missing.items() if why != reason and name not in quiet}
    return found + [f"{name.replace('_', ' ').capitalize()}: {why}" for name, why in left_out.items()]


def _unlike(mine: Frozen, theirs: Frozen) -> list[str]:
    """In what the other run differs, if it does."""
    changes = differences(mine.config, theirs.config)
    changes += [f"another {part}" for part in apart(mine.identity, theirs.identity)]
    more = f"; and {len(changes) - 8} more" if len(changes) > 8 else ""
    return [f"The other run differs: {'; '.join(changes[:8])}{more}."] if changes else []


def finite(node: Any) -> Any:
    """Plain containers without NaN and infinities, which JSON does not have."""
    if isinstance(node, Mapping):
        return {str(key): finite(value) for key, value in node.items()}
    if isinstance(node, list | tuple):
        return [finite(value) for value in node]
    if isinstance(node, float) and not math.isfinite(node):
        return None
    return json.loads(json.dumps(node)) if not isinstance(node, str | int | float | bool | type(None)) else node
