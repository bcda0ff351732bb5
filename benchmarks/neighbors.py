"""How near the neighbours that hashing finds are, beside exact neighbours and beside random patches.

    python benchmarks/neighbors.py FOLDER

Photographs with noise of sigma 25 go through `denoise-gaussian`. What every block hashes is kept and grouped again with
1 to 16 rounds, with and without the patches' mean subtracted first. Of the patches that a patch then sees, the three
nearest others count: their mean distance to it, over the mean distance of two patches of that map, and how many of them
are among the three that are nearest of all. Then what they are worth: the PSNR of the same network, not trained anew,
when other patches meet in it.
"""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from torch import Tensor

from kithkin.data.degrade import benchmark_noise
from kithkin.images import find_pictures, read_picture
from kithkin.layers import KNNLocalAttention
from kithkin.metrics import psnr
from kithkin.model import KiT
from kithkin.neighbors import recorded_groups, stage_names
from kithkin.ops import PatchGroups, draw_rotations, exact_groups, group_patches
from kithkin.ops.grouping import hash_patches
from kithkin.restoration import restore
from kithkin.zoo import load_model

from measure import keep

SIGMA, SIDE, ROUNDS, K, NEAREST = 25.0, 320, (1, 2, 4, 8, 16), 4, 3
FEATURES = ("as it is", "mean subtracted")
MEASURES = ("largest_bucket", "exact", "found", "random", "recall")


def seen(groups: PatchGroups) -> Tensor:
    """(N, candidates) the other patches that each patch sees, in any round; -1 for empty, repeated and itself."""
    order, candidates = groups.order[0], groups.candidates()[0]
    count = order.shape[1]
    chunk = order.argsort(dim=-1) // groups.k
    found = torch.cat([of_round[number] for of_round, number in zip(candidates, chunk, strict=True)], dim=-1)
    found = found.sort(dim=-1).values
    again = torch.zeros_like(found, dtype=torch.bool)
    again[:, 1:] = found[:, 1:] == found[:, :-1]
    return found.masked_fill(again | (found == torch.arange(count)[:, None]), -1)


def shuffled(count: int) -> Tensor:
    """(N, N) all patches in an order of its own for each patch, itself last."""
    generator = torch.Generator().manual_seed(0)
    return torch.rand(count, count, generator=generator).fill_diagonal_(2).argsort(dim=-1)


def as_many(found: Tensor, drawn: Tensor) -> Tensor:
    """As many of the drawn patches as were found for each; -1 behind them."""
    return drawn.masked_fill(torch.arange(len(drawn)) >= (found >= 0).sum(-1, keepdim=True), -1)


def nearest_distance(distances: Tensor, found: Tensor) -> float:
    """Mean distance of the nearest three of the found patches."""
    values = distances.gather(1, found.clamp(min=0)).masked_fill(found < 0, torch.inf)
    return values.topk(NEAREST, dim=-1, largest=False).values.mean().item()


def measured(hashed: Tensor) -> list[dict[str, Any]]:
    """A row for each number of rounds, of the patches (1, N, P, C) that a block hashed."""
    count = hashed.shape[1]
    exact = exact_groups(hashed, k=NEAREST + 1).neighbors
    assert exact is not None
    nearest = exact[0, :, 1:]
    flat = hashed[0].flatten(1).double()
    distances = torch.cdist(flat, flat)
    typical = distances.sum().item() / (count * (count - 1))
    rotations = draw_rotations(flat.shape[1], max(ROUNDS))
    drawn = shuffled(count)
    rows = []
    for name, patches in zip(FEATURES, (hashed, hashed - hashed.mean(1, keepdim=True)), strict=True):
        buckets = torch.bincount(hash_patches(patches, k=K, n_hashes=1, rotations=rotations)[0, 0])
        for rounds in ROUNDS:
            found = seen(group_patches(patches, k=K, n_hashes=rounds, rotations=rotations))
            chance = as_many(found, drawn)
            rows.append(
                {
                    "feature": name,
                    "rounds": rounds,
                    "largest_bucket": buckets.max().item() / count,
                    "exact": distances.gather(1, nearest).mean().item() / typical,
                    "found": nearest_distance(distances, found) / typical,
                    "random": nearest_distance(distances, chance) / typical,
                    "recall": (nearest[:, :, None] == found[:, None]).any(-1).double().mean().item(),
                }
            )
    return rows


