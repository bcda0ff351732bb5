"""A network on a folder of pictures, under a named protocol."""

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from kithkin.config import DataConfig
from kithkin.data import Pairs, Photos, benchmark_noise, open_folders
from kithkin.errors import InputError
from kithkin.metrics import psnr, ssim
from kithkin.model import KiT
from kithkin.restoration import OVERLAP, check_tiling, restore

GAUSSIAN_SIGMAS = (15.0, 25.0, 50.0)


@dataclass(frozen=True)
class Protocol:
    """How values are made, so that they can stand beside published ones.

    Attributes:
        name: what ``--protocol`` takes.
        kind: ``"photos"`` are clean pictures that get the published Gaussian noise; ``"pairs"`` are input and target.
        psnr: a protocol of :func:`kithkin.metrics.psnr`; the SSIM is computed on the same signal.
        window: of :func:`kithkin.metrics.ssim`.
        summary: in words.
    """

    name: str
    kind: str
    psnr: str
    window: str
    summary: str


PROTOCOLS = {
    protocol.name: protocol
    for protocol in (
        Protocol(
            "gaussian",
            "photos",
            "rgb-uint8",
            "wang2d",
            "clean pictures; noise of seed 0 before every picture, not clipped; output rounded to uint8; PSNR on RGB",
        ),
        Protocol("rgb", "pairs", "rgb-uint8", "matlab3d", "pairs; output rounded to uint8; PSNR on RGB (GoPro, HIDE)"),
        Protocol("float", "pairs", "rgb", "matlab3d", "pairs; output clamped, not rounded; PSNR on RGB (SIDD)"),
        Protocol("rain", "pairs", "y-matlab", "wang2d", "pairs; MATLAB's Y of uint8, rounded (the Rain13k tests)"),
    )
}


@dataclass(frozen=True)
class Row:
    """One picture under one condition.

    Attributes:
        image: its file name.
        condition: ``"sigma 25"``, or ``"pairs"``.
        psnr_input, psnr: dB, before and after.
        ssim_input, ssim: before and after.
        seconds: for the network.
        megapixels: of the picture.
    """

    image: str
    condition: str
    psnr_input: float
    psnr: float
    ssim_input: float
    ssim: float
    seconds: float
    megapixels: float


@dataclass(frozen=True)
class Report:
    """All rows of an evaluation."""

    protocol: Protocol
    rows: tuple[Row, ...]

    def means(self) -> dict[str, dict[str, float]]:
        """Condition -> column -> mean over its pictures; ``images`` is their number."""
        columns = ("psnr_input", "psnr", "ssim_input", "ssim")
        table: dict[str, dict[str, float]] = {}
        for condition in dict.fromkeys(row.condition for row in self.rows):
            rows = [row for row in self.rows if row.condition == condition]
            means = {name: float(np.mean([getattr(row, name) for row in rows])) for name in columns}
            pixels = sum(row.megapixels for row in rows)
            table[condition] = {
                **means,
                "images": len(rows),
                "seconds_per_megapixel": sum(row.seconds for row in rows) / pixels,
            }
        return table

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON: the protocol, the means, every row; None for the PSNR of equal pictures."""
        rows = [_finite(asdict(row)) for row in self.rows]
        means = {condition: _finite(mean) for condition, mean in self.means().items()}
        return {"protocol": asdict(self.protocol), "means": means, "images": rows}


def _finite(row: dict[str, Any]) -> dict[str, Any]:
    return {key: None if isinstance(x, float) and not math.isfinite(x) else x for key, x in row.items()}


def evaluate(
    model: KiT,
    folder: str | Path,
    protocol: str | None = None,
    *,
    sigmas: tuple[float, ...] = GAUSSIAN_SIGMAS,
    tile: str | int = "off",
    limit: int | None = None,
    report: Callable[[Row, int], None] | None = None,
) -> Report:
    """Restore every picture of a folder and compare.

    Args:
        model: the network, on the device it is to run on.
        folder: clean pictures, or a folder with ``input`` and ``target``.
        protocol: a name in :data:`PROTOCOLS`; None takes ``"rgb"`` for a folder of pairs and ``"gaussian"`` else.
        sigmas: noise levels on the 0-255 scale, for clean pictures.
        tile: as in :func:`kithkin.restoration.restore`; published values are of whole pictures, ``"off"``.
        limit: take this many pictures, the first by name.
        report: called after every row, with the number of rows there will be.

    Returns:
        The rows, in order of name.

    Raises:
        InputError: the folder is not what the protocol needs, or a value is out of range.
        ImageError: a picture can't be read.
        KithkinError: the memory does not suffice; smaller tiles may.
    """
    check_tiling(tile, OVERLAP)
    chosen = _choose(Path(folder), protocol)
    if chosen.kind == "photos" and not (sigmas and all(0 < s <= 255 for s in sigmas)):
        raise InputError(f"evaluate: sigmas lie above 0 and at most at 255, got {list(sigmas)}")
    if limit is not None and limit < 1:
        raise InputError(f"evaluate: limit is at least 1, got {limit}")
    dataset = open_folders(_data(chosen, Path(folder)))
    count = min(len(dataset), limit or len(dataset))
    total = count * (len(sigmas) if chosen.kind == "photos" else 1)
    rows = []
    for name, condition, degraded, target in _problems(dataset, count, chosen, sigmas):
        rows.append(_row(model, name, condition, degraded, target, chosen, tile))
        if report:
            report(rows[-1], total)
    return Report(chosen, tuple(rows))


def _choose(folder: Path, name: str | None) -> Protocol:
    if name is None:
        name = "rgb" if (folder / "input").is_dir() or (folder / "input_crops").is_dir() else "gaussian"
    if name not in PROTOCOLS:
        raise InputError(f"evaluate: no protocol is called {name!r}; there are {', '.join(PROTOCOLS)}")
    return PROTOCOLS[name]


def _data(protocol: Protocol, folder: Path) -> DataConfig:
    sigma = (0.0, 0.0) if protocol.kind == "photos" else None
    kind: Any = protocol.kind
    return DataConfig(kind=kind, folders=(folder,), crop=1, sigma=sigma, cache_gb=0)


def _problems(
    dataset: Photos | Pairs, count: int, protocol: Protocol, sigmas: tuple[float, ...]
) -> Iterator[tuple[str, str, np.ndarray, np.ndarray]]:
    """(file name, condition, degraded float32, target uint8), both (H, W, 3)."""
    for index in range(count):
        sides = dataset[index]
        path = dataset.paths[index]
        target = sides[-1]
        if isinstance(path, tuple):
            yield path[0].name, "pairs", sides[0].astype(np.float32) / 255, target
            continue
        for sigma in sigmas:
            yield path.name, f"sigma {sigma:g}", benchmark_noise(target / 255.0, sigma), target


def _row(
    model: KiT, name: str, condition: str, degraded: np.ndarray, target: np.ndarray, protocol: Protocol, tile: str | int
) -> Row:
    started = time.perf_counter()
    restored = restore(model, torch.from_numpy(degraded).permute(2, 0, 1), tile=tile)
    seconds = time.perf_counter() - started
    after = restored.permute(1, 2, 0).numpy()
    return Row(
        image=name,
        condition=condition,
        psnr_input=psnr(degraded, target, protocol=protocol.psnr),
        psnr=psnr(after, target, protocol=protocol.psnr),
        ssim_input=ssim(degraded, target, window=protocol.window, protocol=protocol.psnr),
        ssim=ssim(after, target, window=protocol.window, protocol=protocol.psnr),
        seconds=seconds,
        megapixels=target.shape[0] * target.shape[1] / 1e6,
    )
