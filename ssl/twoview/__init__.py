"""Contrastive self-supervised learning whose augmentation is exact, fast and measured."""

__version__ = "0.1.0"
