"""Checks that contrastive learning is right on this machine:  python scripts/selftest.py [devices=auto|cpu|cuda]"""

import sys

try:
    from twoview.cli.entry import run_command
except ModuleNotFoundError as error:
    sys.exit(
        f"{error.name} is not installed. Install twoview with:  pip install -e '.[parquet,plot]'  (or: make setup)"
    )


def task(config):
    from twoview.commands.selftest import selftest_command

    return selftest_command(config)


if __name__ == "__main__":
    run_command("selftest", task)
