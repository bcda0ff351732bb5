"""Measure the network on the validation pictures."""

from collections.abc import Iterator
from itertools import chain

import numpy as np
import torch

from kithkin.config import RunConfig
from kithkin.data import Pairs, Photos
from kithkin.data.degrade import NOISES, benchmark_noise, degrade_photos, margin, noise_example
from kithkin.metrics import psnr
from kithkin.model import KiT
from kithkin.training.distributed import Ranks


@torch.no_grad()
def validate(model: KiT, dataset: Photos | Pairs, config: RunConfig, ranks: Ranks) -> dict[str, float]:
    """Mean PSNR in dB (protocol ``rgb``) over the central crops, which the processes share.

    Returns:
        ``{"psnr": …}`` for pairs, ``{"sigma15": …, …}`` for photographs with noise of each level, which
        follows the published protocol: seed 0 before every picture; and the name of the degradation (``"camera"``)
        where the run has one, drawn for each picture from a seed of its own. Of ``kind = "noise"`` there is one row for
        each of ``kithkin.data.degrade.NOISES``, the same whatever the shares of the run.
    """
    model.eval()
    own: list[tuple[int, str, float]] = []
    for index in range(ranks.rank, len(dataset), ranks.world_size):
        for name, degraded, target in _conditions(dataset[index], index, config):
            picture = torch.from_numpy(degraded).to(ranks.device).permute(2, 0, 1)[None]
            restored = model(picture)[0].permute(1, 2, 0).float().cpu().numpy()
            own.append((index, name, psnr(restored, target, protocol="rgb")))
    scores: dict[str, list[float]] = {}
    # In the order of the pictures, so that the mean is rounded the same whoever measured which.
    for _, name, value in sorted(chain(*ranks.gather(own)), key=lambda row: row[0]):
        scores.setdefault(name, []).append(value)
    return {name: float(np.mean(values)) for name, values in scores.items()}


def _conditions(
    pixels: tuple[np.ndarray, ...], index: int, config: RunConfig
) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
    """(name, degraded, target) of each condition that a picture is validated under, float32 (H, W, 3)."""
    settings, size = config.data.degradation, config.validation.crop
    sides = [_centre(x, size).astype(np.float32) / 255 for x in pixels]
    if len(sides) == 2:
        yield "psnr", sides[0], sides[1]
        return
    for sigma in config.validation.sigmas:
        yield f"sigma{sigma:g}", benchmark_noise(sides[0], sigma), sides[0]
    if settings is not None and settings.kind == "noise":
        for name in NOISES:
            yield name, *noise_example(name, sides[0], index)
    elif settings is not None:
        wide = torch.from_numpy(_centre(pixels[0], size + 2 * margin(settings)).copy()).permute(2, 0, 1)[None]
        generator = torch.Generator().manual_seed(index)  # on the CPU: every device validates on the same pictures
        both = degrade_photos(wide.float().div_(255), generator, settings)
        degraded, target = (side[0].permute(1, 2, 0).contiguous().numpy() for side in both)
        yield settings.kind, degraded, target


def _centre(pixels: np.ndarray, size: int) -> np.ndarray:
    top, left = max(0, (pixels.shape[0] - size) // 2), max(0, (pixels.shape[1] - size) // 2)
    return pixels[top : top + size, left : left + size]
