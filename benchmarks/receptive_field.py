"""How far an output pixel sees, in a model and in the same network without neighbours.

    python benchmarks/receptive_field.py FOLDER [--model NAME]

The gradient of one output pixel (the mean of its channels) with respect to every input pixel, its absolute value summed
over the channels, as a mean over photographs with noise of sigma 25 (for a model that deblurs: shaken, each by a path
of its own of 42 to 60 pixels, with noise of sigma 2.55) and over positions near their middles. The radius
that holds a share of it tells where the output comes from; the picture shows the mean, on a logarithmic scale, with the
pixel in the middle. The groups are integers and carry no gradient: what a pixel changes in them is not counted.
"""

import argparse
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from kithkin.data.degrade import benchmark_noise
from kithkin.data.degrade.draws import Draws
from kithkin.data.degrade.exposure import BlurSettings, draw_paths
from kithkin.data.degrade.kernels import render_paths
from kithkin.images import find_pictures, read_picture
from kithkin.model import KiT
from kithkin.zoo import find_model, load_model

import deblur_kodak
from measure import keep

SIGMA, SIDE, POSITIONS, SHARES = 25.0, 512, 2, (0.5, 0.9, 0.99, 0.999)
REACH = SIDE // 2 - 32
"""Pixels that the mean goes to in every direction; positions lie within 32 pixels of the middle."""
PICTURES = Path(__file__).parent.parent / "docs/images"


def shaken(count: int) -> Iterator[np.ndarray]:
    """Kernels of a shaking hand."""
    settings = BlurSettings(motions=(1.0, 0.0, 0.0, 0.0), framed=0.0, exposure=(0.7, 1.0))
    paths = draw_paths(Draws.of_step(0, 0, range(count)), settings)
    return (kernel.astype(float) for kernel in render_paths(paths, 64))


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


def draw(maps: dict[str, Tensor], plot: Path) -> None:
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
    figure.savefig(plot, dpi=100, pil_kwargs={"quality": 88})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="clean photographs of at least 512 pixels a side")
    parser.add_argument("--model", default="denoise-gaussian", help="a shipped model")
    chosen = parser.parse_args()
    model, card = load_model(chosen.model), find_model(chosen.model)
    deblurs = card is not None and card.task == "deblur"
    networks = {
        f"with neighbours (k = {model.config.k})": model,
        "local attention alone (k = 1)": without_neighbors(model),
    }
    sums = {name: torch.zeros(2 * REACH + 1, 2 * REACH + 1, dtype=torch.float64) for name in networks}
    places = np.random.RandomState(0)
    pictures = find_pictures(chosen.folder)
    for path, kernel in zip(pictures, shaken(len(pictures)), strict=True):
        clean = read_picture(path).pixels
        top, left = ((side - SIDE) // 2 for side in clean.shape[:2])
        clean = clean[top : top + SIDE, left : left + SIDE]
        degraded = deblur_kodak.blur(clean, kernel) if deblurs else benchmark_noise(clean, SIGMA)
        for _ in range(POSITIONS):
            y, x = SIDE // 2 + places.randint(-32, 32, 2)
            for name, network in networks.items():
                sums[name] += gradient(network, degraded, (y, x)) / (POSITIONS * len(pictures))
        print(path.name, file=sys.stderr)
    ending = "-deblur" if deblurs else ""
    draw(sums, PICTURES / f"receptive-field{ending}.webp")
    found = {name: {**radii(mass), "sum": mass.sum().item()} for name, mass in sums.items()}
    what = {
        "model": chosen.model,
        "sigma": deblur_kodak.SIGMA if deblurs else SIGMA,
        "side": SIDE,
        "pictures": len(pictures),
        "radius": found,
    }
    keep(f"receptive_field{ending.replace('-', '_')}", what)
    print("| radius that holds | " + " | ".join(f"{share:.1%}" for share in SHARES) + " |")
    print("|" + " --- |" * (len(SHARES) + 1))
    for name, mass in sums.items():
        print(f"| {name} | " + " | ".join(f"{radius:.0f} px" for radius in radii(mass).values()) + " |")


if __name__ == "__main__":
    main()
