"""Random crops. A batch is a function of the seed and the step alone, so a run resumes without any stored state."""

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from kithkin.config import DataConfig
from kithkin.data.degrade import degrade_photos, gaussian_noise, margin
from kithkin.data.folders import Pairs, Photos
from kithkin.errors import InputError


class Batch(NamedTuple):
    """Crops to train on, each (B, 3, S, S) float32 RGB in [0, 1] (noise may leave the range)."""

    degraded: Tensor
    target: Tensor


def sample_batch(
    dataset: Photos | Pairs, config: DataConfig, *, batch_size: int, seed: int, step: int, device: str = "cpu"
) -> Batch:
    """The batch of one step: every picture once an epoch, cropped, flipped and turned at random.

    Args:
        dataset: what to draw from.
        config: crop size and degradation.
        batch_size: crops.
        seed, step: the batch is a function of these two.
        device: where the batch goes and the noise is made.
    """
    return degrade_crops(draw_crops(dataset, config, batch_size=batch_size, seed=seed, step=step), config, device)


class Crops(NamedTuple):
    """Crops as they were read, with what the degradation is going to draw from.

    Attributes:
        sides: (clean,) or (input, target), each uint8 (B, S, S, 3); S includes the margin of the degradation.
        sigmas: (B,) float32 noise levels on the 0-255 scale; empty where no noise is asked for.
        noise_seed: of everything that is drawn on the device.
        degraded: (B,) which crops get the degradation that the run names, the others get Gaussian noise; empty where
            it names none.
    """

    sides: tuple[np.ndarray, ...]
    sigmas: np.ndarray
    noise_seed: int
    degraded: np.ndarray


def draw_crops(dataset: Photos | Pairs, config: DataConfig, *, batch_size: int, seed: int, step: int) -> Crops:
    """The part of :func:`sample_batch` that reads files. It runs no tensor operation, so threads may run it beside the
    training step without a second team of workers fighting for the cores."""
    rng = np.random.default_rng([seed, step])
    edge = margin(config.degradation)
    items = _items(len(dataset), batch_size, seed, step)
    crops = [
        _crop(pictures, dataset.paths[i], config.crop, edge, rng)
        for i, pictures in zip(items, dataset.read(items), strict=True)
    ]
    sides = tuple(np.stack(side) for side in zip(*crops, strict=True))
    sigmas = np.empty(0, np.float32) if config.sigma is None else rng.uniform(*config.sigma, batch_size)
    seed_of_noise = int(rng.integers(2**62))
    degraded = rng.random(0 if config.degradation is None else batch_size) < config.degraded_share
    return Crops(sides, sigmas.astype(np.float32), seed_of_noise, degraded)


def degrade_crops(crops: Crops, config: DataConfig, device: str = "cpu") -> Batch:
    """The part of :func:`sample_batch` that runs on the device: to float, and what the run does to photographs."""
    tensors = [torch.from_numpy(x).to(device).permute(0, 3, 1, 2).float().div_(255) for x in crops.sides]
    if config.kind == "pairs":
        return Batch(*tensors)
    clean, generator = tensors[0], torch.Generator(device).manual_seed(crops.noise_seed)
    if config.degradation is None:
        return Batch(_with_noise(clean, crops.sigmas, generator), clean)
    sides = [torch.empty(len(clean), 3, config.crop, config.crop, device=device) for _ in range(2)]
    chosen, plain = np.flatnonzero(crops.degraded), np.flatnonzero(~crops.degraded)
    if len(chosen):
        sides[0][chosen], sides[1][chosen] = degrade_photos(clean[chosen], generator, config.degradation)
    if len(plain):
        edge = margin(config.degradation)
        sides[1][plain] = clean[plain, :, edge : edge + config.crop, edge : edge + config.crop]
        sides[0][plain] = _with_noise(sides[1][plain], crops.sigmas[plain], generator)
    return Batch(*sides)


def _with_noise(clean: Tensor, sigmas: np.ndarray, generator: torch.Generator) -> Tensor:
    return gaussian_noise(clean, torch.from_numpy(sigmas).to(clean.device), generator)


def _items(count: int, batch_size: int, seed: int, step: int) -> list[int]:
    """Which pictures: consecutive places of a row in which every epoch is a permutation of its own."""
    places = range(step * batch_size, (step + 1) * batch_size)
    permutations = {e: np.random.default_rng([seed, 1, e]).permutation(count) for e in {p // count for p in places}}
    return [int(permutations[p // count][p % count]) for p in places]


def _crop(
    sides: tuple[np.ndarray, ...], place: object, inner: int, edge: int, rng: np.random.Generator
) -> tuple[np.ndarray, ...]:
    size = inner + 2 * edge
    height, width = sides[0].shape[:2]
    if min(height, width) < size:
        around = f" with the {edge} pixels around it that its degradation needs" if edge else ""
        raise InputError(f"{place} is {width}×{height}, smaller than a crop of {inner}×{inner}{around}")
    top, left = int(rng.integers(height - size + 1)), int(rng.integers(width - size + 1))
    turns, flip = int(rng.integers(4)), bool(rng.integers(2))
    cut = (np.rot90(x[top : top + size, left : left + size], turns) for x in sides)
    return tuple(np.ascontiguousarray(x[:, ::-1] if flip else x) for x in cut)
