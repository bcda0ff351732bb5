"""A method on a data set, under a named protocol, one picture in memory at a time."""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from kithkin.data import Sample, Samples, open_samples, write_dnd_bundle, write_sidd_results
from kithkin.data.degrade import NOISES, benchmark_noise, noise_example
from kithkin.data.dnd import DndCrops
from kithkin.data.sidd import SiddBlocks
from kithkin.errors import InputError
from kithkin.evaluation.protocols import GAUSSIAN_SIGMAS, Protocol, find_protocol, scores
from kithkin.evaluation.rows import MEASURED, Measurer, Report, Row, ScoreFile
from kithkin.methods import Method, as_method, run_method
from kithkin.model import KiT
from kithkin.restorers import Restorer


@dataclass(frozen=True)
class Pictures:
    """The pictures behind a row, each float32 or uint8 (H, W, 3).

    Attributes:
        degraded: what the method got.
        restored: what it made of it; values may leave [0, 1].
        target: what it should be; None where that is not public.
    """

    degraded: np.ndarray
    restored: np.ndarray
    target: np.ndarray | None


Watch = Callable[[Row, int, Pictures | None], None]
"""Called after every row with the number of rows there will be; without pictures where the row was there already."""


class _Case(NamedTuple):
    image: str
    condition: str
    degraded: np.ndarray
    target: np.ndarray | None
    sigma: float | None


def evaluate(
    method: Method | KiT | Restorer,
    data: str | Path | Samples,
    protocol: str | None = None,
    *,
    sigmas: tuple[float, ...] = GAUSSIAN_SIGMAS,
    limit: int | None = None,
    csv: str | Path | None = None,
    watch: Watch | None = None,
) -> Report:
    """Restore every picture of a data set and compare.

    Args:
        method: a network, which restores every picture whole, or another restorer, or what
            ``kithkin.methods.open_method`` returns.
        data: a folder as ``kithkin.data.open_samples`` takes it (clean pictures, pairs, a published layout), or
            what that function returns.
        protocol: a name in ``PROTOCOLS``; None takes ``"gaussian"`` for clean pictures, ``"float"`` for
            SIDD's blocks, ``"rgb"`` for other pairs and ``"dnd"`` where there is no target.
        sigmas: noise levels on the 0-255 scale, of protocol ``"gaussian"``.
        limit: take this many pictures, the first by name.
        csv: a file that gets a line for every picture as soon as it is measured; pictures that it already has
            (same method and weights, protocol and data set) are not measured again.
        watch: see ``Watch``.

    Returns:
        The rows, in order of name.

    Raises:
        InputError: the data are not what the protocol needs, or a value is out of range.
        ImageError: a picture can't be read.
        KithkinError: the method fails, or gives NaN or infinite values.
    """
    samples = open_samples(data) if isinstance(data, str | Path) else data
    chosen = _choose(samples, protocol)
    method = as_method(method)
    rows = []
    for row, total, pictures in _rows(method, samples, chosen, sigmas, limit, ScoreFile(Path(csv)) if csv else None):
        rows.append(row)
        if watch:
            watch(row, total, pictures)
    return Report(method.name, samples.title, chosen, tuple(rows))


def submit(
    method: Method | KiT | Restorer, data: str | Path | Samples, path: str | Path, *, watch: Watch | None = None
) -> Report:
    """Restore a whole data set and write what its server takes.

    Args:
        method, watch: as in ``evaluate``.
        data: SIDD's validation blocks or DND.
        path: SIDD: the file ``Idenoised.mat``. DND: the folder of its 50 files.

    Returns:
        The rows, as ``evaluate`` makes them under protocol ``"float"`` (SIDD) or ``"dnd"``.

    Raises:
        InputError: another data set, or it is incomplete, or ``path`` can't be written.
        KithkinError: as for ``evaluate``.
    """
    samples = open_samples(data) if isinstance(data, str | Path) else data
    method = as_method(method)
    write, protocol = _server_of(samples)
    _check_destination(Path(path), folder=protocol.kind == "inputs")
    rows = []

    def outputs() -> Iterator[np.ndarray]:
        for row, total, pictures in _rows(method, samples, protocol, (), None, None):
            rows.append(row)
            if watch:
                watch(row, total, pictures)
            assert pictures is not None
            yield pictures.restored.clip(0, 1)

    try:
        write(outputs(), Path(path))
    except OSError as error:
        raise InputError(f"submit: {path} can't be written ({error.strerror or error}); name another place") from error
    return Report(method.name, samples.title, protocol, tuple(rows))


def _server_of(samples: Samples) -> tuple[Callable[[Iterator[np.ndarray], Path], Any], Protocol]:
    if isinstance(samples, SiddBlocks):
        images, per_image = samples.shape[:2]
        return partial(write_sidd_results, images=images, per_image=per_image), find_protocol("float")
    if isinstance(samples, DndCrops):
        return write_dnd_bundle, find_protocol("dnd")
    raise InputError(
        f"submit: {samples.title} is no set with a server that kithkin knows; expected SIDD's blocks or DND"
    )


