"""`twoview ablate`."""

from omegaconf import DictConfig


def ablate_command(composed: DictConfig) -> int:
    from twoview.ablate.runner import ablate_command

    return ablate_command(composed)
