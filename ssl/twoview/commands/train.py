"""`twoview train`."""

from omegaconf import DictConfig


def train_command(composed: DictConfig) -> int:
    from twoview.train.command import main

    return main(composed)
