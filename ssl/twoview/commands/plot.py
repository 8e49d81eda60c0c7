"""`twoview plot`."""

from omegaconf import DictConfig


def plot_command(composed: DictConfig) -> int:
    from twoview.report.curves import plot_command

    return plot_command(composed)