def table(rows: list[dict[str, Any]], stages: list[str]) -> str:
    """Means over photographs, blocks and patches, in Markdown."""
    heads = ["stage", "feature", "largest bucket", "exact", *(f"h = {h}" for h in ROUNDS)]
    lines = ["| " + " | ".join(heads) + " |", "|" + " --- |" * len(heads)]
    for stage in stages:
        for feature in FEATURES:
            of = [row for row in rows if row["stage"] == stage and row["feature"] == feature]
            cells = [stage, feature, f"{mean(of, 'largest_bucket'):.0%}", f"{mean(of, 'exact'):.2f}"]
            for rounds in ROUNDS:
                at = [row for row in of if row["rounds"] == rounds]
                values = f"{mean(at, 'found'):.2f} / {mean(at, 'random'):.2f} / {mean(at, 'recall'):.0%}"
                cells.append(values)
            lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def grouped_otherwise() -> dict[str, Callable[[KNNLocalAttention, Tensor], PatchGroups]]:
    """Ways to group the patches (1, N, P, C) that a layer hashes; the bottleneck's see themselves alone in all."""
    hashing = KNNLocalAttention.group

    def centred(layer: KNNLocalAttention, hashed: Tensor) -> PatchGroups:
        return hashing(layer, hashed - hashed.mean(1, keepdim=True))

    def exact(layer: KNNLocalAttention, hashed: Tensor) -> PatchGroups:
        usual = hashing(layer, hashed)
        return exact_groups(hashed, k=usual.n_hashes * usual.candidates_per_patch) if layer.k > 1 else usual

    def chance(layer: KNNLocalAttention, hashed: Tensor) -> PatchGroups:
        usual, generator = hashing(layer, hashed), torch.Generator().manual_seed(0)
        orders = [torch.randperm(usual.n_patches, generator=generator) for _ in range(usual.n_hashes)]
        return PatchGroups(torch.stack(orders)[None], k=layer.k) if layer.k > 1 else usual

    def itself(layer: KNNLocalAttention, hashed: Tensor) -> PatchGroups:
        return group_patches(hashed, k=1)

    return {
        "hashed": hashing,
        "hashed, mean subtracted": centred,
        "exact": exact,
        "random": chance,
        "itself alone": itself,
    }


def worth(model: KiT, clean: np.ndarray, noisy: np.ndarray) -> dict[str, float]:
    """PSNR (`rgb-uint8`) for every way of grouping."""
    values = {}
    for name, group in grouped_otherwise().items():
        with mock.patch.object(KNNLocalAttention, "group", group):
            values[name] = psnr(restore(model, noisy, tile="off", precision="float32"), clean, protocol="rgb-uint8")
    return values


def mean(rows: list[dict[str, Any]], key: str) -> float:
    return sum(row[key] for row in rows) / len(rows)


def main(folder: Path) -> None:
    model = load_model("denoise-gaussian")
    stages = [name for name in stage_names(model) if name != "bottleneck"]
    layers = {
        f"{side}{i}": [block.attention for block in stage]
        for side, parts in (("encoder", model.encoder), ("decoder", model.decoder))
        for i, stage in enumerate(parts)
    }
    rows, decibels = [], []
    pictures = find_pictures(folder)
    for path in pictures:
        clean = read_picture(path).pixels
        top, left = (max(0, (side - SIDE) // 2) for side in clean.shape[:2])
        clean = clean[top : top + SIDE, left : left + SIDE]
        noisy = benchmark_noise(clean, SIGMA)
        with recorded_groups(*(layer for name in stages for layer in layers[name])) as recordings:
            restore(model, noisy, tile="off", precision="float32")
        blocks = [(name, i) for name in stages for i in range(model.config.depth)]
        for (stage, block), recording in zip(blocks, recordings, strict=True):
            found = measured(recording.hashed.clone())
            rows += [{"picture": path.name, "stage": stage, "block": block, **row} for row in found]
        decibels.append(worth(model, clean, noisy))
        print(path.name, file=sys.stderr)
    means = [
        {"stage": stage, "feature": feature, "rounds": rounds, **{key: round(mean(of, key), 4) for key in MEASURES}}
        for stage in stages
        for feature in FEATURES
        for rounds in ROUNDS
        for of in [[r for r in rows if (r["stage"], r["feature"], r["rounds"]) == (stage, feature, rounds)]]
    ]
    psnrs = {name: round(mean(decibels, name), 3) for name in decibels[0]}
    settings = {"sigma": SIGMA, "side": SIDE, "k": K, "pictures": len(pictures)}
    keep("neighbors", {**settings, "means": means, "psnr": psnrs})
    print(table(rows, stages))
    print("\n| a patch meets | PSNR |\n| --- | --- |")
    print("\n".join(f"| {name} | {value:.2f} dB |" for name, value in psnrs.items()))


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    main(Path(sys.argv[1]))
