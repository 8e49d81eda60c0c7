"""Compares augmentations by whole runs:  python scripts/ablate_augment.py study=strength experiment=cifar10_cpu"""

import sys

try:
    from twoview.cli.entry import run_command
except ModuleNotFoundError as error:
    sys.exit(
        f"{error.name} is not installed. Install twoview with:  pip install -e '.[parquet,plot]'  (or: make setup)"
    )


def task(config):
    from twoview.ablate.runner import ablate_command

    return ablate_command(config)


if __name__ == "__main__":
    run_command("ablate_augment", task)
