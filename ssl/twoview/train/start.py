"""Training from Python: composed and checked as on the command line, with the same messages."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from twoview.cli.configs import Composed, check_choices, compose, groups, keys, options, own_folders, search_words
from twoview.cli.entry import plain
from twoview.cli.explain import explain
from twoview.cli.trust import trusting
from twoview.cli.words import Command, meant, quoted
from twoview.errors import UserError
from twoview.run.place import held, held_free
from twoview.run.registry import Run, read_run
from twoview.run.resume import resumed
from twoview.train import pretrain


def train(
    model: str | None = None,
    /,
    *,
    folder: str | Path | None = None,
    trust: Sequence[str] = (),
    configs: str | Path | None = None,
    **changes: Any,
) -> Run:
    """Trains an encoder and returns the run: its `folder`, `summary`, `config` and `encoder()`.

        run = twoview.train("simclr", data="shapes", encoder="small", epochs=2, **{"augment.strength": 1.0})
        h = twoview.extract(run.encoder(), shapes("test"))

    model: the method, an option of `configs/model/`. changes: every key and group of `twoview train`; keys of sections
    with dots, or as nested dicts (`augment={"strength": 1.0}`), where a dict with a `_target_` takes the place of what
    is there; `None` is null. `data` may be a folder of images. folder: of the run; by default a new one,
    `runs/<name>/<date>`. trust: packages other than twoview whose parts may be used. configs: a folder with
    configurations of your own, beside `./configs`.

    Raises UserError for what the caller can mend, with the message that the command line has.
    """

    path = Path()

    @contextmanager
    def hold(place: Path) -> Iterator[Path]:
        nonlocal path
        with (held_free if folder is None else held)(place) as path:
            yield path

    words = [*([f"model={model}"] if model is not None else []), *_words(changes)]
    with trusting(trust):
        folders = own_folders(None if configs is None else str(configs))
        composed, words = _composed(words, folders)
        config = plain(composed.config)
        config["trust"] = trust = [trust] if isinstance(trust, str) else list(trust)
        if config["resume"] == "auto" and folder is None:
            raise UserError("resume='auto' goes on with the run in its folder: name it, as folder='runs/mine'")
        if config["resume"] and config["resume"] != "auto":
            config, path = resumed(composed.config, words, search_words(folders))
            config["trust"] = trust
            pretrain.run(config, path)
        else:
            path = Path(composed.hydra.run.dir) if folder is None else Path(folder).expanduser()
            pretrain.run(config, path, hold)
    return read_run(path, trust)


def _composed(words: list[str], folders: Sequence[Path] = ()) -> tuple[Composed, list[str]]:
    command = Command("train", keys("train"), {group: options(group, folders) for group in groups("train")})
    try:
        read = meant(words, command)
        composed = compose("train", read, folders)
        check_choices(dict(composed.hydra.runtime.choices), folders)
    except UserError:
        raise
    except Exception as error:  # whatever Hydra makes of the words
        raise UserError(explain(error)) from error
    return composed, read


def _words(changes: Mapping[str, Any], above: str = "") -> Iterator[str]:
    """Changes as words of the command line."""
    for key, value in changes.items():
        place = f"{above}{key}"
        if place.startswith("~"):
            yield place
        elif isinstance(value, Mapping) and "_target_" in value:
            if not above:  # in place of the option that is there
                yield f"~{place}"
            yield f"{'++' if above else '+'}{place.lstrip('+')}={_value(place, value)}"
        elif isinstance(value, Mapping) and value:
            yield from _words(value, f"{place}.")
        elif isinstance(value, str | Path) and not above and "." not in place:  # perhaps the option of a group
            yield f"{place}={value}"
        else:
            yield f"{place}={_value(place, value)}"


def _value(place: str, value: Any) -> str:
    """A value in Hydra's grammar."""
    value = value.item() if hasattr(value, "item") else value  # of NumPy and torch
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, int | float):
        return repr(value)
    if isinstance(value, str | Path):
        return quoted(str(value))
    if isinstance(value, Mapping):
        return "{" + ",".join(f"{key}:{_value(f'{place}.{key}', x)}" for key, x in value.items()) + "}"
    if isinstance(value, Sequence):
        return "[" + ",".join(_value(place, x) for x in value) + "]"
    raise UserError(f"{place}={value!r} is not a plain value: give numbers, text, lists and dicts")
