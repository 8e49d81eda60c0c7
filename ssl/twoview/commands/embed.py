"""Takes features out of a run: one row per sample, in a file that other tools read."""

import logging
from typing import Any, Literal

from omegaconf import DictConfig
from torch import nn

from twoview.cli.entry import plain
from twoview.encoder.frozen import Frozen, digest
from twoview.errors import UserError
from twoview.evaluate.files import WRITERS, blocks_of, columns_of, dim_of
from twoview.evaluate.subject import Split, check_run, device_of, origin, result_path, sets_of
from twoview.run.atomic import replacing
from twoview.run.checkpoint import EncoderOf, load_encoder, load_projector

log = logging.getLogger(__name__)

KEYS = {
    "ckpt": str | None,
    "format": Literal["npz", "parquet", "safetensors"],
    "out": str | None,
    "split": Split,
    "features": Literal["h", "z"],
    "encoder_of": EncoderOf,
    "batch_size": int,
    "device": Literal["auto", "cpu", "cuda"],
    "force": bool,
}


def embed_command(composed: DictConfig) -> int:
    """`twoview embed`."""
    config = plain(composed)
    check_run(config, KEYS)
    if config["batch_size"] < 1:
        raise UserError(f"batch_size must be at least 1, not {config['batch_size']}")
    device = device_of(config["device"])
    encoder = load_encoder(config["ckpt"], config["encoder_of"])
    metadata = {"features": config["features"], **origin(config, encoder)}
    network = _network(encoder, config).to(device)
    before = digest(network)
    sets = sets_of(config, encoder)
    first = next(iter(sets.values()))
    metadata |= {"data": first.name, "classes": list(first.classes)}
    shape = (sum(map(len, sets.values())), dim_of(network, first))
    path = result_path(config, "features", first.name, f".{config['format']}")
    with replacing(path) as part:
        WRITERS[config["format"]](
            part, shape, blocks_of(network, sets, config["batch_size"]), columns_of(sets), metadata
        )
        if digest(network) != before:
            raise UserError("the encoder changed while its features were extracted: they cannot be trusted")
    log.info(
        "features %s of %s images, %d dimensions, written to %s", config["features"], f"{shape[0]:,}", shape[1], path
    )
    return 0


def _network(encoder: Frozen, config: dict[str, Any]) -> nn.Module:
    """Samples to the features that are asked for."""
    if config["features"] == "h":
        return encoder
    if str(config["ckpt"]).endswith(".safetensors"):
        raise UserError(f"features=z: {config['ckpt']} holds the encoder alone; give the run's last.ckpt")
    if config["encoder_of"] in ("teacher", "key"):
        raise UserError("features=z are those of the student's head: use encoder_of=student")
    projector = load_projector(config["ckpt"])
    if projector is None:
        raise UserError("features=z: the method of this run has no head behind h; use features=h")
    return nn.Sequential(encoder, projector).eval()
