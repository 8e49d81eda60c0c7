"""`twoview knn`."""

from omegaconf import DictConfig


def knn_command(composed: DictConfig) -> int:
    from twoview.commands.probe import knn_command

    return knn_command(composed)
