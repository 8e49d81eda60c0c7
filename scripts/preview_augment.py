"""Draws what an augmentation does to the images of a run:  python scripts/preview_augment.py augment=simclr_cifar"""

import sys

try:
    from twoview.cli.entry import run_command
except ModuleNotFoundError as error:
    sys.exit(
        f"{error.name} is not installed. Install twoview with:  pip install -e '.[parquet,plot]'  (or: make setup)"
    )


def task(config):
    from twoview.commands.preview import preview_command

    return preview_command(config)


if __name__ == "__main__":
    run_command("preview_augment", task)
