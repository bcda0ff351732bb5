"""Everything that a few minutes of a GPU are for, in one command: is the code right there, how fast is it, and a run.

    python benchmarks/gpu.py --out results --minutes 10 --recipe denoise-gaussian-small --parts pack/part-000.tar

In turn, each in a process of its own and within its share of the time:

1. parity and gradients of every backend, and the operator's speed (``operator_gpu.py``);
2. the kernels of the network compiled side by side; then crops a second of the data alone, of the training step alone
   and of both, for each backend and several batches;
3. ``kithkin train`` with the quickest of them for the rest of the time, as many steps as fit.

``--out`` gets at most eight files, all the while: ``gpu.json``, ``log.jsonl``, the last checkpoint in pieces (see
``pieces.py``) and at the end the weights. ``--resume`` goes on from such a folder. SIGTERM and Ctrl-C end the training
after its step, with a checkpoint. It runs from the source tree (PYTHONPATH=src) with kithkin's core dependencies.
``--dry-run`` does all of it on the CPU, with a toy network and synthetic pictures.
"""

import argparse
import contextlib
import json
import os
import signal
import subprocess
import sys
import tarfile
import tempfile
import time
from pathlib import Path
from typing import Any

from pieces import PiecesError, copy_whole, join, newest_checkpoint, rows, split

HERE = Path(__file__).resolve().parent
TOY = {
    "model.width": 8,
    "model.n_stages": 1,
    "data.crop": 32,
    "validation.crop": 32,
    "validation.sigmas": [25.0],
    "schedule.warmup": 1,
    "schedule.batch_size": 4,
}


def main() -> int:
    options = parse()
    run = GpuRun(options)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, run.stop)
    try:
        run.unpack()
        for phase in (run.operator, run.throughput, run.train):
            if not run.stopped:
                phase()
    except PiecesError as error:
        print(f"gpu.py: {error}", file=sys.stderr)
        return 2
    finally:
        run.note(minutes=round((time.monotonic() - run.started) / 60, 2), stopped=run.stopped)
    return 1 if run.failures else 0


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder for the results")
    parser.add_argument("--minutes", type=float, default=10.0, help="for all of it")
    parser.add_argument("--recipe", default="denoise-gaussian-small", help="what is measured and trained")
    parser.add_argument("--parts", type=Path, nargs="+", default=[], help="tar shards of photographs, or folders")
    parser.add_argument("--validation", type=Path, help="a tar shard or folder of photographs to validate on")
    parser.add_argument("--init", help="weights to begin from")
    parser.add_argument("--resume", type=Path, help="a folder of results to go on from")
    parser.add_argument("--batches", type=int, nargs="+", default=[64, 128, 256], help="batches to try")
    parser.add_argument("--backends", nargs="+", default=["triton", "blocked"], help="of the operator, to try")
    parser.add_argument("--skip", nargs="+", default=[], choices=["operator", "throughput", "train"])
    parser.add_argument("--set", nargs="+", default=[], metavar="KEY=VALUE", help="changes of the recipe")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--piece-mb", type=float, default=15.0, help="largest file of a checkpoint, in MB")
    parser.add_argument("--pieces", type=int, default=4, help="most files of a checkpoint")
    parser.add_argument("--dry-run", action="store_true", help="all of it on the CPU, small")
    options = parser.parse_args()
    if options.dry_run:
        options.device, options.backends, options.batches = "cpu", ["blocked"], [2, 4]
    if not options.parts and not options.dry_run:
        parser.error("--parts names the photographs to train on; `kithkin data pack` makes them")
    return options


