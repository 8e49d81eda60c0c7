"""Pre-trains an encoder by contrast of two views:  python train.py model=simclr  (python train.py --help lists what
there is).
"""

import sys

try:
    from twoview.cli.entry import run_command
except ModuleNotFoundError as error:
    sys.exit(
        f"{error.name} is not installed. Install twoview with:  pip install -e '.[parquet,plot]'  (or: make setup)"
    )


def task(config):
    from twoview.train.pretrain import main

    return main(config)


if __name__ == "__main__":
    run_command("train", task)
