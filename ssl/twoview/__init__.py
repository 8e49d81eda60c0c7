"""Contrastive self-supervised learning whose augmentation is exact, fast and measured."""

import importlib
import os
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from twoview.augment.views import TwoViews as TwoViews
    from twoview.encoder.adapter import as_encoder as as_encoder
    from twoview.errors import UserError as UserError
    from twoview.evaluate.classify.knn import knn_accuracy as knn_accuracy
    from twoview.evaluate.classify.linear import probe as probe
    from twoview.evaluate.classify.newton import fit_linear as fit_linear
    from twoview.evaluate.features import extract as extract
    from twoview.run.checkpoint import load_encoder as load_encoder
    from twoview.train.start import train as train

if sys.platform == "darwin":  # read when torch is imported: what Apple's GPUs lack is computed on the CPU
    os.environ.setdefault("PYTORCH_ENABLE_MPS_FALLBACK", "1")

__version__ = "0.1.0"

# What is public, and where it lies: imported when it is asked for, so that `import twoview` costs nothing.
_PUBLIC = {
    "TwoViews": "twoview.augment.views",
    "UserError": "twoview.errors",
    "as_encoder": "twoview.encoder.adapter",
    "extract": "twoview.evaluate.features",
    "fit_linear": "twoview.evaluate.classify.newton",
    "knn_accuracy": "twoview.evaluate.classify.knn",
    "load_encoder": "twoview.run.checkpoint",
    "probe": "twoview.evaluate.classify.linear",
}
_ROOMS = ("augment", "losses", "train")  # twoview.losses.nt_xent(...), twoview.train(...)

__all__ = [
    "TwoViews",
    "UserError",
    "__version__",
    "as_encoder",
    "extract",
    "fit_linear",
    "knn_accuracy",
    "load_encoder",
    "probe",
    "train",
]


def __getattr__(name: str) -> Any:
    if name in _ROOMS:
        return importlib.import_module(f"twoview.{name}")
    if name in _PUBLIC:
        return getattr(importlib.import_module(_PUBLIC[name]), name)
    raise AttributeError(f"module 'twoview' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_PUBLIC, *_ROOMS})
