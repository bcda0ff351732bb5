"""Batches of random crops, each a function of the seed and the step alone, and of every crop's place in the batch: so
that a resumed run, or any number of processes that share the batches see the same crops.

What describes a batch is drawn in NumPy, beside the training step; the pixels are worked on together on the device,
which the host never waits for.
"""

import math
from functools import lru_cache
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import torch
from torch import Tensor

from kithkin.config import DataConfig
from kithkin.data.degrade import DEGRADATIONS, margin
from kithkin.data.degrade.compression import TO_YCC, mix_channels
from kithkin.data.degrade.draws import Draws, between, single
from kithkin.data.degrade.noise import gaussian_noise
from kithkin.data.degrade.resample import resample
from kithkin.data.folders import Mixed, Pairs, Photos
from kithkin.data.store import Cuts, PhotoStore
from kithkin.data.transfer import Numbers, moved
from kithkin.degradation_config import AugmentConfig
from kithkin.errors import InputError

_GAMMA = 2.2

Dataset: TypeAlias = Photos | Pairs | Mixed | PhotoStore


class Batch(NamedTuple):
    """Crops to train on, each (B, 3, S, S) float32 RGB in [0, 1] (noise may leave the range)."""

    degraded: Tensor
    target: Tensor


def sample_batch(
    dataset: Dataset, config: DataConfig, *, batch_size: int, seed: int, step: int, device: str = "cpu"
) -> Batch:
    """The batch of one step: every picture once an epoch, or by the weights of the folders, cropped, flipped and turned
    at random.

    Args:
        dataset: what to draw from.
        config: crop size and degradation.
        batch_size: crops.
        seed, step: the batch is a function of these two.
        device: where the batch goes and the noise is made.
    """
    return degrade_crops(draw_crops(dataset, config, batch_size=batch_size, seed=seed, step=step), config, device)


class Crops(NamedTuple):
    """Crops as they were read, or where they lie in a store, with what the degradation is going to draw from.

    Attributes:
        seeds: (B,) uint64, each of everything that is drawn for its crop.
        sigmas: (B,) float32 noise levels on the 0-255 scale; empty where no noise is asked for.
        degraded: (B,) which crops get the degradation that the run names, the others get Gaussian noise; empty where
            it names none.
        paired: (B,) which crops are of real pairs and stay as they are, the others of photographs.
        scales: (B,) float32, by which crops are made smaller; empty where none is.
        extents: (B,) int64, the side of the square that each crop is made from.
        sides: (clean,) or (input, target), each uint8 (B, S, S, 3); S holds the largest extent, which includes the
            margin of the degradation. Both are the photograph where one lies among pairs. Empty where the crops lie in
            a store.
        store, cuts: where they lie there; else None.
    """

    seeds: np.ndarray
    sigmas: np.ndarray
    degraded: np.ndarray
    paired: np.ndarray
    scales: np.ndarray = np.zeros(0, np.float32)
    extents: np.ndarray = np.zeros(0, np.int64)
    sides: tuple[np.ndarray, ...] = ()
    store: PhotoStore | None = None
    cuts: Cuts | None = None

    def parts(self, count: int) -> "list[Crops]":
        """These crops in ``count`` equal parts, in order."""
        size = len(self.seeds) // count
        return [self._part(slice(i * size, (i + 1) * size)) for i in range(count)]

    def _part(self, cut: slice) -> "Crops":
        cuts = self.cuts
        if cuts is not None:
            cuts = cuts._replace(first=tuple(x[cut] for x in cuts.first), down=cuts.down[cut], right=cuts.right[cut])
        names = ("seeds", "sigmas", "degraded", "paired", "scales", "extents")
        parts: dict[str, Any] = {name: getattr(self, name)[cut] for name in names}
        return self._replace(**parts, sides=tuple(side[cut] for side in self.sides), cuts=cuts)


def share_of_rank(batch_size: int, rank: int, world_size: int) -> range:
    """The places in the batch of a step that one of ``world_size`` processes draws: together all, none twice.

    Args:
        batch_size: crops a step over all processes, a multiple of ``world_size``.
    """
    size = batch_size // world_size
    return range(rank * size, (rank + 1) * size)


