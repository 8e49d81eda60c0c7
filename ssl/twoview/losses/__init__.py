"""Contrastive losses: pure functions of tensors, without configuration, logging or state."""

from twoview.losses.contrastive import Contrast, info_nce, info_nce_contrast, nt_xent, nt_xent_contrast

__all__ = ["Contrast", "info_nce", "info_nce_contrast", "nt_xent", "nt_xent_contrast"]
