"""Kills a run, resumes it and compares it with one that was never stopped:  python scripts/verify_resume.py [words of
train.py]
"""

import sys

try:
    from twoview.cli.entry import run_command
except ModuleNotFoundError as error:
    sys.exit(
        f"{error.name} is not installed. Install twoview with:  pip install -e '.[parquet,plot]'  (or: make setup)"
    )


def task(config):
    from twoview.commands.verify import verify_command

    return verify_command(config)


if __name__ == "__main__":
    run_command("verify_resume", task)