def draw_crops(
    dataset: Dataset,
    config: DataConfig,
    *,
    batch_size: int,
    seed: int,
    step: int,
    share: range | None = None,
) -> Crops:
    """The part of ``sample_batch`` that draws where the crops lie, and reads files. It runs no tensor operation, so
    threads may run it beside the training step without a second team of workers fighting for the cores.

    Args:
        share: the places of the batch that are drawn, see ``share_of_rank``; None draws all.
    """
    places = range(batch_size) if share is None else share
    draws = Draws.of_step(seed, step, places)
    first = step * batch_size
    items = _items(dataset.counts, config.weights, range(first + places.start, first + places.stop), seed)
    if n_mixed := _n_mixed(dataset):
        instead, which = draws.uniform("pair", 2).T
        items = np.where(instead < config.pairs_share, len(dataset) + (which * n_mixed).astype(np.int64), items)
    crops = Crops(
        draws.seeds,
        np.zeros(0, np.float32) if config.sigma is None else draws.between("sigma", config.sigma).astype(np.float32),
        np.zeros(0, bool) if config.degradation is None else draws.uniform("share", 1)[:, 0] < config.degraded_share,
        items >= len(dataset) if config.kind == "photos" else np.ones(len(items), bool),
    )
    place = draws.uniform("cut", 4)
    turns = (place[:, 2] * 4).astype(np.int64) * config.augment.turns
    flips = (place[:, 3] < 0.5) & config.augment.flips
    scales, side = _scales(draws, crops.paired, config.augment), _side(config)
    window = math.ceil(side / config.augment.rescale[0]) if len(scales) else side
    if isinstance(dataset, PhotoStore):
        sizes = dataset.sizes[items]
        scales, extents = _fitted(scales, sizes, side, window)
        corners = _corners(sizes, extents, dataset, items, config, place)
        cuts = dataset.cuts(items, corners, turns, flips, window, extents if len(scales) else None)
        return crops._replace(store=dataset, cuts=cuts, scales=scales, extents=extents)
    cut, fitted = [], []
    for i, pictures in enumerate(dataset.read(items.tolist())):
        sizes, this = np.array([pictures[0].shape[:2]]), slice(i, i + 1)
        fitted.append(_fitted(scales[this], sizes, side, window))
        extent = fitted[-1][1]
        corners = _corners(sizes, extent, dataset, items[this], config, place[this])
        cut.append(_cut(pictures, corners[0], int(extent[0]), turns[i], flips[i], window))
    scales, extents = (np.concatenate(x) for x in zip(*fitted, strict=True))
    return crops._replace(
        sides=tuple(np.stack(side) for side in zip(*cut, strict=True)), scales=scales, extents=extents
    )


class Plan(NamedTuple):
    """What the numbers that were drawn for a batch say, on the host: which crops get what.

    Attributes:
        paired, noisy, changed: their places in the batch, int64: real pairs, those that get Gaussian noise, and those
            that get the degradation of the run.
        sigmas, noise_keys: of the noisy crops.
        numbers: what the degradation drew for those that it changes; None where there are none.
        order: (B,) where in the row of these three groups each crop of the batch is.
        rescaled, scales, extents: places of those that are made smaller, and as in ``Crops``.
        looks: (B, 3, 3) what is done to the colours of photographs; None where nothing is.
    """

    paired: Numbers
    noisy: Numbers
    changed: Numbers
    sigmas: Numbers
    noise_keys: Numbers
    numbers: Any
    order: Numbers
    rescaled: Numbers
    scales: Numbers
    extents: Numbers
    looks: Numbers


def plan_crops(crops: Crops, config: DataConfig) -> Plan:
    """Draw what ``degrade_crops`` does to crops. No tensor operation either."""
    draws, settings = Draws(crops.seeds), config.degradation
    changes = crops.degraded & ~crops.paired if settings is not None else np.zeros(draws.count, bool)
    paired, noisy, changed = (np.flatnonzero(x) for x in (crops.paired, ~crops.paired & ~changes, changes))
    side, rescaled = _side(config), np.flatnonzero(crops.scales < 1)
    return Plan(
        paired,
        noisy,
        changed,
        sigmas=crops.sigmas[noisy] if len(noisy) else np.zeros(0, np.float32),
        noise_keys=draws.take(noisy).keys("noise"),
        numbers=None
        if settings is None or not len(changed)
        else DEGRADATIONS[settings.kind].draw(draws.take(changed), (side, side), settings),
        order=np.argsort(np.concatenate([paired, noisy, changed])),
        rescaled=rescaled,
        scales=crops.scales[rescaled],
        extents=crops.extents[rescaled],
        looks=_looks(draws, config.augment) if config.augment.recolors else None,
    )


