"""What bfloat16 costs the shipped networks, by what autocast leaves in float32: PSNR on validation photographs.

    python benchmarks/precision.py FOLDER [MODEL …]

Central 256² crops, degraded as each network's recipe validates it (noise of seed 0; rain, blur and camera noise from
the number of the photograph). A row adds what it names to the row before; the last is what the package does.
"""

import argparse
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from unittest import mock

import numpy as np
import torch
from torch import Tensor

from kithkin import list_models, load_model
from kithkin.config import load_config
from kithkin.data import open_folders
from kithkin.layers import Downsample, Upsample
from kithkin.metrics import psnr
from kithkin.model import KiT, _Head, _Stem
from kithkin.training.validation import _conditions

KEPT = {
    "nothing": (),
    "stem and head": ("_Stem", "_Head"),
    "down, up and merge": ("Downsample", "Upsample", "merge"),
    "sums of the attention": ("attention",),
    "narrow": ("narrow",),
}
Item = tuple[str, np.ndarray, np.ndarray]


@contextmanager
def keeping(parts: tuple[str, ...]) -> Iterator[None]:
    """Leave only these parts in float32 under autocast."""

    def choose(place: str, real: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def run(function: Callable[..., Tensor], *tensors: Tensor) -> Tensor:
            known = isinstance(function, _Stem | _Head | Downsample | Upsample)
            name = type(function).__name__ if known else place
            return real(function, *tensors) if name in parts else function(*tensors)

        return run

    import kithkin.layers
    import kithkin.model
    import kithkin.ops.attention_operator as operator
    import kithkin.ops.feedforward

    with ExitStack() as stack:
        for module, place in (
            (kithkin.model, "merge"),
            (kithkin.layers, "attention"),
            (kithkin.ops.feedforward, "narrow"),
        ):
            stack.enter_context(mock.patch.object(module, "in_float32", choose(place, module.in_float32)))
        if "attention" not in parts:
            stack.enter_context(mock.patch.object(operator, "_dtype_out", lambda value, wide: value.dtype))
        yield


def score(model: KiT, items: list[Item], half: bool) -> dict[str, float]:
    """Mean PSNR in dB under each condition."""
    found: dict[str, list[float]] = {}
    for name, degraded, target in items:
        picture = torch.from_numpy(degraded).permute(2, 0, 1)[None]
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=half):
            restored = model(picture)[0].permute(1, 2, 0).float().numpy()
        found.setdefault(name, []).append(psnr(restored, target, protocol="rgb"))
    return {name: float(np.mean(values)) for name, values in found.items()}


def items_of(name: str, folder: str, count: int) -> list[Item]:
    config = load_config(name, {"data.folders": [folder], "validation.folder": folder})
    photos = open_folders(config.data)
    return [item for i in range(min(count, len(photos))) for item in _conditions(photos[i], i, config)]


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", help="photographs that no network was trained on")
    parser.add_argument("models", nargs="*", help="shipped models; all where none is named")
    parser.add_argument("--count", type=int, default=1000, help="photographs to read")
    given = parser.parse_args(arguments)
    for name in given.models or list(list_models()):
        model, items = load_model(name), items_of(name, given.folder, given.count)
        exact = score(model, items, half=False)
        print(f"\n| `{name}` | " + " | ".join(exact) + " |\n| --- |" + " --- |" * len(exact))
        print("| float32, dB | " + " | ".join(f"{value:.2f}" for value in exact.values()) + " |")
        kept: tuple[str, ...] = ()
        for label, more in KEPT.items():
            kept += more
            with keeping(kept):
                found = score(model, items, half=True)
            cells = " | ".join(f"{found[key] - exact[key]:+.3f}" for key in exact)
            print(f"| {'+ ' if more else ''}{label} | {cells} |", flush=True)


if __name__ == "__main__":
    sys.exit(main())
