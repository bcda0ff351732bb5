"""``python -m kithkin.ops.kernels``: compile the CPU kernels, and print the names of the libraries."""

import sys

from kithkin.ops.kernels.build import build

if __name__ == "__main__":
    try:
        print("\n".join(path.name for path in build()))
    except RuntimeError as error:
        sys.exit(f"kithkin: {error}")
