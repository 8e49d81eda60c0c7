"""`python -m twoview`, which is `twoview`."""

from twoview.commands import main

if __name__ == "__main__":
    main()
