"""What the configuration of a run may say."""

from typing import Any, Literal

from twoview.cli import schema
from twoview.data.preprocess import Preprocess
from twoview.errors import UserError
from twoview.run.checkpoint import refuse_foreign

SECTIONS = ("loss", "data", "augment", "encoder", "model", "optimizer", "trainer", "loader", "checkpoint")
MONITORS = ("knn", "quality")  # sections that may be null
KEYS = {
    "channels_last": bool,
    "compile": bool | Literal["auto"] | None,
    "pieces": int | None,
    "name": str,
    "seed": int,
    "epochs": int,
    "budget": float | None,
    "batch_size": int | Literal["auto"],
    "log_every_steps": int,
    "debug": bool,
    "resume": str | None,
    "allow_changes": bool | None,
    "trust": list[str] | str | None,
}
COPIED = ("batch_size", "seed")  # of the loader: other parts of the run go by the same numbers


def check(config: dict[str, Any]) -> None:
    """Raises UserError for a key that nothing takes and for values of a wrong type or out of range. Reads no data."""
    for key, kind in KEYS.items():
        if not schema.fits(config.get(key), kind):
            raise UserError(f"{key}={config.get(key)!r} is not {schema.words(kind)}")
    known = {*KEYS, *SECTIONS, *MONITORS}
    for key in config:
        if key not in known:
            raise UserError(schema.unknown_key("", key, known))
    for key in SECTIONS:
        if not isinstance(config.get(key), dict):
            raise UserError(f"{key}={config.get(key)!r} leaves the run without its {key}; --help lists what there is")
    for key in MONITORS:
        if not isinstance(config.get(key), dict | None):
            raise UserError(f"{key}={config[key]!r}: give its keys, as {key}.every_epochs=1, or {key}=null for none")
    for key in COPIED:
        if key in config["loader"] and config["loader"][key] != config[key]:
            raise UserError(
                f"loader.{key}={config['loader'][key]} is not {key}={config[key]}: set {key} alone, which the loader "
                "follows"
            )
    if config["epochs"] < 1:
        raise UserError(f"epochs={config['epochs']}: a run needs at least one epoch")
    if (pieces := config.get("pieces")) is not None and pieces < 1:
        raise UserError(f"pieces={pieces} must be at least 1, which is the whole batch at once")
    if not 0 <= config["seed"] < 2**32:
        raise UserError(f"seed={config['seed']} must lie in [0, 2^32)")
    schema.check(config)
    refuse_foreign(config, "the configuration")  # what no command on the run would build
    schema.build(config["augment"], preprocess=Preprocess())  # their ranges, before data are loaded, or downloaded
    schema.build(config["optimizer"])
