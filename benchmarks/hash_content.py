"""What a hash sees of a noisy picture: how alike, free of noise, the patches are that it brings together.

    python benchmarks/hash_content.py PHOTOGRAPHS

For the pictures of fine repeated structures of ``validation_sets.tsv``: patches are grouped by what is known of them
under noise, and compared by what they are without it. A value is the mean squared difference between a patch and its
candidates other than itself (the nearest; all; all, by texture: each patch less its own mean pixel), over that of
random candidates; 1 is no better than chance, 0 a perfect copy. As many candidates for every row: chunks of four,
each with the chunk before it. No network is trained.

The second table asks what patches of the picture at half its size are worth as candidates: their difference, in units
of the noise variance. A candidate's own noise comes on top: 1 for a patch of the picture, 1/4 for one of the half.
"""

import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from kithkin.data.degrade import benchmark_noise
from kithkin.images import read_picture
from kithkin.ops import PatchGroups, partition, sort_by_hash
from kithkin.ops.grouping import default_n_buckets, draw_rotations
from kithkin.ops.reference import candidates_of_each_patch

from measure import keep
from network_variants import central
from validation_sets import split
from variant_networks import main_directions, tree_order, window_order

K, SIGMA, SIDES = 4, 50.0, (4, 8)


def hashed(features: Tensor, rounds: int = 1, *, by_projection: bool = False) -> Tensor:
    """Order (rounds, N) of patches (N, F) by hash value; ties by index, or by a projection of its own."""
    count = len(features)
    half = default_n_buckets(count, K) // 2
    rotations = draw_rotations(features.shape[1], rounds, half * 2, generator=torch.Generator().manual_seed(0))
    projected = torch.einsum("nf,hfm->hnm", features, rotations)
    buckets = torch.cat([projected, -projected], dim=-1).argmax(dim=-1)
    if not by_projection:
        return sort_by_hash(buckets[None])[0]
    line = torch.randn(features.shape[1], rounds, generator=torch.Generator().manual_seed(1))
    along = (features @ line).T
    rank = along.argsort(dim=-1).argsort(dim=-1)
    return (buckets * count + rank).argsort(dim=-1)


def along_a_line(features: Tensor) -> Tensor:
    """Order by one random projection, without buckets."""
    line = torch.randn(features.shape[1], 1, generator=torch.Generator().manual_seed(1))
    return (features @ line).T.argsort(dim=-1)


def tree(features: Tensor) -> Tensor:
    """Order by the leaves of a k-d tree over the main directions of (N, F)."""
    return tree_order(main_directions(features[None]), K)


def best_of(features: Tensor, rounds: int) -> Tensor:
    """(N, 2K - 1) candidates: the nearest by ``features`` of those that several rounds of hashing find."""
    found = candidates_of_each_patch(PatchGroups(hashed(features, rounds)[None].contiguous(), k=K))[0].sort().values
    again = F.pad(found[:, 1:] == found[:, :-1], (1, 0), value=False) | (found == torch.arange(len(found))[:, None])
    distance = (features[:, None] - features[found]).square().sum(dim=-1).masked_fill(again, torch.inf)
    return found.gather(1, distance.topk(2 * K - 1, largest=False).indices)


def ways(noisy: Tensor, side: int) -> Iterator[tuple[str, Tensor]]:
    """(name, order (1, N)) of every way to group the patches of a picture (1, S, S, 3)."""
    grid = noisy.shape[1] // side
    flat = partition(noisy, side)[0]
    shape = (grid, grid)
    centred = flat - flat.mean(dim=0)
    texture = centred - centred.mean(dim=1, keepdim=True)
    generator = torch.Generator().manual_seed(0)
    yield "random", torch.randperm(grid * grid, generator=generator)[None]
    yield "windows", window_order(shape, 0)[None]
    yield "hash", hashed(flat.flatten(1))
    yield "centred", hashed(centred.flatten(1))
    yield "centred, ties by projection", hashed(centred.flatten(1), by_projection=True)
    yield "texture", hashed(texture.flatten(1))
    yield "projection alone", along_a_line(centred.flatten(1))
    wide = _surroundings(noisy, side)
    yield "centred, patch of twice the side", hashed(wide - wide.mean(dim=0))
    for cells in (1, 2):
        yield f"centred, means of {cells}×{cells} cells", hashed(_cells(centred, side, cells))
    yield "tree", tree(centred.flatten(1))
    yield "tree, means of 2×2 cells", tree(_cells(centred, side, 2))
    for reach in (3, 5):
        smooth = _smoothed(noisy, reach)
        smooth = partition(smooth, side)[0].flatten(1)
        yield f"centred, smoothed {reach}×{reach}", hashed(smooth - smooth.mean(dim=0))


def _cells(patches: Tensor, side: int, cells: int) -> Tensor:
    """Patches (N, P, C) by the means of cells×cells parts: (N, cells²·C)."""
    maps = patches.unflatten(1, (side, side)).permute(0, 3, 1, 2)
    return F.adaptive_avg_pool2d(maps, cells).flatten(1)


