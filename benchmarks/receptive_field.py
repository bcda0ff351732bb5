"""How far an output pixel sees, in `denoise` and in the same network without neighbours.

    python benchmarks/receptive_field.py FOLDER

The gradient of one output pixel (the mean of its channels) with respect to every input pixel, its absolute value summed
over the channels, as a mean over photographs with noise of sigma 25 and over positions near their middles. The radius
that holds a share of it tells where the output comes from; the picture shows the mean, on a logarithmic scale, with the
pixel in the middle. The groups are integers and carry no gradient: what a pixel changes in them is not counted.
"""

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from kithkin.data import benchmark_noise
from kithkin.images import find_pictures, read_picture
from kithkin.model import KiT
from kithkin.zoo import load_model

from measure import keep

SIGMA, SIDE, POSITIONS, SHARES = 25.0, 512, 2, (0.5, 0.9, 0.99, 0.999)
REACH = SIDE // 2 - 32
"""Pixels that the mean goes to in every direction; positions lie within 32 pixels of the middle."""
PLOT = Path(__file__).parent.parent / "docs" / "receptive-field.jpg"


def without_neighbors(model: KiT) -> KiT:
    """The same weights with k = 1: each patch attends to itself alone."""
    local = KiT(replace(model.config, k=1))
    local.load_state_dict(model.state_dict())
    return local.eval()


def gradient(model: KiT, noisy: np.ndarray, position: tuple[int, int]) -> Tensor:
    """(2·REACH + 1)² float64 around a position: |d output / d input|, summed over the channels of the input."""
    y, x = position
    image = torch.from_numpy(noisy).permute(2, 0, 1)[None].requires_grad_()
    (found,) = torch.autograd.grad(model(image)[0, :, y, x].mean(), image)
    total = found[0].abs().sum(0).double()
    return total[y - REACH : y + REACH + 1, x - REACH : x + REACH + 1]


def radii(mass: Tensor) -> dict[str, float]:
    """The smallest distance from the middle, in pixels, within which each share of the mass lies."""
    offsets = torch.arange(-REACH, REACH + 1, dtype=torch.float64)
    distance = (offsets[:, None] ** 2 + offsets**2).sqrt().flatten()
    order = distance.argsort()
    inside = mass.flatten()[order].cumsum(0) / mass.sum()
    return {f"{share:.1%}": distance[order][(inside < share).sum()].item() for share in SHARES}


def draw(maps: dict[str, Tensor]) -> None:
    from matplotlib.colors import LogNorm
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 4.2), layout="constrained")
    most = max(values.max().item() for values in maps.values())
    for axes, (name, values) in zip(figure.subplots(1, len(maps)), maps.items(), strict=True):
        shown = values.clamp(min=most * 1e-8)
        edge = REACH + 0.5
        mappable = axes.imshow(shown, norm=LogNorm(most * 1e-8, most), cmap="magma", extent=(-edge, edge, edge, -edge))
        axes.set_title(name, fontsize=10)
        axes.set_xlabel("pixels from the output pixel", fontsize=8)
        axes.tick_params(labelsize=8)
    figure.colorbar(mappable, ax=figure.axes, label="mean |gradient|")
    figure.savefig(PLOT, dpi=100, pil_kwargs={"quality": 88})


def main(folder: Path) -> None:
    model = load_model("denoise")
    networks = {"with neighbours (k = 4)": model, "local attention alone (k = 1)": without_neighbors(model)}
    sums = {name: torch.zeros(2 * REACH + 1, 2 * REACH + 1, dtype=torch.float64) for name in networks}
    places = np.random.RandomState(0)
    pictures = find_pictures(folder)
    for path in pictures:
        clean = read_picture(path).pixels
        top, left = ((side - SIDE) // 2 for side in clean.shape[:2])
        noisy = benchmark_noise(clean[top : top + SIDE, left : left + SIDE], SIGMA)
        for _ in range(POSITIONS):
            y, x = SIDE // 2 + places.randint(-32, 32, 2)
            for name, network in networks.items():
                sums[name] += gradient(network, noisy, (y, x)) / (POSITIONS * len(pictures))
        print(path.name, file=sys.stderr)
    draw(sums)
    found = {name: {**radii(mass), "sum": mass.sum().item()} for name, mass in sums.items()}
    keep("receptive_field", {"sigma": SIGMA, "side": SIDE, "pictures": len(pictures), "radius": found})
    print("| radius that holds | " + " | ".join(f"{share:.1%}" for share in SHARES) + " |")
    print("|" + " --- |" * (len(SHARES) + 1))
    for name, mass in sums.items():
        print(f"| {name} | " + " | ".join(f"{radius:.0f} px" for radius in radii(mass).values()) + " |")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    main(Path(sys.argv[1]))