@torch.no_grad()
def degrade_crops(crops: Crops, config: DataConfig, device: str = "cpu", plan: Plan | None = None) -> Batch:
    """The part of ``sample_batch`` that runs on the device: to float, and what the run does to photographs.

    Args:
        plan: of these crops, where it has been drawn already.
    """
    plan = plan_crops(crops, config) if plan is None else plan
    sides: tuple[Tensor, ...]
    if crops.store is not None and crops.cuts is not None and crops.store.device.type == torch.device(device).type:
        cuts, plan = moved((crops.cuts, plan), device)
        sides = crops.store.gather(cuts)
    else:
        sides, plan = moved((crops.sides or _gathered(crops), plan), device)
    sides = tuple(_smaller_ones(side, plan, config) for side in sides)
    if config.kind == "pairs":
        return Batch(*sides)
    photos = sides[0] if plan.looks is None else mix_channels(sides[0], plan.looks).clamp_(0, 1)
    groups = [
        (plan.paired, lambda: tuple(_inside(_rows(side, plan.paired), config) for side in sides)),
        (plan.noisy, lambda: _noisy(_inside(_rows(photos, plan.noisy), config), plan)),
        (plan.changed, lambda: _changed(_rows(photos, plan.changed), plan, config)),
    ]
    made = [make() for places, make in groups if len(places)]
    if len(made) == 1:
        return Batch(*made[0])
    return Batch(*(torch.cat(side).index_select(0, plan.order) for side in zip(*made, strict=True)))


def _gathered(crops: Crops) -> tuple[np.ndarray, ...]:
    """The sides of crops whose store lies in the memory of another device."""
    assert crops.store is not None
    assert crops.cuts is not None
    return tuple(side.cpu().numpy() for side in crops.store.gather(moved(crops.cuts, crops.store.device)))


def _side(config: DataConfig) -> int:
    """Of the crops with the margin that the degradation uses up."""
    return config.crop + 2 * margin(config.degradation)


def _scales(draws: Draws, paired: np.ndarray, augment: AugmentConfig) -> np.ndarray:
    """(B,) float32: the scale of each crop; empty where none is made smaller."""
    if not augment.rescaled_share:
        return np.zeros(0, np.float32)
    share, place = draws.uniform("rescale", 2).T
    return np.where((share < augment.rescaled_share) & ~paired, single(between(*augment.rescale, place)), np.float32(1))


def _fitted(scales: np.ndarray, sizes: np.ndarray, side: int, window: int) -> tuple[np.ndarray, np.ndarray]:
    """(scales, extents) of crops of pictures of these sizes (B, 2): no smaller than a picture has pixels for."""
    if not len(scales):
        return scales, np.full(len(sizes), side)
    shorter = sizes.min(axis=1)
    scales = np.minimum(np.maximum(scales, single(side / shorter)), np.float32(1))
    extents = np.ceil(side / scales.astype(np.float64)).astype(np.int64)
    # float32 may round a scale down, to more pixels than there are.
    return scales, np.minimum(extents, np.maximum(np.minimum(shorter, window), side))


def _smaller_ones(side: Tensor, plan: Plan, config: DataConfig) -> Tensor:
    """uint8 (B, W, W, 3) -> float32 (B, 3, S, S): each crop at its scale."""
    size = _side(config)
    result = _as_float(side[:, :size, :size])
    if len(plan.rescaled):
        large = _as_float(_rows(side, plan.rescaled))
        least = config.augment.rescale[0]
        small = resample(large, plan.scales, (size, size), least=least, extent=plan.extents).clamp_(0, 1)
        result.index_copy_(0, plan.rescaled, small)
    return result


def _looks(draws: Draws, augment: AugmentConfig) -> np.ndarray:
    """(B, 3, 3) float32: channels exchanged, then the saturation, then the exposure."""
    share, order = draws.uniform("permute", 2).T
    orders = np.array([np.eye(3)[[i, j, 3 - i - j]] for i in range(3) for j in range(3) if i != j])
    orders = np.where((share < augment.permuted_share)[:, None, None], orders[(order * 6).astype(np.int64)], np.eye(3))
    saturation = draws.between("saturation", augment.saturation)[:, None, None]
    gray = np.tile(np.array(TO_YCC[0]), (3, 1))
    stops = draws.between("exposure", (-augment.exposure, augment.exposure))[:, None, None]
    return single(2 ** (stops / _GAMMA) * (saturation * np.eye(3) + (1 - saturation) * gray) @ orders)


