"""Whether memory stays flat while `kithkin restore` restores 10,000 small pictures: its resident memory meanwhile.

python benchmarks/many_small.py [--count 10000] [--side 16]
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image

from measure import keep

SAMPLES = 50


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--count", type=int, default=10_000)
    parser.add_argument("--side", type=int, default=16)
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        source, out = Path(folder, "in"), Path(folder, "out")
        source.mkdir()
        rng = np.random.default_rng(0)
        for i in range(chosen.count):
            pixels = rng.integers(0, 256, (chosen.side, chosen.side, 3), np.uint8)
            Image.fromarray(pixels).save(source / f"{i:05}.png")
        command = [sys.executable, "-m", "kithkin", "restore", str(source), "--out", str(out), "--json"]
        command += ["--model", "denoise-tiny", "--device", "cpu"]
        started = time.perf_counter()
        memory, written = [], 0
        with subprocess.Popen(
            command, stdout=subprocess.PIPE, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"}
        ) as run:
            assert run.stdout is not None
            for line in run.stdout:
                written += json.loads(line)["status"] == "written"
                if written % max(1, chosen.count // SAMPLES) == 0:
                    memory.append([written, round(resident(run.pid) / 1e6, 1)])
        seconds = time.perf_counter() - started
    tenth = memory[len(memory) // 10][1]
    keep(
        "many_small",
        {
            "pictures": chosen.count,
            "side": chosen.side,
            "written": written,
            "exit code": run.returncode,
            "seconds": round(seconds, 1),
            "resident MB after a tenth": tenth,
            "resident MB at the end": memory[-1][1],
            "growth in MB over the last nine tenths": round(memory[-1][1] - tenth, 1),
            "resident MB after so many pictures": memory,
        },
    )


def resident(pid: int) -> int:
    """Bytes of a process in memory; those of its last look where it ended meanwhile."""
    pages = Path(f"/proc/{pid}/statm").read_text().split()
    return int(pages[1]) * os.sysconf("SC_PAGE_SIZE")


if __name__ == "__main__":
    main()
