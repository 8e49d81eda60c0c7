"""How a command starts and how it ends: Hydra's composition, one message for the person at the keyboard, and the exit
code.

Exit codes: 0 done, 1 an error that the message explains, 130 stopped by ctrl-C, 143 by SIGTERM, 129 by SIGHUP and 138
by SIGUSR1, all four with the state saved.
"""

import io
import logging
import os
import sys
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hydra import version
from hydra._internal.utils import _run_hydra, get_args_parser
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf
from rich import get_console
from rich.console import Console
from rich.highlighter import NullHighlighter
from rich.logging import RichHandler

from twoview.cli import configs, page
from twoview.cli.explain import explain
from twoview.cli.surroundings import refuse_odd_variables, shadowed
from twoview.cli.trust import trusting
from twoview.cli.words import Command, meant, split
from twoview.errors import UserError

log = logging.getLogger(__name__)


def run_command(name: str, task: Callable[[DictConfig], int | None], typed: Sequence[str] | None = None) -> None:
    """Composes `configs/<name>.yaml` with the words that were typed (default: those of the command line), hands it to
    `task` and exits with what that returns.

    Whatever goes wrong ends in one message on stderr and exit code 1; with `debug=true` among the words, in its
    traceback.
    """
    typed = sys.argv[1:] if typed is None else typed
    debug = any(word.replace(" ", "").lower() in ("debug=true", "debug=1") for word in typed)
    _outlive_the_reader()
    quiet(debug)
    if not os.environ.get("TWOVIEW_DATA", "unset"):
        del os.environ["TWOVIEW_DATA"]  # a folder without a name would be the root of the disk
    os.environ["HYDRA_FULL_ERROR"] = "1"  # hydra is to raise what it would print with a stack of its own
    hook = threading.excepthook
    try:
        threading.excepthook = hook if debug else _thread_ended
        code = _run(name, task, typed, debug)
    except KeyboardInterrupt:
        code = 130
    except Exception as error:
        if debug:
            raise
        code = _say(error, name)
    finally:
        threading.excepthook = hook
    sys.exit(code)


def _run(name: str, task: Callable[[DictConfig], int | None], typed: Sequence[str], debug: bool) -> int:
    refuse_odd_variables()
    line = split(typed)
    folders = configs.own_folders(line.folder)
    groups = {group: configs.options(group, folders) for group in configs.groups(name)}
    words = meant(line.words, Command(name, configs.keys(name), groups), line.several)
    if line.help:
        print(page.help_page(name, words, groups, folders))  # noqa: T201
        return 0
    codes: list[int] = []

    def job(config: DictConfig) -> None:
        try:
            configs.check_choices(dict(HydraConfig.get().runtime.choices), folders)
            with trusting(OmegaConf.to_container(config).get("trust")):  # type: ignore[union-attr]
                codes.append(task(config) or 0)
        except Exception as error:  # said here: Hydra would put a message of its own before it
            if debug:
                raise
            codes.append(_say(error, name))
        if codes[-1] > 128:  # a signal: it ends a sweep too
            sys.exit(codes[-1])

    version.setbase("1.3")  # of Hydra: jobs stay in the working directory
    parser = get_args_parser()
    arguments = parser.parse_args(line.flags)
    arguments.overrides = [*configs.search_words(folders), *words]
    _run_hydra(arguments, parser, job, str(configs.CONFIGS), name)
    return max(codes, default=0)


def run_words(task: Callable[[Sequence[str]], int], typed: Sequence[str]) -> None:
    """Hands words to `task` as they were typed, for a command without a configuration, and exits with what that
    returns. Errors end as those of `run_command`.
    """
    _outlive_the_reader()
    quiet()
    try:
        refuse_odd_variables()
        sys.exit(task(typed))
    except KeyboardInterrupt:
        sys.exit(130)
    except Exception as error:
        sys.exit(_say(error))


def _outlive_the_reader() -> None:
    """A command whose output nobody reads (any more), as under `| head`, goes on without a word, and characters that
    the terminal lacks do not stop it.
    """
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:  # closed before the start
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115 - for as long as the process lives
        elif isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    get_console().on_broken_pipe = _mute  # type: ignore[method-assign]


