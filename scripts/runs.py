"""The runs that there are, and what they differ in:  python scripts/runs.py list | show RUN | diff A B | export"""

import sys

try:
    from twoview.cli.entry import run_words
except ModuleNotFoundError as error:
    sys.exit(
        f"{error.name} is not installed. Install twoview with:  pip install -e '.[parquet,plot]'  (or: make setup)"
    )


def task(words):
    from twoview.run.registry import runs_command

    return runs_command(words)


if __name__ == "__main__":
    run_words(task)
