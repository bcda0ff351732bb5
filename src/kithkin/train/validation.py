"""The network against the validation pictures."""

import numpy as np
import torch

from kithkin.config import RunConfig
from kithkin.data import Pairs, Photos
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
        sides = [_to_tensor(_centre(x, config.validation.crop), device) for x in dataset[index]]
        for name, degraded in _degraded(sides, config.validation.sigmas):
            scores.setdefault(name, []).append(psnr(model(degraded).clamp(0, 1), sides[-1], protocol="rgb"))
    return {name: float(np.mean(values)) for name, values in scores.items()}


def _degraded(sides: list[torch.Tensor], sigmas: tuple[float, ...]) -> list[tuple[str, torch.Tensor]]:
    if len(sides) == 2:
        return [("psnr", sides[0])]
    clean = sides[0]
    shape = (clean.shape[2], clean.shape[3], 3)
    noise = torch.from_numpy(np.random.RandomState(0).normal(0, 1, shape)).permute(2, 0, 1)[None].to(clean)
    return [(f"sigma{sigma:g}", clean + noise * (sigma / 255)) for sigma in sigmas]


def _centre(pixels: np.ndarray, size: int) -> np.ndarray:
    top, left = max(0, (pixels.shape[0] - size) // 2), max(0, (pixels.shape[1] - size) // 2)
    return pixels[top : top + size, left : left + size]


def _to_tensor(pixels: np.ndarray, device: str) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(pixels)).to(device).permute(2, 0, 1)[None].float() / 255
