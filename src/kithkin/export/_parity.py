"""Whether an exported file computes what the network computes."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from kithkin.errors import KithkinError
from kithkin.export._open import open_exported
from kithkin.metrics import psnr
from kithkin.model import KiT
from kithkin.restorers import Network, Restorer

LEAST_PSNR = 50.0
"""In dB. Rounding leaves 90 and more, less where it moves a patch to another bucket; a fault leaves far less."""


@dataclass(frozen=True)
class Parity:
    """How near an exported file comes to PyTorch on a picture of (height, width) pixels: the largest difference of a
    value in [0, 1], and the PSNR in dB between the two results, infinite where they are equal."""

    height: int
    width: int
    max_difference: float
    psnr: float


def check_parity(
    restorer: KiT | Restorer,
    path: str | Path,
    *,
    sizes: Sequence[tuple[int, int]] | None = None,
    least: float = LEAST_PSNR,
) -> list[Parity]:
    """Run an exported file beside what it was made of, on noisy pictures with the statistics of photographs.

    Args:
        restorer: the network, or what else the file was made of.
        path: from ``kithkin.export.export_onnx`` (run by onnxruntime on the CPU) or ``export_torch``.
        sizes: (height, width) of the pictures; None takes four, one square, three odd.
        least: PSNR in dB between the two that every picture must reach.

    Raises:
        KithkinError: a picture falls short of ``least``, or onnxruntime is missing.
        CheckpointError: the file can't be opened.
    """
    network = open_exported(path)
    wanted = Network(restorer) if isinstance(restorer, KiT) else restorer
    side = 4 * wanted.stride + 1
    rows = []
    for height, width in sizes or (
        (2 * side, 2 * side),
        (side + 32, side + 68),
        (side, 4 * side - 10),
        (2 * side, side),
    ):
        image = _photograph(height, width)
        expected = wanted(torch.from_numpy(image[0]))
        found = torch.from_numpy(network(image)[0])
        worst = float((found - expected).abs().max())
        rows.append(Parity(height, width, worst, psnr(found, expected, protocol="rgb")))
    short = [row for row in rows if not row.psnr >= least]
    if short:
        raise KithkinError(
            f"{path}: the exported file gives another picture than the network: {short[0].psnr:.1f} dB between the two "
            f"at {short[0].width} x {short[0].height}, at least {least:g} expected; please report this"
        )
    return rows


def _photograph(height: int, width: int) -> np.ndarray:
    """(1, 3, H, W) float32: what photographs have, amplitudes that fall with the frequency and colours that agree,
    an edge, and noise of sigma 25."""
    random = np.random.RandomState(0)
    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None])
    frequency[0, 0] = np.inf
    spectrum = np.fft.rfft2(random.standard_normal((4, height, width))) / frequency
    planes = np.fft.irfft2(spectrum, (height, width))
    planes = planes[:1] + 0.3 * planes[1:]
    planes = 0.5 + 0.15 * planes / planes.std()
    planes[:, : height // 3, width // 2 :] *= 0.5
    return (planes + 25 / 255 * random.standard_normal(planes.shape)).clip(0, 1).astype(np.float32)[None]
