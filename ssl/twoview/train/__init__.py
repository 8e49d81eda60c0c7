"""Training, and the function `twoview.train(...)`, which is this package called: both have the name."""

import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from twoview.cli.entry import quiet
from twoview.cli.surroundings import refuse_odd_variables

if TYPE_CHECKING:
    from twoview.run.registry import Run


class _Callable(ModuleType):
    def __call__(
        self,
        model: str | None = None,
        /,
        *,
        folder: str | Path | None = None,
        trust: Sequence[str] = (),
        configs: str | Path | None = None,
        **changes: Any,
    ) -> "Run":
        """`twoview.train.start.train`, which tells the rest."""
        refuse_odd_variables()
        if not logging.getLogger().handlers:  # a program that has none hears of the run as the command line does
            quiet()
        from twoview.train.start import train

        return train(model, folder=folder, trust=trust, configs=configs, **changes)


sys.modules[__name__].__class__ = _Callable
