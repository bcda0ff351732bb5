"""The network against the validation pictures."""

import numpy as np
import torch

from kithkin.config import RunConfig
from kithkin.data import Pairs, Photos, benchmark_noise
from kithkin.metrics import psnr
from kithkin.model import KiT


@torch.no_grad()
def validate(model: KiT, dataset: Photos | Pairs, config: RunConfig, device: str) -> dict[str, float]:
    """Mean PSNR in dB (protocol ``rgb``) over the central crops.

    Returns:
        ``{"psnr": …}`` for pairs, ``{"sigma15": …, …}`` for photographs with noise of each level; the noise
        follows the published protocol: seed 0 before every picture.
    """
    model.eval()
    scores: dict[str, list[float]] = {}
    for index in range(len(dataset)):
        sides = [_centre(x, config.validation.crop).astype(np.float32) / 255 for x in dataset[index]]
        for name, degraded in _degraded(sides, config.validation.sigmas):
            picture = torch.from_numpy(degraded).to(device).permute(2, 0, 1)[None]
            restored = model(picture)[0].permute(1, 2, 0).float().cpu().numpy()
            scores.setdefault(name, []).append(psnr(restored, sides[-1], protocol="rgb"))
    return {name: float(np.mean(values)) for name, values in scores.items()}


def _degraded(sides: list[np.ndarray], sigmas: tuple[float, ...]) -> list[tuple[str, np.ndarray]]:
    if len(sides) == 2:
        return [("psnr", sides[0])]
    return [(f"sigma{sigma:g}", benchmark_noise(sides[0], sigma)) for sigma in sigmas]


def _centre(pixels: np.ndarray, size: int) -> np.ndarray:
    top, left = max(0, (pixels.shape[0] - size) // 2), max(0, (pixels.shape[1] - size) // 2)
    return pixels[top : top + size, left : left + size]