def _smoothed(picture: Tensor, reach: int) -> Tensor:
    """A picture (1, S, S, C) under a box of reach² pixels."""
    maps = F.avg_pool2d(picture.permute(0, 3, 1, 2), reach, 1, reach // 2, count_include_pad=False)
    return maps.permute(0, 2, 3, 1)


def _surroundings(noisy: Tensor, side: int) -> Tensor:
    """The pixels of each patch and half a side around it: (N, F)."""
    edge = side // 2
    wide = F.pad(noisy.permute(0, 3, 1, 2), (edge,) * 4, mode="reflect")
    return F.unfold(wide, side + 2 * edge, stride=side)[0].T


def exact(features: Tensor, count: int) -> Tensor:
    """(N, count) nearest other patches."""
    return torch.cdist(features, features).fill_diagonal_(torch.inf).topk(count, largest=False).indices


def likeness(clean: Tensor, candidates: Tensor) -> dict[str, float]:
    """Mean squared difference of a patch (N, P, C) to its candidates (N, M), not to itself: to the nearest, to all, and
    to all where each patch is less its own mean pixel."""
    own = torch.arange(len(clean))[:, None]
    other = (candidates != own) & (candidates >= 0)
    index = candidates.clamp(min=0)
    flat, texture = clean.flatten(1), (clean - clean.mean(dim=1, keepdim=True)).flatten(1)
    distance, by_texture = ((x[:, None] - x[index]).square().mean(dim=-1) for x in (flat, texture))
    nearest = distance.masked_fill(~other, torch.inf).amin(dim=1)
    found = {"nearest": nearest.mean(), "all": distance[other].mean(), "texture": by_texture[other].mean()}
    return {name: float(value) for name, value in found.items()}


def of_picture(pixels: np.ndarray, side: int) -> dict[str, dict[str, float]]:
    """``likeness`` of every way on one picture."""
    noisy = torch.from_numpy(benchmark_noise(pixels, SIGMA))[None]
    clean = partition(torch.from_numpy(pixels)[None], side)[0]
    found = {
        name: likeness(clean, candidates_of_each_patch(PatchGroups(order[None].contiguous(), k=K))[0])
        for name, order in ways(noisy, side)
    }
    flat = partition(noisy, side)[0]
    cells = _cells(flat - flat.mean(dim=0), side, 2)
    return found | {
        "centred, means of 2×2 cells, best of 4 rounds": likeness(clean, best_of(cells, 4)),
        "exact, noisy": likeness(clean, exact(flat.flatten(1), 2 * K - 1)),
        "exact, clean": likeness(clean, exact(clean.flatten(1), 2 * K - 1)),
    }


def two_scales(pixels: np.ndarray, side: int) -> dict[str, float]:
    """Mean squared difference of the clean patches to candidates of either scale, in units of the noise variance."""
    noisy, clean = torch.from_numpy(benchmark_noise(pixels, SIGMA))[None], torch.from_numpy(pixels)[None]
    fine, coarse = (_flat(clean, side), _flat(_halved(clean), side))
    seen, seen_coarse = (_centred_cells(x, side) for x in (noisy, _halved(noisy)))
    rotations = draw_rotations(
        seen.shape[1], 1, default_n_buckets(len(seen), K), generator=torch.Generator().manual_seed(0)
    )[0]
    buckets, coarse_buckets = (
        (x @ torch.cat([rotations, -rotations], dim=1)).argmax(dim=1) for x in (seen, seen_coarse)
    )
    order, coarse_order = (x.argsort(stable=True) for x in (buckets, coarse_buckets))
    found = candidates_of_each_patch(PatchGroups(order[None, None], k=K))[0]
    last = len(coarse) - 2
    place = torch.searchsorted(coarse_buckets[coarse_order], buckets).clamp(max=last)
    rank = (order.argsort() // 4).clamp(max=last)
    return {
        "fine, hashed": likeness(fine.unflatten(1, (-1, 3)), found)["all"] / (SIGMA / 255) ** 2,
        "coarse, of the same bucket": _difference(fine, coarse, coarse_order[torch.stack([place, place + 1], dim=1)]),
        "coarse, merged by rank": _difference(fine, coarse, coarse_order[torch.stack([rank, rank + 1], dim=1)]),
        "fine, the two nearest": _difference(fine, fine, exact(seen, 2)),
        "coarse, the two nearest": _difference(
            fine, coarse, torch.cdist(seen, seen_coarse).topk(2, largest=False).indices
        ),
        "coarse, random": _difference(fine, coarse, torch.randint(len(coarse), (len(fine), 2))),
    }


def _difference(patches: Tensor, others: Tensor, candidates: Tensor) -> float:
    squared = (patches[:, None] - others[candidates]).square().mean()
    return float(squared) / (SIGMA / 255) ** 2


def _flat(picture: Tensor, side: int) -> Tensor:
    return partition(picture, side)[0].flatten(1)


def _halved(picture: Tensor) -> Tensor:
    return F.avg_pool2d(picture.permute(0, 3, 1, 2), 2).permute(0, 2, 3, 1)


def _centred_cells(picture: Tensor, side: int) -> Tensor:
    patches = partition(picture, side)[0]
    return _cells(patches - patches.mean(dim=0), side, 2)


def main(photographs: Path) -> None:
    torch.set_num_threads(1)
    pictures = [central(read_picture(file).pixels) for file in split(photographs).kinds["repeated"]]
    table: dict[str, dict[str, dict[str, float]]] = {}
    for side in SIDES:
        found = [of_picture(pixels, side) for pixels in pictures]
        for name in found[0]:
            means = {what: np.mean([row[name][what] for row in found]) for what in found[0][name]}
            chance = {what: np.mean([row["random"][what] for row in found]) for what in means}
            over = {what: round(float(value / chance[what]), 3) for what, value in means.items()}
            table.setdefault(name, {})[f"{side}²"] = over
    scales = {side: [two_scales(pixels, side) for pixels in pictures] for side in SIDES}
    both = {
        name: {f"{side}²": round(float(np.mean([row[name] for row in rows])), 3) for side, rows in scales.items()}
        for name in scales[SIDES[0]][0]
    }
    about = {"sigma": SIGMA, "k": K, "pictures": len(pictures)}
    keep("hash_content", {**about, "over random candidates": table, "two scales": both})


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    main(Path(sys.argv[1]))