def _as_float(side: Tensor) -> Tensor:
    """uint8 (B, S, S, 3) -> float32 (B, 3, S, S)."""
    pixels = side.permute(0, 3, 1, 2)
    return pixels.to(torch.float32, memory_format=torch.contiguous_format).div_(255)


def _rows(side: Tensor, places: Tensor) -> Tensor:
    """Some of the crops, by their places in order."""
    return side if len(places) == len(side) else side.index_select(0, places)


def _inside(crops: Tensor, config: DataConfig) -> Tensor:
    """Crops without the margin that a degradation would use up."""
    edge = margin(config.degradation)
    return crops[..., edge : edge + config.crop, edge : edge + config.crop]


def _noisy(target: Tensor, plan: Any) -> tuple[Tensor, Tensor]:
    return gaussian_noise(target, plan.sigmas, plan.noise_keys), target


def _changed(clean: Tensor, plan: Any, config: DataConfig) -> tuple[Tensor, Tensor]:
    assert config.degradation is not None
    return DEGRADATIONS[config.degradation.kind].apply(clean, plan.numbers, config.degradation)


def _items(counts: tuple[int, ...], weights: tuple[float, ...], places: range, seed: int) -> np.ndarray:
    """Which pictures lie at these places of a row in which every epoch has an order of its own."""
    if weights and len(weights) != len(counts):
        raise InputError(f"data.weights has {len(weights)} numbers for {len(counts)} folders; give one a folder")
    row, count = np.arange(places.start, places.stop), sum(counts)
    items = np.empty(len(row), np.int64)
    for epoch in range(places.start // count, (places.stop - 1) // count + 1):
        in_epoch = row // count == epoch
        items[in_epoch] = _epoch(counts, weights, seed, epoch)[row[in_epoch] % count]
    return items


@lru_cache(maxsize=4)
def _epoch(counts: tuple[int, ...], weights: tuple[float, ...], seed: int, epoch: int) -> np.ndarray:
    """The pictures of an epoch in order, as many as there are: each once, or by the weights of their folders. Then a
    folder has its share, rounded up or down at random, and its pictures come equally often, to within one."""
    rng, count = np.random.default_rng([seed, 1, epoch]), sum(counts)
    if not weights:
        return rng.permutation(count)
    steps = np.cumsum(weights) / sum(weights)
    folders = np.searchsorted(steps[:-1], (np.arange(count) + rng.random()) / count, side="right")
    items = []
    for own, wanted, end in zip(counts, np.bincount(folders, minlength=len(counts)), np.cumsum(counts), strict=True):
        rounds = [rng.permutation(own) for _ in range(-(-wanted // own))]
        items.append(end - own + np.concatenate([np.zeros(0, np.int64), *rounds])[:wanted])
    return rng.permutation(np.concatenate(items))


def _n_mixed(dataset: Dataset) -> int:
    """Pairs that are mixed in."""
    if isinstance(dataset, Mixed):
        return len(dataset.pairs)
    return dataset.n_mixed if isinstance(dataset, PhotoStore) else 0


def _corners(
    sizes: np.ndarray, extents: np.ndarray, dataset: Dataset, items: np.ndarray, config: DataConfig, place: np.ndarray
) -> np.ndarray:
    """(B, 2) the top and left of squares of pictures of these sizes (B, 2), by numbers ``place`` (B, …) in [0, 1)."""
    room = sizes - extents[:, None] + 1
    if (room <= 0).any():
        i = int(np.argmax((room <= 0).any(axis=1)))
        inner, edge = config.crop, margin(config.degradation)
        around = f" with the {edge} pixels around it that its degradation needs" if edge else ""
        height, width = sizes[i]
        raise InputError(
            f"{dataset.paths[int(items[i])]} is {width}×{height}, smaller than a crop of {inner}×{inner}{around}"
        )
    return (place[:, :2] * room).astype(np.int64)


def _cut(
    sides: tuple[np.ndarray, ...], corner: np.ndarray, size: int, turns: int, flip: bool, window: int
) -> tuple[np.ndarray, ...]:
    """Squares of this size, at the corner of a window where that is larger."""
    top, left = (int(x) for x in corner)
    cut = (np.rot90(x[top : top + size, left : left + size], turns) for x in sides)
    cut = (np.ascontiguousarray(x[:, ::-1] if flip else x) for x in cut)
    beyond = (0, window - size)
    return tuple(cut if size == window else (np.pad(x, (beyond, beyond, (0, 0))) for x in cut))
