"""Parts of packages other than twoview: built only where the person at the keyboard trusts the package by name.

A configuration names classes and functions by their paths, and to build one runs its code. `trust=[my_package]` on the
command line, or in Python, allows those that are defined in `my_package`. Checkpoints record the word, but a file that
may come from a stranger never speaks for itself: every command on the run takes it anew.
"""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from twoview.errors import UserError

# Through these a file could run whatever it wants: the standard library, and what twoview itself is built on.
NEVER = {"hydra", "lightning_fabric", "numpy", "omegaconf", "pytorch_lightning", "torch", "torchvision", "twoview"}

_trusted: ContextVar[frozenset[str]] = ContextVar("trusted", default=frozenset())


@contextmanager
def trusting(packages: Any) -> Iterator[None]:
    """Within it, parts of these packages may be built: a name or a list of names, None for none.

    The working directory is searched for them after what is installed. UserError for what is no name of a package, and
    for packages that build no part of a run.
    """
    names = [packages] if isinstance(packages, str) else packages or []
    if not isinstance(names, list | tuple):
        raise UserError(f"trust={packages!r} is not a list of packages; give it as in trust=[my_package]")
    for name in names:
        if not isinstance(name, str) or not name.isidentifier():
            raise UserError(f"trust={names}: {name!r} is not the name of a package; give it as in trust=[my_package]")
        if not _can_be_trusted(name):
            raise UserError(
                f"trust={names}: through {name} a file could run any code. Put what you need into a module of your "
                "own, and trust that"
            )
    if names and os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())
    token = _trusted.set(_trusted.get() | set(names))
    try:
        yield
    finally:
        _trusted.reset(token)


def is_trusted(target: str) -> bool:
    """Whether the package that a path begins with is trusted. Imports nothing."""
    return target.partition(".")[0] in _trusted.get()


def is_defined_in_its_package(target: str, found: Any) -> bool:
    """Whether what was found under a path of a trusted package is a public class or function of that package itself:
    not what it imports, as `my_package.os.system`.
    """
    module, name = getattr(found, "__module__", None), getattr(found, "__qualname__", "_")
    own = isinstance(module, str) and module.partition(".")[0] == target.partition(".")[0]
    return own and name.isidentifier() and not name.startswith("_")


def remedy(target: Any) -> str:
    """How to allow a path, for the end of a message; empty where nothing allows it."""
    package = str(target).partition(".")[0]
    if not package.isidentifier() or not _can_be_trusted(package):
        return ""
    return (
        f" If {package} is yours, or you trust all of it, add trust=[{package}], here and to every command on the run"
    )


def _can_be_trusted(package: str) -> bool:
    return package not in NEVER and package not in sys.stdlib_module_names and package not in sys.builtin_module_names
