"""Random crops. Each is a function of the seed, the step and its place in the batch of that step, and of nothing else:
a run resumes without any stored state, and any number of processes that share the batches see the same crops."""

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from kithkin.config import DataConfig
from kithkin.data.degrade import degrade_photos, gaussian_noise, margin
from kithkin.data.folders import Mixed, Pairs, Photos
from kithkin.errors import InputError


class Batch(NamedTuple):
    """Crops to train on, each (B, 3, S, S) float32 RGB in [0, 1] (noise may leave the range)."""

    degraded: Tensor
    target: Tensor


def sample_batch(
    dataset: Photos | Pairs | Mixed, config: DataConfig, *, batch_size: int, seed: int, step: int, device: str = "cpu"
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
        sides: (clean,) or (input, target), each uint8 (B, S, S, 3); S includes the margin of the degradation. Both are
            the photograph where one lies among pairs.
        sigmas: (B,) float32 noise levels on the 0-255 scale; empty where no noise is asked for.
        noise_seeds: (B,) int64, each of everything that is drawn for its crop on the device.
        degraded: (B,) which crops get the degradation that the run names, the others get Gaussian noise; empty where
            it names none.
        paired: (B,) which crops are of real pairs and stay as they are, the others of photographs.
    """

    sides: tuple[np.ndarray, ...]
    sigmas: np.ndarray
    noise_seeds: np.ndarray
    degraded: np.ndarray
    paired: np.ndarray

    def parts(self, count: int) -> "list[Crops]":
        """These crops in ``count`` equal parts, in order."""
        size = len(self.noise_seeds) // count
        cuts = [slice(i * size, (i + 1) * size) for i in range(count)]
        rest = (self.sigmas, self.noise_seeds, self.degraded, self.paired)
        return [Crops(tuple(side[cut] for side in self.sides), *(x[cut] for x in rest)) for cut in cuts]


def share_of_rank(batch_size: int, rank: int, world_size: int) -> range:
    """The places in the batch of a step that one of ``world_size`` processes draws: together all, none twice.

    Args:
        batch_size: crops a step over all processes, a multiple of ``world_size``.
    """
    size = batch_size // world_size
    return range(rank * size, (rank + 1) * size)


def draw_crops(
    dataset: Photos | Pairs | Mixed,
    config: DataConfig,
    *,
    batch_size: int,
    seed: int,
    step: int,
    share: range | None = None,
) -> Crops:
    """The part of ``sample_batch`` that reads files. It runs no tensor operation, so threads may run it beside the
    training step without a second team of workers fighting for the cores.

    Args:
        share: the places of the batch that are drawn, see ``share_of_rank``; None draws all.
    """
    places = range(batch_size) if share is None else share
    first = step * batch_size
    items = _items(len(dataset), range(first + places.start, first + places.stop), seed)
    if isinstance(dataset, Mixed):
        items = [
            _pair_instead(item, dataset, config.pairs_share, seed, step, x)
            for item, x in zip(items, places, strict=True)
        ]
    edge = margin(config.degradation)
    crops, sigmas, seeds, degraded = [], [], [], []
    for place, item, pictures in zip(places, items, dataset.read(items), strict=True):
        rng = np.random.default_rng([seed, 2, step, place])
        crops.append(_crop(pictures, dataset.paths[item], config.crop, edge, rng))
        sigmas += [] if config.sigma is None else [rng.uniform(*config.sigma)]
        seeds.append(int(rng.integers(2**62)))
        degraded += [] if config.degradation is None else [rng.random() < config.degraded_share]
    sides = tuple(np.stack(side) for side in zip(*crops, strict=True))
    paired = np.array(items) >= len(dataset) if config.kind == "photos" else np.ones(len(items), bool)
    return Crops(sides, np.array(sigmas, np.float32), np.array(seeds, np.int64), np.array(degraded, bool), paired)


def degrade_crops(crops: Crops, config: DataConfig, device: str = "cpu") -> Batch:
    """The part of ``sample_batch`` that runs on the device: to float, and what the run does to photographs."""
    tensors = [torch.from_numpy(x).to(device).permute(0, 3, 1, 2).float().div_(255) for x in crops.sides]
    if config.kind == "pairs":
        return Batch(*tensors)
    both = [
        tuple(_inside(side[i : i + 1], config) for side in tensors)
        if crops.paired[i]
        else _degrade_one(tensors[0][i : i + 1], crops, i, config)
        for i in range(len(tensors[0]))
    ]
    return Batch(*(torch.cat(side) for side in zip(*both, strict=True)))


def _inside(crop: Tensor, config: DataConfig) -> Tensor:
    """A crop without the margin that a degradation would use up."""
    edge = margin(config.degradation)
    return crop[..., edge : edge + config.crop, edge : edge + config.crop]


def _degrade_one(clean: Tensor, crops: Crops, index: int, config: DataConfig) -> tuple[Tensor, Tensor]:
    """(degraded, target) of one crop (1, 3, S, S). One at a time, so that none depends on its fellows in a batch."""
    generator = torch.Generator(clean.device).manual_seed(int(crops.noise_seeds[index]))
    if config.degradation is not None and crops.degraded[index]:
        return degrade_photos(clean, generator, config.degradation)
    target = _inside(clean, config)
    return gaussian_noise(target, torch.from_numpy(crops.sigmas[index : index + 1]), generator), target


def _items(count: int, places: range, seed: int) -> list[int]:
    """Which pictures lie at these places of a row in which every epoch is a permutation of its own."""
    permutations = {e: np.random.default_rng([seed, 1, e]).permutation(count) for e in {p // count for p in places}}
    return [int(permutations[p // count][p % count]) for p in places]


def _pair_instead(photo: int, dataset: Mixed, share: float, seed: int, step: int, place: int) -> int:
    """The number of a pair in place of a photograph's, as often as the run asks for."""
    rng = np.random.default_rng([seed, 3, step, place])  # its own: without pairs, everything else stays as it is
    return len(dataset) + int(rng.integers(len(dataset.pairs))) if rng.random() < share else photo


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
