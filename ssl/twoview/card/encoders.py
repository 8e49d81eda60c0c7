"""The encoders that a card sets side by side."""

from collections.abc import Mapping
from typing import Any

from torch import nn

from twoview.card.measures import OTHER, RUN, UNTRAINED
from twoview.encoder.frozen import Frozen
from twoview.errors import UserError
from twoview.evaluate.subject import Subject, names_other_data
from twoview.run.checkpoint import instantiate_own, load_projector
from twoview.run.folder import checkpoint_file
from twoview.run.identity import apart

Network = tuple[Frozen, nn.Module | None]  # an encoder with its projection head, where the file holds one


def networks(config: Mapping[str, Any], own: Subject, other: Subject | None) -> dict[str, Network]:
    """The run's, the untrained one and, with `against`, that of the `other` run, which is refused where the two do not
    compare.
    """
    found: dict[str, Network] = {RUN: (own.encoder, _projector(config["ckpt"]))}
    fresh = own.untrained()  # seeds torch's generator: nothing may be drawn before the head is
    found[UNTRAINED] = fresh, _untrained_projector(own, fresh)
    if other is not None:
        if not names_other_data(config):
            for split in ("train", "test"):
                mine, theirs = getattr(own, split), getattr(other, split)
                if mine.digest() != theirs.digest():
                    raise UserError(
                        f"against={config['against']} was made for other data: its {split} split ({theirs.name}, "
                        f"{len(theirs):,} images) is not this run's ({mine.name}, {len(mine):,}); judge both on the "
                        "same set by data=..."
                    )
        unlike = apart(own.encoder.identity, other.encoder.identity)
        if unlike and not config["across"]:
            raise UserError(
                f"against={config['against']}: {', '.join(unlike)} of the two runs differ or are unknown, so more than "
                "their configurations would be compared; across=true compares them all the same"
            )
        found[OTHER] = (other.encoder, _projector(config["against"]))
    return found


def _projector(ckpt: str) -> nn.Module | None:
    return None if checkpoint_file(ckpt).suffix == ".safetensors" else load_projector(ckpt)


def _untrained_projector(own: Subject, fresh: Frozen) -> nn.Module | None:
    """The head that the run started from: drawn right after the encoder."""
    run: dict[str, Any] = own.encoder.config
    if not isinstance(run.get("model"), dict) or not isinstance(run.get("optimizer"), dict):
        return None
    recipe = instantiate_own(run["optimizer"], "optimizer")
    model = instantiate_own(run["model"], "model", encoder=fresh.encoder, optimizer=recipe)
    projector = next(iter(model.heads().values()), None)
    return projector and projector.requires_grad_(False).eval()
