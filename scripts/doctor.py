"""Says whether a run is ill, by what evidence, and what to do:  python scripts/doctor.py run=runs/<name>/<date>"""

import sys

try:
    from twoview.cli.entry import run_command
except ModuleNotFoundError as error:
    sys.exit(
        f"{error.name} is not installed. Install twoview with:  pip install -e '.[parquet,plot]'  (or: make setup)"
    )


def task(config):
    from twoview.watch.doctor import doctor_command

    return doctor_command(config)


if __name__ == "__main__":
    run_command("doctor", task)
