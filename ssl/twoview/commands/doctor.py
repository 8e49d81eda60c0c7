"""`twoview doctor`."""

from omegaconf import DictConfig


def doctor_command(composed: DictConfig) -> int:
    from twoview.watch.doctor import doctor_command

    return doctor_command(composed)