class GpuRun:
    """The phases, what is known from those before, and the time that is left."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.started = time.monotonic()
        self.end = self.started + options.minutes * 60
        self.out = options.out
        self.out.mkdir(parents=True, exist_ok=True)
        self.work = Path(tempfile.mkdtemp(prefix="kithkin-gpu-"))
        self.results: dict[str, Any] = {"command": " ".join(["python", "benchmarks/gpu.py", *sys.argv[1:]])}
        self.failures: list[str] = []
        self.stopped = False
        self.child: subprocess.Popen[bytes] | None = None
        self.data: list[str] = []
        self.validation: str | None = None
        self.best: dict[str, Any] = {}

    def stop(self, number: int, frame: object) -> None:
        """End the phase that runs; the training ends after its step, with a checkpoint."""
        self.stopped = True
        if self.child is not None:
            self._signal(self.child, signal.SIGTERM)

    def left(self) -> float:
        """Seconds that are left."""
        return self.end - time.monotonic()

    def note(self, **values: Any) -> None:
        """Keep findings, in ``gpu.json``."""
        self.results |= values
        if self.failures:
            self.results["failures"] = self.failures
        text = json.dumps(self.results, indent=1) + "\n"
        part = self.work / "gpu.json"
        part.write_text(text, encoding="utf-8")
        copy_whole(part, self.out / "gpu.json")

    def say(self, text: str) -> None:
        print(f"[{time.monotonic() - self.started:6.1f} s] {text}", flush=True)

    def unpack(self) -> None:
        """Put the photographs into folders, and a checkpoint to go on from into the run's."""
        self.note(gpu=_gpu() if self.options.device != "cpu" else "none: on the CPU")
        sources = self.options.parts or [self._synthetic()]
        self.data = [str(self._folder(source, f"data-{i}")) for i, source in enumerate(sources)]
        if self.options.validation or self.options.dry_run:
            self.validation = str(self._folder(self.options.validation or sources[0], "validation"))
        if self.options.resume:
            checkpoint, resumable = join(self.options.resume, self.work / "run")
            if not resumable:  # too large to travel whole: another run begins from its averaged weights
                (self.work / "run").rename(self.work / "before")
                self.options.init = str(self.work / "before" / checkpoint.name / "average.safetensors")
            else:
                self._move_data(checkpoint)
            self.note(resumed={"step": int(checkpoint.name[5:]), "whole": resumable})
            self.say(f"goes on from {checkpoint.name}" + ("" if resumable else ", from its weights alone"))

    def _move_data(self, checkpoint: Path) -> None:
        """Tell a checkpoint where the photographs are now: a run goes on with the folders it was begun with alone."""
        path = checkpoint / "run.json"
        run = json.loads(path.read_text(encoding="utf-8"))
        run["config"]["data"]["folders"] = self.data
        path.write_text(json.dumps(run, indent=1), encoding="utf-8")

    def _folder(self, source: Path, name: str) -> Path:
        if source.is_dir():
            return source.resolve()
        with tarfile.open(source) as tar:
            tar.extractall(self.work / name, filter="data")
        return self.work / name

    def _synthetic(self) -> Path:
        import numpy as np
        from PIL import Image

        folder = self.work / "synthetic"
        folder.mkdir()
        for i in range(4):
            coarse = np.random.default_rng(i).integers(0, 256, (12, 12, 3), dtype=np.uint8)
            Image.fromarray(coarse).resize((96, 96), Image.Resampling.BICUBIC).save(folder / f"{i}.png")
        return folder

    def changes(self) -> list[str]:
        """The recipe's changes, as ``--set`` takes them."""
        toy = [f"{key}={json.dumps(value)}" for key, value in TOY.items()] if self.options.dry_run else []
        return [*toy, *self.options.set]

    def operator(self) -> None:
        """Is every backend right, and how fast is it?"""
        if "operator" in self.options.skip:
            return
        share = 1.0 if self.options.dry_run else min(60.0, 0.15 * self.left())
        found = self._phase("operator", share, {"device": self.options.device})
        self.note(operator=found)

    def throughput(self) -> None:
        """Crops a second for each backend and batch; the quickest is what the training takes."""
        if "throughput" in self.options.skip:
            return
        share = 1.0 if self.options.dry_run else min(40.0, 0.1 * self.left())
        given = {
            "device": self.options.device,
            "recipe": self.options.recipe,
            "batches": self.options.batches,
            "changes": self._laid_over(),
        }
        found: dict[str, Any] = {}
        for backend in self.options.backends:
            if self.stopped:
                break
            if backend == self.options.backends[0]:
                self.note(compile=self._phase("compile", 1.5 * share, {**given, "backend": backend}))
            found[backend] = self._phase("throughput", share, {**given, "backend": backend})
            for row in found[backend].get("rows", []):
                self.say(f"{backend}: {row}")
            self.note(throughput=found)
        rows = [{"backend": name, **row} for name, one in found.items() for row in one.get("rows", [])]
        self.best = _best(rows)
        self.note(best=self.best)

    def _laid_over(self) -> dict[str, Any]:
        import tomllib

        pairs = (change.split("=", 1) for change in self.changes())
        changes = {}
        for key, value in pairs:
            try:
                changes[key] = tomllib.loads(f"value = {value}")["value"]
            except tomllib.TOMLDecodeError:
                changes[key] = value
        return changes | {"data.folders": self.data}

    def _phase(self, name: str, seconds: float, given: dict[str, Any]) -> dict[str, Any]:
        """What a phase finds in about so many seconds; it is ended where it takes much longer."""
        self.say(f"{name}: {seconds:.0f} s")
        result = self.work / f"{name}.json"
        result.unlink(missing_ok=True)
        command = [
            sys.executable,
            str(HERE / "gpu_phases.py"),
            name,
            str(result),
            json.dumps({**given, "seconds": seconds}),
        ]
        failed = self._child(command, seconds + (120 if self.options.dry_run else 30))
        found: dict[str, Any] = json.loads(result.read_text(encoding="utf-8")) if result.exists() else {}
        if failed:
            found["failed"] = failed
            self.failures.append(f"{name}: {failed[-1]}")
            self.say(f"{name} failed: {failed[-1]}")
        return found

    def _child(self, command: list[str], seconds: float, watch: Any = None) -> list[str]:
        """Run a process; the last lines of its errors where it fails."""
        errors = self.work / "errors.txt"
        with errors.open("wb") as stderr:
            child = subprocess.Popen(command, stderr=stderr, env=self._environment(), start_new_session=True)
            self.child = child
            deadline = time.monotonic() + seconds
            late = False
            while child.poll() is None:
                time.sleep(0.2)
                if watch:
                    watch()
                if time.monotonic() > deadline and not late:
                    late = True
                    self._signal(child, signal.SIGTERM)
                if time.monotonic() > deadline + 20:
                    self._signal(child, signal.SIGKILL)
            code, self.child = child.returncode, None
        text = errors.read_text(encoding="utf-8", errors="replace")
        if code == 0 or (self.stopped and not late):
            return []
        lines = text.splitlines()[-20:]
        return (
            [*lines, f"was ended after {seconds:.0f} s" if late else f"exit code {code}"]
            if not lines or late
            else lines
        )

    @staticmethod
    def _signal(child: "subprocess.Popen[bytes]", number: int) -> None:
        """To a process and those that it has started."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child.pid, number)

    def _environment(self) -> dict[str, str]:
        path = os.pathsep.join([str(HERE.parent / "src"), str(HERE), *filter(None, [os.environ.get("PYTHONPATH")])])
        return {**os.environ, "PYTHONPATH": path, "PYTHONUNBUFFERED": "1"}

    def train(self) -> None:
        """``kithkin train`` for the rest of the time; its log and last checkpoint are in ``--out`` all the while."""
        dry = self.options.dry_run
        seconds = 12.0 if dry else self.left() - 15  # to start, and to end with a checkpoint and the last pieces
        if "train" in self.options.skip or seconds < 5:
            return
        run = self.work / "run"
        command = [
            *(sys.executable, "-m", "kithkin", "train", self.options.recipe, "--out", str(run), "--resume", "--json"),
            *("--device", self.options.device, "--minutes", f"{seconds / 60:.3f}"),
            *(x for folder in self.data for x in ("--data", folder)),
            *(x for change in [*self.changes(), *self._schedule(seconds)] for x in ("--set", change)),
        ]
        command += ["--validation", self.validation] if self.validation else []
        command += ["--init", self.options.init] if self.options.init else []
        self.say(f"train: {seconds:.0f} s, {self.results.get('schedule')}")
        self.shipped: Path | None = None
        failed = self._child(command, seconds + (120 if dry else 40), lambda: self._ship(run))
        self._ship(run)
        weights = next(iter(sorted(run.glob("*.safetensors"))), None)
        if weights and weights.stat().st_size <= self.options.piece_mb * 1e6:
            copy_whole(weights, self.out / weights.name)
        logged = list(rows(run / "log.jsonl"))
        self.note(training={"finished": weights is not None, "last": logged[-2:], "failed": failed})
        if failed:
            self.failures.append(f"train: {failed[-1]}")
        self.say(f"train: {failed[-1] if failed else logged[-1:]}")

    def _schedule(self, seconds: float) -> list[str]:
        """As many steps as fit, by the rate that was measured; a cosine that ends early learns less than it could."""
        changes = ["schedule.checkpoint_seconds=60" if not self.options.dry_run else "schedule.checkpoint_seconds=2"]
        if rate := self.best.get("both_crops_per_s"):
            done = self.results.get("resumed", {})
            before = done["step"] if done.get("whole") else 0
            steps = before + max(1, int(0.93 * rate * max(1.0, seconds - 10) / self.best["batch"]))
            changes += [f"schedule.steps={steps}", f"schedule.batch_size={self.best['batch']}"]
            changes += [f"validation.every={max(1, (steps - before) // 8)}"]
            changes += [f"backend={self.best['backend']}"]
        self.note(schedule=changes)
        return changes

    def _ship(self, run: Path) -> None:
        """Copy the log, and the newest checkpoint in pieces."""
        try:
            if (run / "log.jsonl").exists():
                copy_whole(run / "log.jsonl", self.out / "log.jsonl")
            newest = newest_checkpoint(run)
            if newest is not None and newest != self.shipped:
                manifest = split(newest, self.out, size=int(self.options.piece_mb * 1e6), most=self.options.pieces)
                self.shipped = newest
                self.say(f"{newest.name} in {len(manifest['pieces'])} pieces")
        except FileNotFoundError:
            pass  # replaced by a newer checkpoint meanwhile: next time


def _gpu() -> str:
    """Name, driver and memory of the GPU, as its driver says."""
    query = ["nvidia-smi", "--query-gpu=name,driver_version,memory.total", "--format=csv,noheader"]
    try:
        return subprocess.run(query, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError) as error:
        return f"unknown: {error}"


def _best(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """The quickest of the rows; of those within 5 % of it, the smallest batch, which makes more steps."""
    most = max((row.get("both_crops_per_s", 0.0) for row in rows), default=0.0)
    near = [row for row in rows if row.get("both_crops_per_s", 0.0) >= 0.95 * most > 0]
    return min(near, key=lambda row: row["batch"], default={})


if __name__ == "__main__":
    sys.exit(main())
