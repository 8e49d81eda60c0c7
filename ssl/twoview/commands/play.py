"""A page on which a policy is turned and both views of chosen samples are seen at once."""

import logging
import os
import re
import sys
import webbrowser
from collections.abc import Callable
from typing import Any

from omegaconf import DictConfig, OmegaConf

from twoview.cli import configs, schema
from twoview.cli.entry import overrides, plain
from twoview.data.set import SampleSet
from twoview.encoder.frozen import Frozen
from twoview.errors import UserError
from twoview.evaluate.subject import check_shape, loader_of
from twoview.play.policy import linked, resolved
from twoview.play.scene import Judge, Scene
from twoview.play.server import HERE, server
from twoview.report.preview import first_samples
from twoview.run.checkpoint import EncoderOf, load_encoder, load_projector, refuse_foreign
from twoview.run.folder import checkpoint_file

log = logging.getLogger(__name__)

KEYS = {
    "ckpt": str | None,
    "encoder_of": EncoderOf,
    "images": int,
    "seed": int,
    "epoch": int,
    "port": int,
    "open": bool,
    "debug": bool,
}
START = "shapes"  # the data, without a run that has its own
_GROUP = re.compile(r"[+~]*(data|augment)[.=]")  # words that a training understands as well
MOST = 500  # thumbnails to choose from


def play_command(composed: DictConfig) -> int:
    """`twoview play`."""
    scene = scene_of(composed)
    found = server(scene, composed.port)
    address = f"http://{HERE}:{found.port}/"
    log.info("%s: %s  (ctrl-C ends it)", scene.train.name, address)
    if composed.open and (sys.platform in ("darwin", "win32") or os.environ.get("DISPLAY")):
        webbrowser.open(address)
    try:
        found.serve_forever()
    except KeyboardInterrupt:
        pass
    finally:
        found.server_close()
    return 0


def scene_of(composed: DictConfig) -> Scene:
    """What the page shows, of the configuration. UserError for what cannot be shown."""
    config = plain(composed)
    schema.check_keys(config, KEYS)
    for key, least, below in (("seed", 0, 2**32), ("epoch", 0, 2**32), ("port", 0, 2**16), ("images", 1, MOST + 1)):
        if not least <= config[key] < below:
            raise UserError(f"{key}={config[key]} must lie in [{least:,}, {below - 1:,}]")
    encoder = load_encoder(config["ckpt"], config["encoder_of"]) if config["ckpt"] else None
    words = overrides()
    if encoder is None and "_target_" not in (config.get("data") or {}):
        words = [f"data={START}", *(word.removeprefix("+") for word in words)]
        composed = configs.compose("play", words, configs.own_folders()).config
        config = plain(composed)
    if encoder is not None and not any("augment" in word for word in words):
        refuse_foreign(encoder.config["augment"])
        policy = linked(encoder.config["augment"])
    else:
        policy = {str(key): value for key, value in OmegaConf.to_container(composed.augment).items()}  # type: ignore[union-attr]
    schema.check(resolved(policy), "augment")
    train = _load(config, encoder)(split="train")
    judge = None
    if encoder is not None:
        check_shape(encoder, train, force=False)
        has_head = config["encoder_of"] in ("student", "query") and checkpoint_file(config["ckpt"]).suffix == ".ckpt"
        judge = Judge(encoder, load_projector(config["ckpt"]) if has_head else None, str(config["ckpt"]))
    samples = first_samples(train, min(config["images"], len(train)), config["seed"], config["epoch"])
    return Scene(samples, policy, [word for word in words if _GROUP.match(word)], config["seed"], judge)


def _load(config: dict[str, Any], encoder: Frozen | None) -> Callable[..., SampleSet]:
    if encoder is not None:
        return loader_of(config, encoder)
    schema.check(config["data"], "data")
    load: Callable[..., SampleSet] = schema.build(config["data"])
    return load
