"""The commands: `twoview <command>` is `<command>_command` in the module of that name here, with the configuration
`configs/<command>.yaml`.

Nothing here imports torch before it is known that the words on the command line make sense.
"""

import importlib
import sys
from collections.abc import Sequence
from typing import Any

COMMANDS = {
    "train": "trains an encoder without labels:  twoview train model=simclr",
    "probe": "says how well a linear classifier does on its features:  twoview probe ckpt=<run>",
    "knn": "says the same of a vote of nearest neighbours",
    "evaluate": "puts everything that it is worth on one page",
    "explore": "shows what is in a folder of images: near duplicates, outliers, what is like what",
    "finetune": "trains it on, with labels",
    "embed": "writes the features of a data set to a file",
    "export": "writes the encoder for other software: torchvision, ONNX, TorchScript, ...",
    "ablate": "compares augmentations, or anything else, by whole runs and with statistics",
    "preview": "draws what an augmentation does",
    "play": "opens a page on which augmentations are turned and both views seen at once",
    "translate": "writes other versions of texts, by programs that translate or paraphrase",
    "plot": "draws the curves of a run",
    "doctor": "says whether a run is ill, and what to do",
    "runs": "lists the runs that there are, and what they differ in",
    "verify": "kills and resumes a run, and compares it to the bit with one that was never stopped",
    "selftest": "checks that contrastive learning is right on this machine",
}


def main(typed: Sequence[str] | None = None) -> None:
    """`twoview` and `python -m twoview`: the first word is the command."""
    typed = sys.argv[1:] if typed is None else typed
    if not typed or typed[0] in ("-h", "--help", "help"):
        if typed[1:] and typed[1] in COMMANDS:
            run(typed[1], ["--help"])
        print(_overview())  # noqa: T201
        sys.exit(0)
    if typed[0] in ("--version", "version"):
        from twoview import __version__

        print(f"twoview {__version__}")  # noqa: T201
        sys.exit(0)
    if typed[0] not in COMMANDS:
        sys.exit(f"error: {_not_a_command(typed)}")
    run(typed[0], typed[1:])


def run(command: str, typed: Sequence[str] | None = None) -> None:
    """Runs a command with the words that were typed behind it (default: those of the command line), and exits."""
    from twoview.run.signals import requeue_while_starting

    try:
        from twoview.cli.entry import run_command, run_words
    except Exception as error:
        from twoview.cli.surroundings import shadowed

        if hint := shadowed():
            sys.exit(f"error: {type(error).__name__}: {error}{hint}")
        if not isinstance(error, ModuleNotFoundError):
            raise
        sys.exit(
            f"{error.name} is not installed. Install twoview with:  pip install -e '.[parquet,plot]'  (or: make setup)"
        )

    def task(given: Any) -> int:
        if command != "runs" and isinstance(given.get("ckpt"), str):
            from twoview.run.folder import checkpoint_file

            checkpoint_file(given.ckpt)  # a mistyped path is told before torch is imported
        module = importlib.import_module(f"twoview.commands.{command}")
        code: int = getattr(module, f"{command}_command")(given)
        return code

    typed = sys.argv[1:] if typed is None else typed
    if command == "runs":  # the one without a configuration
        run_words(task, typed)
    elif command in ("train", "ablate"):
        with requeue_while_starting():
            run_command(command, task, typed)
    else:
        run_command(command, task, typed)


def _overview() -> str:
    from twoview.cli.program import in_its_words

    width = max(map(len, COMMANDS))
    lines = [f"  {command:<{width}}  {does}" for command, does in COMMANDS.items()]
    text = ["twoview: contrastive self-supervised learning", "", *lines, "", "Each has a page:  twoview train --help"]
    return in_its_words("\n".join(text))


def _not_a_command(typed: Sequence[str]) -> str:
    import difflib

    from twoview.cli.program import spelled

    if "=" in typed[0]:
        command = "probe" if typed[0].startswith("ckpt=") else "train"
        return f"which command? Perhaps:  {spelled(command, *typed)}  ({', '.join(COMMANDS)})"
    close = difflib.get_close_matches(typed[0].lower(), COMMANDS, n=1)
    hint = f" Did you mean {close[0]}?" if close else ""
    return f"there is no command {typed[0]!r}.{hint} There are: {', '.join(COMMANDS)}"