def _check_destination(path: Path, *, folder: bool) -> None:
    """Refuse what can't take the result before hours are spent on it."""
    if folder and path.exists() and not path.is_dir():
        raise InputError(f"submit: {path} is a file, expected a folder for DND's 50 files; name another")
    if not folder and path.is_dir():
        raise InputError(f"submit: {path} is a folder, expected a file; name one in it, such as {path}/Idenoised.mat")
    if not folder and not path.absolute().parent.is_dir():
        raise InputError(f"submit: there is no folder {path.parent} for {path.name}; make it first")


def _rows(
    method: Method,
    samples: Samples,
    protocol: Protocol,
    sigmas: tuple[float, ...],
    limit: int | None,
    store: ScoreFile | None,
) -> Iterator[tuple[Row, int, Pictures | None]]:
    """Each row with the number of rows there will be, and with its pictures where they were measured now."""
    if limit is not None and limit < 1:
        raise InputError(f"evaluate: limit is at least 1, got {limit}")
    if protocol.name == "gaussian" and not (sigmas and all(0 < s <= 255 for s in sigmas)):
        raise InputError(f"evaluate: sigmas lie above 0 and at most at 255, got {list(sigmas)}")
    measurer = Measurer(samples.title, samples.source, protocol.name, method.name, method.identity)
    conditions: tuple[float | str, ...] = tuple(dict.fromkeys(sigmas)) if protocol.name == "gaussian" else ("pairs",)
    conditions = tuple(NOISES) if protocol.name == "noises" else conditions
    names = samples.names[: limit or len(samples)]
    total = len(names) * len(conditions)
    for index, name in enumerate(names):
        for case in _cases(samples, index, name, conditions, measurer, store):
            if isinstance(case, Row):
                yield case, total, None
                continue
            row, pictures = _measure(method, case, protocol)
            if store:
                store.append(measurer, row)
            yield row, total, pictures


def _choose(samples: Samples, name: str | None) -> Protocol:
    pairs = "float" if isinstance(samples, SiddBlocks) else "rgb"
    protocol = find_protocol(name or {"photos": "gaussian", "pairs": pairs, "inputs": "dnd"}[samples.kind])
    if protocol.kind != samples.kind:
        raise InputError(
            f"evaluate: protocol {protocol.name!r} measures {_KINDS[protocol.kind]}, but {samples.title} is a set of "
            f"{_KINDS[samples.kind]}"
        )
    return protocol


_KINDS = {
    "photos": "clean pictures",
    "pairs": "pairs of input and target",
    "inputs": "degraded pictures without a target",
}


def _cases(
    samples: Samples,
    index: int,
    name: str,
    conditions: tuple[float | str, ...],
    measurer: Measurer,
    store: ScoreFile | None,
) -> Iterator[_Case | Row]:
    """What is to be done for one picture, or the row where it is done; the picture is read only where it is needed."""
    sample: Sample | None = None
    for setting in conditions:
        condition = setting if isinstance(setting, str) else f"sigma {setting:g}"
        row = store.find(measurer, name, condition) if store else None
        if row:
            yield row
            continue
        sample = sample or samples[index]
        if setting == "pairs":
            assert sample.input is not None
            yield _Case(name, condition, _as_float(sample.input), sample.target, None)
            continue
        assert sample.target is not None
        clean = _as_float(sample.target, np.float64)
        if isinstance(setting, str):
            degraded, target = noise_example(setting, clean, index)
            yield _Case(name, condition, degraded, np.rint(target * 255).astype(np.uint8), None)
        else:
            yield _Case(name, condition, benchmark_noise(clean, setting), sample.target, setting)


def _measure(method: Method, case: _Case, protocol: Protocol) -> tuple[Row, Pictures]:
    started = time.perf_counter()
    restored = run_method(method, case.degraded, sigma=case.sigma, picture=case.image)
    seconds = time.perf_counter() - started
    numbers: dict[str, Any] = dict.fromkeys(MEASURED)
    if case.target is not None:
        numbers["psnr_input"], numbers["ssim_input"] = scores(protocol, case.degraded, case.target)
        numbers["psnr"], numbers["ssim"] = scores(protocol, restored, case.target)
    height, width = case.degraded.shape[:2]
    row = Row(case.image, case.condition, **numbers, seconds=seconds, megapixels=height * width / 1e6)
    return row, Pictures(case.degraded, restored, case.target)


def _as_float(pixels: np.ndarray, kind: type = np.float32) -> np.ndarray:
    return pixels.astype(kind) / 255 if pixels.dtype == np.uint8 else pixels.astype(kind)
