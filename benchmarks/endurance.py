"""Whether memory stays flat over thousands of pictures of every format, restored from file to file in one process.

    python benchmarks/endurance.py [--pictures 10000]

The pictures are small, with and without transparency, of 8 and 16 bits, with metadata; the network has 8 channels. It
keeps the resident memory after each tenth of them.
"""

import argparse
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from kithkin import KiT, KiTConfig
from kithkin.images import Picture, write_picture
from kithkin.restore_files import Job, RestoreOptions, restore_files

from measure import _status, keep

SUFFIXES = (".png", ".jpg", ".webp", ".tif", ".bmp")


def memory(folder: Path, count: int) -> dict[str, Any]:
    """Restore `count` pictures and return how the memory went, in MB."""
    rng = np.random.default_rng(0)
    sources = []
    for number in range(50):
        height, width = rng.integers(8, 40, 2)
        pixels = rng.random((height, width, 3), dtype=np.float32)
        alpha = rng.random((height, width), dtype=np.float32) if number % 3 == 0 else None
        picture = Picture(pixels, alpha, 16 if number % 4 == 0 else 8, xmp=b"<x/>", exif=b"MM\0*\0\0\0\x08" + bytes(6))
        sources.append(folder / f"{number}{SUFFIXES[number % 5]}")
        write_picture(picture, sources[-1])
    jobs = [Job(source, folder / "out" / source.name) for source in sources]
    network, options = KiT(KiTConfig(width=8, depth=1, n_hashes=1)), RestoreOptions(overwrite=True)
    resident = []
    started = time.perf_counter()
    for done in range(0, count, len(jobs)):
        for outcome in restore_files(network, jobs, options=options):
            if outcome.status != "written":
                raise SystemExit(f"{outcome.source}: {outcome.reason}")
        if (done + len(jobs)) % (count // 10) == 0:
            resident.append(round(_status("VmRSS") / 1e6, 1))
    return {
        "pictures": count,
        "seconds": round(time.perf_counter() - started, 1),
        "resident memory after each tenth, MB": resident,
        "growth after the first tenth, MB": round(resident[-1] - resident[0], 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pictures", type=int, default=10000)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        keep("endurance", {"memory": memory(Path(name), options.pictures)})


if __name__ == "__main__":
    main()
