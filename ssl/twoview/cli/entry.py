"""How a command starts and how it ends: Hydra's composition, one message for the person at the keyboard, and the exit
code.

Exit codes: 0 done, 1 an error that the message explains, 130 stopped by ctrl-C, 143 by SIGTERM and 138 by SIGUSR1,
all three with the state saved.
"""

import io
import logging
import os
import sys
import threading
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import hydra
import yaml
from hydra.core.hydra_config import HydraConfig
from hydra.errors import (
    ConfigCompositionException,
    HydraException,
    MissingConfigException,
    OverrideParseException,
)
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from rich import get_console
from rich.highlighter import NullHighlighter
from rich.logging import RichHandler

from twoview.cli.schema import unknown_key
from twoview.errors import UserError

_LOST_PROCESS = ("Connection closed by peer", "Connection reset by peer", "NCCL communicator")  # in gloo, NCCL
CONFIGS = Path(__file__).resolve().parents[3] / "configs"
log = logging.getLogger(__name__)


def run_command(config_name: str, task: Callable[[DictConfig], int | None]) -> None:
    """Composes `configs/<config_name>.yaml` with the words of the command line, hands it to `task` and exits with
    what that returns.

    Whatever goes wrong ends in one message on stderr and exit code 1; with `debug=true` among the words, in its
    traceback.
    """
    if not CONFIGS.is_dir():
        sys.exit(
            f"twoview: the folder {CONFIGS} is missing; install the package from its source tree with: pip install -e ."
        )
    debug = any(word.replace(" ", "").lower() in ("debug=true", "debug=1") for word in sys.argv[1:])
    _outlive_the_reader()
    _quiet(debug)
    os.environ["HYDRA_FULL_ERROR"] = "1"  # hydra is to raise what it would print with a stack of its own
    codes: list[int] = []

    def job(config: DictConfig) -> None:
        try:
            codes.append(task(config) or 0)
        except Exception as error:  # said here: Hydra would put a message of its own before it
            if debug:
                raise
            codes.append(_say(error))
        if codes[-1] > 128:  # a signal: it ends a sweep too
            sys.exit(codes[-1])

    hook = threading.excepthook
    try:
        threading.excepthook = hook if debug else _thread_ended
        hydra.main(version_base="1.3", config_path=str(CONFIGS), config_name=config_name)(job)()
    except KeyboardInterrupt:
        sys.exit(130)
    except Exception as error:
        if debug:
            raise
        sys.exit(_say(error))
    finally:
        threading.excepthook = hook
    sys.exit(max(codes, default=0))


def run_words(task: Callable[[list[str]], int]) -> None:
    """Hands the words of the command line to `task` as they are, for a command without a configuration, and exits with
    what that returns. Errors end as those of `run_command`.
    """
    _outlive_the_reader()
    _quiet(debug=False)
    try:
        sys.exit(task(sys.argv[1:]))
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


def _say(error: Exception) -> int:
    sys.stdout.flush()
    where = f" in process {_process()}" if _process() else ""
    print(f"error{where}: {explain(error)}", file=sys.stderr)  # noqa: T201
    return 1


def _process() -> int:
    """Which of a run's processes this is, as torchrun, SLURM or Lightning's launcher number them."""
    return int(next((os.environ[k] for k in ("RANK", "SLURM_PROCID", "LOCAL_RANK") if k in os.environ), 0))


def output_dir() -> Path:
    """The folder that Hydra made for this run (`hydra.run.dir`)."""
    return Path(HydraConfig.get().runtime.output_dir)


def overrides() -> list[str]:
    """The words of the command line that configure the task."""
    return list(HydraConfig.get().overrides.task)