def _mute() -> None:
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)


def _thread_ended(what: threading.ExceptHookArgs) -> None:
    """A thread of a library, as TensorBoard's that writes its file. The run does without it."""
    log.warning("a helper of the run has ended (%s)", " ".join(str(what.exc_value).split()))


class _Lines(logging.StreamHandler):
    """Whole lines on stdout, for files and pipes."""

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 - logging's name
        if isinstance(sys.exc_info()[1], OSError):
            _mute()
        else:
            super().handleError(record)


def _say(error: Exception, command: str = "train") -> int:
    sys.stdout.flush()
    where = f" in process {_process()}" if _process() else ""
    hint = "" if isinstance(error, UserError) else shadowed()
    print(f"error{where}: {explain(error, command)}{hint}", file=sys.stderr)  # noqa: T201
    return 1


def _process() -> int:
    """Which of a run's processes this is, as torchrun, SLURM or Lightning's launcher number them."""
    number = next((os.environ[k] for k in ("RANK", "SLURM_PROCID", "LOCAL_RANK") if k in os.environ), "")
    return int(number) if number.isdecimal() else 0


def output_dir() -> Path:
    """The folder that Hydra made for this run (`hydra.run.dir`)."""
    return Path(HydraConfig.get().runtime.output_dir)


def overrides() -> list[str]:
    """The words of the command line that configure the task."""
    return list(HydraConfig.get().overrides.task)


def searched() -> list[str]:
    """The word that tells Hydra where configurations of one's own lie, if there are any: for whoever composes again."""
    return [word for word in HydraConfig.get().overrides.hydra if word.startswith("hydra.searchpath=")]


def config_dir() -> list[str]:
    """`--config-dir=<folder>` where the command was given one: for a line that is to compose the same."""
    folders = [Path(str(place).removeprefix("file://")) for place in HydraConfig.get().searchpath or ()]
    return [f"--config-dir={folder}" for folder in folders if folder != configs.HERE.resolve()]


def plain(config: DictConfig) -> dict[str, Any]:
    """The configuration as plain containers with every interpolation resolved."""
    container = OmegaConf.to_container(config, resolve=True, throw_on_missing=True)
    assert isinstance(container, dict)
    return {str(key): value for key, value in container.items()}


def quiet(debug: bool = False) -> None:
    """Our own messages, and of the libraries' what matters."""
    handler: logging.Handler = _Lines(sys.stdout)
    if get_console().is_terminal:  # shares the console with the progress bar, which stays below the messages
        handler = RichHandler(
            console=get_console(),
            show_time=False,
            show_level=False,
            show_path=False,
            highlighter=NullHighlighter(),
        )
    level = logging.WARNING if _process() else logging.INFO  # of several processes, the first tells what they all do
    logging.basicConfig(level=level, format="%(message)s", handlers=[handler], force=True)
    if not debug:
        logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)  # it tells of a missing GPU
        logging.getLogger("hydra.utils").setLevel(logging.CRITICAL)  # it says what the one message says
        handler.addFilter(lambda record: record.name.startswith("twoview") or record.levelno >= logging.ERROR)
        warnings.filterwarnings("ignore", module=r"(pytorch_lightning|lightning_fabric|torch|lightning)\b.*")


@contextmanager
def silent(path: Path) -> Iterator[None]:
    """What is said meanwhile goes to the end of a file: somebody else speaks for it."""
    root, console = logging.getLogger(), get_console()
    handlers, level, kept = root.handlers, root.level, dict(console.__dict__)
    with path.open("a") as file:
        handler = logging.StreamHandler(file)
        handler.handleError = lambda record: None  # type: ignore[method-assign] # a full disk: the closing tells
        handler.addFilter(lambda record: record.name.startswith("twoview") or record.levelno >= logging.ERROR)
        root.handlers = [handler]
        root.setLevel(logging.INFO)
        console.__dict__ = Console(file=file, width=120).__dict__
        try:
            yield
        finally:
            root.handlers = handlers
            root.setLevel(level)
            console.__dict__ = kept
