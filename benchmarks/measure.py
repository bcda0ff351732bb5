"""What every benchmark here shares: the machine's description, memory peaks, repeated timing, the JSON file."""

import io
import json
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from PIL import Image

RESULTS = Path(__file__).parent / "results"


def machine() -> dict[str, Any]:
    """The CPU, the versions and the threads that a number belongs to."""
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    fields = {name.strip(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    return {
        "cpu": fields.get("model name", platform.processor()),
        "family and model": [fields.get("cpu family"), fields.get("model")],  # a virtual machine's name says little
        "threads": torch.get_num_threads(),
        "capability": torch.backends.cpu.get_cpu_capability(),
        "torch": torch.__version__,
        "python": platform.python_version(),
    }


def seconds(run: Callable[[], Any], *, repeats: int) -> float:
    """Median of the times of ``repeats`` runs after one that is not counted."""
    run()
    times = []
    for _ in range(repeats):
        started = time.perf_counter()
        run()
        times.append(time.perf_counter() - started)
    return statistics.median(times)


def least_seconds(run: Callable[[], Any], *, budget: float = 1.0) -> float:
    """The least of the times of several runs after one that is not counted: the rest is other people's work.

    Args:
        budget: seconds to spend; 3 to 15 runs.
    """
    run()
    times: list[float] = []
    while len(times) < 3 or (sum(times) < budget and len(times) < 15):
        started = time.perf_counter()
        run()
        times.append(time.perf_counter() - started)
    return min(times)


def peak_extra_megabytes(run: Callable[[], Any]) -> float:
    """By how much resident memory rose, at its highest, while ``run`` ran. Linux; call it once a process."""
    Path("/proc/self/clear_refs").write_text("5")  # the high-water mark starts again here
    before = _status("VmRSS")
    run()
    return (_status("VmHWM") - before) / 1e6


def _status(name: str) -> int:
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(name))


def in_a_new_process(script: str, *arguments: str) -> Any:
    """What ``script`` prints as JSON when it runs with these arguments: memory is measured in a process of its own."""
    command = [sys.executable, script, *arguments]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def save_plot(figure: Any, path: Path) -> None:
    """Write a matplotlib figure as a PNG of few colours, a quarter of the bytes of what matplotlib writes."""
    drawn = io.BytesIO()
    figure.savefig(drawn, dpi=90, format="png")
    picture = Image.open(drawn).convert("RGB")
    picture.quantize(96, method=Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE).save(path, optimize=True)


def keep(name: str, result: dict[str, Any]) -> None:
    """Write ``results/<name>.json`` with the machine and the command that made it."""
    RESULTS.mkdir(exist_ok=True)
    command = f"python benchmarks/{Path(sys.argv[0]).name}"
    text = json.dumps({"command": command, "machine": machine(), **result}, indent=1)
    (RESULTS / f"{name}.json").write_text(text + "\n", encoding="utf-8")
    print(text)
