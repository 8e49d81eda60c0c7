"""Samples to views: operations, policies of them, and the views that a batch becomes."""

from twoview.augment.views import TwoViews

__all__ = ["TwoViews"]
