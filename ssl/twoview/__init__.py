"""Contrastive self-supervised learning whose augmentation is exact, fast and measured."""

import os
import sys

if sys.platform == "darwin":  # read when torch is imported: what Apple's GPUs lack is computed on the CPU
    os.environ.setdefault("PYTORCH_ENABLE_MPS_FALLBACK", "1")

__version__ = "0.1.0"