def explain(error: BaseException) -> str:
    """One message for a person: what is wrong, and what there is instead."""
    if isinstance(error, hydra.errors.InstantiationException) and error.__cause__ is not None:
        return explain(error.__cause__)
    if isinstance(error, UserError):  # from a loader's worker, torch wraps the message into the worker's traceback
        return str(error).strip().rpartition("UserError: ")[2]
    if isinstance(error, MissingConfigException):
        group, _, option = (error.missing_cfg_file or "").rpartition("/")
        if error.options:
            return unknown_option(group, option, list(error.options))
        return f"there is no configuration {error.missing_cfg_file!r}; the groups are: {', '.join(groups())}"
    if isinstance(error, OverrideParseException):
        return f"cannot read {error.override!r}: write key=value (quote lists and blanks: 'key=[1,2]')"
    if isinstance(error, ConfigCompositionException):
        return _explain_composition(error)
    if isinstance(error, OmegaConfBaseException):
        return f"configuration: {str(error).splitlines()[0]}"
    if isinstance(error, yaml.YAMLError):
        return _explain_yaml(error)
    if isinstance(error, HydraException):
        return " ".join(str(error).split())
    if isinstance(error, MemoryError) or "out of memory" in str(error):
        said = (str(error).splitlines() or ["no more is known"])[0]  # a worker's traceback follows
        return f"out of memory: use a smaller batch_size ({said[:200]})"
    if isinstance(error, OSError):
        return f"{error.strerror or error}: {error.filename}" if error.filename else str(error)
    if "embedded null" in str(error):  # Python's, of a path from a configuration
        return "a path holds the null character, which no file can be called by: name another"
    if "DataLoader worker" in str(error):
        return (
            "a process that loads images has ended (killed, often for want of memory): use fewer of them "
            "(loader.num_workers=1), or none (loader.num_workers=0)"
        )
    if any(words in str(error) for words in _LOST_PROCESS):
        return "another process of the run has ended, and this one cannot go on alone; why stands in that one's message"
    text = str(error).splitlines()[0] if str(error) else "no message"
    if text.startswith("Config group override must be"):  # hydra's for null, a number or no name at all
        return f"a group is set to the name of an option, as in data=shapes; the groups are: {', '.join(groups())}"
    return f"{type(error).__name__}: {text} (debug=true shows where)"


def _explain_yaml(error: yaml.YAMLError) -> str:
    mark = getattr(error, "problem_mark", None)
    name = mark.name if mark is not None else getattr(error, "name", "a configuration")
    line = f", line {mark.line + 1}" if mark is not None else ""
    reason = getattr(error, "problem", None) or getattr(error, "reason", None) or "damaged"
    return f"{name}{line} is no YAML ({reason}): mend it, or restore it with: git checkout configs"


def _explain_composition(error: ConfigCompositionException) -> str:
    cause = error.__cause__
    parent = getattr(cause, "parent_node", None)
    if isinstance(parent, DictConfig) and getattr(cause, "full_key", None):
        path, _, key = str(cause.full_key).rpartition(".")  # type: ignore[union-attr]
        if path.startswith("study.axes"):
            return (
                f"study.axes={{...}} gives new values to what the study varies ({', '.join(map(str, parent))}); to "
                "vary other keys write '~study.axes' '+study.axes={...}'"
            )
        return unknown_key(path, key, (str(k) for k in parent if not str(k).startswith("_")))
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if lines and lines[0].startswith("Could not override"):
        group = lines[0].split("'")[1]
        return f"there is no group {group!r}; the groups are: {', '.join(groups())}"
    if cause is not None and not isinstance(cause, ConfigCompositionException):
        return f"{lines[0] if lines else ''} {str(cause).splitlines()[0]}".strip()
    return " ".join(lines)


def groups() -> list[str]:
    """The configuration groups, which are the folders of `configs/`."""
    return sorted(path.name for path in CONFIGS.iterdir() if path.is_dir() and path.name != "hydra")


def options(group: str) -> list[str]:
    """What a group can be set to, which are the files of its folder."""
    return sorted(path.stem for path in (CONFIGS / group).glob("*.yaml"))


def unknown_option(group: str, option: str, known: list[str]) -> str:
    return unknown_key(group, option, known).replace("has no key", "has no option", 1)


def plain(config: DictConfig) -> dict[str, Any]:
    """The configuration as plain containers with every interpolation resolved."""
    container = OmegaConf.to_container(config, resolve=True, throw_on_missing=True)
    assert isinstance(container, dict)
    return {str(key): value for key, value in container.items()}


def _quiet(debug: bool) -> None:
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
