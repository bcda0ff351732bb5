"""``python -m kithkin`` is ``kithkin``."""

from kithkin.cli import main

if __name__ == "__main__":
    main()
