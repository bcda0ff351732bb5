"""`kithkin restore --cluster`: pictures a second with one and two workers, what Ray adds to local mode, what restoring
small pictures together brings, and memory over 10,000 pictures.

    python benchmarks/cluster.py
    python benchmarks/cluster.py memory    # this part alone; the others: speed, together, handing_out, files

The machine may be shared: the cases alternate, and ratios are of medians.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from kithkin.checkpoint import save_model
from kithkin.cli._memory import keep_freed_memory
from kithkin.cluster import Pool, Task, connected, plan_tasks, restore_tasks
from kithkin.cluster._plan import in_groups
from kithkin.cluster._worker import Worker, WorkerConfig
from kithkin.images import Picture, read_picture, write_picture
from kithkin.model import KiT
from kithkin.model_config import KiTConfig
from kithkin.restore_files import Outcome, RestoreOptions, plan_files, restore_files
from kithkin.zoo import load_model

from measure import RESULTS, keep

ROUNDS = 3
SPEED = ((128, 384),)  # side in pixels, pictures a case
TOGETHER = ((64, 130), (128, 66), (256, 34))
SIZES = (1000, 10000)  # pictures for memory
SIDE = 64
SMALL = KiTConfig(width=8, depth=1, n_hashes=1)
"""The network of the memory runs: what would grow with the number of pictures does so with any network."""
ONE = {"cpus": 1, "prepare": keep_freed_memory}
"""Of every pool here: a worker has one thread."""


def write_pictures(folder: Path, count: int, side: int) -> None:
    """Smooth colours with noise, PNG; a tenth as many different ones, the others are links."""
    folder.mkdir(parents=True)
    rows, columns = np.mgrid[0:side, 0:side]
    for i in range(count):
        path = folder / f"{i:05d}.png"
        if i >= max(count // 10, 1):
            os.link(folder / f"{i % max(count // 10, 1):05d}.png", path)
            continue
        rng = np.random.default_rng(i)
        waves = np.stack([np.sin(rows / p) + np.cos(columns / q) for p, q in rng.uniform(10, 90, (3, 2))], axis=-1)
        pixels = np.clip(128 + 40 * waves + rng.normal(0, 15, waves.shape), 0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(path)


def steady_rate(outcomes: Iterable[Outcome]) -> dict[str, float]:
    """Pictures a second after the first quarter arrived, so that starting the workers does not count; and this
    process's own CPU time a picture."""
    spent, arrivals = time.process_time(), []
    for outcome in outcomes:
        assert outcome.status == "written", outcome
        arrivals.append(time.perf_counter())
    start = arrivals[len(arrivals) // 4]
    first = sum(1 for at in arrivals if at < start + 0.05)  # a group arrives at once
    rate = (len(arrivals) - first) / (arrivals[-1] - start)
    return {"pictures_per_s": rate, "own_cpu_s_per_picture": (time.process_time() - spent) / len(arrivals)}


def cluster_case(source: Path, out: Path, **pool: Any) -> dict[str, float]:
    plan = plan_tasks([str(source)], out=str(out))
    with WorkersTime() as workers:
        found = steady_rate(restore_tasks(load_model("denoise-gaussian"), plan.tasks, pool=Pool(**pool)))
    return {**found, "workers_cpu_s_per_picture": workers.spent(out) / len(plan.tasks)}


class WorkersTime:
    """CPU time of the workers from when the first results appear, in samples of the system's table of processes."""

    def __enter__(self) -> "WorkersTime":
        self._samples: list[tuple[float, dict[int, float]]] = []
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def _watch(self) -> None:
        while not self._ended.wait(0.1):
            seen = {}
            for pid in tree(os.getpid()):
                try:
                    if b"ray::Worker" in Path(f"/proc/{pid}/cmdline").read_bytes():
                        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
                        seen[pid] = (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
                except OSError:
                    continue
            self._samples.append((time.time(), seen))

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    def spent(self, out: Path) -> float:
        """Seconds since the first file of each worker's time was written; a worker that came later counts from then."""
        first = min(path.stat().st_mtime for path in out.iterdir())
        begin: dict[int, float] = {}
        end: dict[int, float] = {}
        for at, seen in self._samples:
            for pid, spent in seen.items():
                if at >= first - 0.2:
                    begin.setdefault(pid, spent)
                    end[pid] = spent
        return sum(end[pid] - begin[pid] for pid in end)


def local_case(source: Path, out: Path) -> dict[str, float]:
    torch.set_num_threads(1)
    return steady_rate(restore_files(load_model("denoise-gaussian"), plan_files([source], out=out).jobs))


def medians(cases: dict[str, Callable[[Path], dict[str, float]]], folder: Path) -> dict[str, Any]:
    """Run the cases one after the other, ROUNDS times; give the median of each value, and all of them."""
    found: dict[str, list[dict[str, float]]] = {name: [] for name in cases}
    for turn in range(ROUNDS):
        for name, run in cases.items():
            found[name].append(run(folder / f"{name}-{turn}"))
            print(name, found[name][-1], file=sys.stderr, flush=True)
    return {
        name: {**{key: statistics.median(row[key] for row in rows) for key in rows[0]}, "rounds": rows}
        for name, rows in found.items()
    }


def speed() -> dict[str, Any]:
    """One worker and two, with one thread each, beside local mode with one thread."""
    result: dict[str, Any] = {}
    with connected("auto"):
        for side, count in SPEED:
            with tempfile.TemporaryDirectory() as name:
                source = Path(name, "in")
                write_pictures(source, count, side)
                cases = {
                    "local": lambda out, s=source: local_case(s, out),
                    "1 worker": lambda out, s=source: cluster_case(s, out, workers=1, **ONE),
                    "2 workers": lambda out, s=source: cluster_case(s, out, workers=2, **ONE),
                }
                rows = medians(cases, Path(name))
                rate = {case: row["pictures_per_s"] for case, row in rows.items()}
                sizes = [sum(f.stat().st_size for f in Path(name, n).iterdir()) for n in ("in", "local-0")]
                result[f"{side}²"] = {
                    "pictures": count,
                    **rows,
                    "2_workers_over_1": rate["2 workers"] / rate["1 worker"],
                    "1_worker_over_local": rate["1 worker"] / rate["local"],
                    "bytes_in_and_out_per_picture": [size / count for size in sizes],
                }
    return result


def together() -> dict[str, Any]:
    """Pictures of equal size one by one and 16 at once, by a worker with one thread in this process."""
    result: dict[str, Any] = {}
    for side, count in TOGETHER:
        with tempfile.TemporaryDirectory() as name:
            source = Path(name, "in")
            write_pictures(source, count, side)
            cases = {f"batch {n}": lambda out, s=source, n=n: worker_case(s, out, n) for n in (1, 16)}
            rows = medians(cases, Path(name))
            files = [sorted(Path(name, f"batch {n}-0").glob("*.png")) for n in (1, 16)]
            before, after = (np.stack([read_picture(p).pixels for p in each]) for each in files)
            levels = np.abs(before - after) * 255
            result[f"{side}²"] = {
                **rows,
                "gain_in_cpu_time": rows["batch 1"]["cpu_s_per_picture"] / rows["batch 16"]["cpu_s_per_picture"],
                "samples_that_differ": int((levels > 0.5).sum()),
                "of": levels.size,
                "largest_difference_levels": float(levels.max().round(3)),
            }
    return result


def worker_case(source: Path, out: Path, batch: int) -> dict[str, float]:
    """Seconds and CPU seconds a picture of one worker, reading and writing counted, starting it not."""
    worker = Worker(load_model("denoise-gaussian"), WorkerConfig(RestoreOptions(), "cpu", 1, batch=batch))
    paths = sorted(source.iterdir())
    tasks = [Task(str(p), str(out / p.name)) for p in paths]
    worker.restore(tasks[:2])
    started, spent = time.perf_counter(), time.process_time()
    for at in range(2, len(tasks), 32):
        assert all(found.status == "written" for found in worker.restore(tasks[at : at + 32]))
    count = len(tasks) - 2
    return {
        "s_per_picture": (time.perf_counter() - started) / count,
        "cpu_s_per_picture": (time.process_time() - spent) / count,
    }


def handing_out() -> dict[str, Any]:
    """What the command itself spends on a group of files: with strength 0, workers read and write alone."""
    count = 4000
    with tempfile.TemporaryDirectory() as name, connected("auto"):
        source = Path(name, "in")
        write_pictures(source, count, SIDE)
        plan = plan_tasks([str(source)], out=str(Path(name, "out")))
        options, pool = RestoreOptions(strength=0), Pool(workers=2, **ONE)
        found = steady_rate(restore_tasks(load_model("denoise-gaussian"), plan.tasks, options=options, pool=pool))
    groups = len(list(in_groups(plan.tasks, 2)))
    return {
        "pictures": count,
        "groups": groups,
        **found,
        "own_cpu_s_per_group": found["own_cpu_s_per_picture"] * count / groups,
    }


def files() -> dict[str, Any]:
    """CPU seconds to read and to write a photograph of 12 megapixels, and its bytes."""
    rows, columns = np.mgrid[0:3000, 0:4000]
    waves = np.stack([np.sin(rows / 80) + np.cos(columns / 130)] * 3, axis=-1)
    pixels = np.clip(0.5 + 0.15 * waves + np.random.default_rng(0).normal(0, 0.02, waves.shape), 0, 1)
    result = {}
    with tempfile.TemporaryDirectory() as name:
        for kind in ("jpg", "png"):
            path = Path(name, f"a.{kind}")
            times = []
            for step in (
                lambda p=path: write_picture(Picture(pixels.astype(np.float32)), p, overwrite=True),
                lambda p=path: read_picture(p),
            ):
                step()
                spent = time.process_time()
                for _ in range(3):
                    step()
                times.append((time.process_time() - spent) / 3)
            result[kind] = {"write_cpu_s": times[0], "read_cpu_s": times[1], "bytes": path.stat().st_size}
    return result


def tree(root: int) -> list[int]:
    """A process and all that descend from it."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            try:
                parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            except OSError:
                continue
            children.setdefault(parent, []).append(int(entry.name))
    found, waiting = [], [root]
    while waiting:
        found.append(waiting.pop())
        waiting += children.get(found[-1], [])
    return found


def memory_of(pids: Iterable[int]) -> dict[str, float]:
    """Megabytes of a tree of processes, shared pages divided among those that share them (PSS), by what they are."""
    sums: dict[str, float] = {"total": 0, "driver": 0, "workers": 0, "ray": 0}
    for i, pid in enumerate(pids):
        try:
            rollup = Path(f"/proc/{pid}/smaps_rollup").read_text()
            name = Path(f"/proc/{pid}/cmdline").read_bytes()
        except OSError:
            continue
        size = next((int(line.split()[1]) for line in rollup.splitlines() if line.startswith("Pss:")), 0) / 1e3
        sums["total"] += size
        sums["driver" if i == 0 else "workers" if b"ray::Worker" in name else "ray"] += size
    return sums


def memory_run(count: int, weights: Path, folder: Path) -> dict[str, Any]:
    """Restore `count` pictures by the command line with two workers; memory every 2 s, with how many were done."""
    source, out = folder / f"in-{count}", folder / f"out-{count}"
    write_pictures(source, count, SIDE)
    command = [sys.executable, "-m", "kithkin", "restore", str(source), "--out", str(out), "--cluster", "auto"]
    command += ["--model", str(weights)]
    samples = []
    started = time.perf_counter()
    with open(folder / f"log-{count}", "wb") as log:
        process = subprocess.Popen([*command, "--workers", "2"], stdout=log, stderr=log)
        while process.poll() is None:
            if out.is_dir():
                done = sum(entry.name.endswith(".png") for entry in os.scandir(out))
                samples.append({"done": done, **memory_of(tree(process.pid))})
            time.sleep(2.0)
    assert process.returncode == 0, (folder / f"log-{count}").read_text()[-2000:]
    peak = max(samples, key=lambda sample: sample["total"])
    steps = islice(samples, 0, None, max(1, len(samples) // 40))
    return {
        "pictures": count,
        "seconds": time.perf_counter() - started,
        "peak_megabytes": peak,
        "samples": [{key: round(value) for key, value in sample.items()} for sample in steps],
    }


def memory() -> dict[str, Any]:
    """The peak over 10,000 small pictures against that over 1,000."""
    with tempfile.TemporaryDirectory() as name:
        weights = Path(name, "small.safetensors")
        save_model(KiT(SMALL), weights)
        runs = [memory_run(count, weights, Path(name)) for count in SIZES]
    few, many = (run["peak_megabytes"]["total"] for run in runs)
    return {"side": SIDE, "network": asdict(SMALL), "workers": 2, "runs": runs, "peak_of_10000_over_1000": many / few}


def main() -> None:
    keep_freed_memory()
    parts = {"speed": speed, "together": together, "handing_out": handing_out, "files": files, "memory": memory}
    chosen = sys.argv[1:] or list(parts)
    path = RESULTS / "cluster.json"
    for name in chosen:
        found = {"load_average": os.getloadavg(), **parts[name]()}
        before = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
        results = {part: found if part == name else before.get(part) for part in parts}
        keep("cluster", {"cores": os.cpu_count(), **results})


if __name__ == "__main__":
    main()
