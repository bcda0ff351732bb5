"""What the presets, and detail alone, do to white noise: PSNR, and how much lost texture comes back.

python benchmarks/presets.py CBSD68 --strip docs/images/presets.webp -o benchmarks/results/presets.json

CBSD68 is the folder of the test pictures. The strip shows `examples/dog-noisy.png`, restored by each preset.
"""

import argparse
import json
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from kithkin import RestoreOptions, load_model
from kithkin.blending import blended, luma_of
from kithkin.images import read_picture
from kithkin.restore_options import PRESETS

ROOT = Path(__file__).resolve().parent.parent
MODEL = "denoise-small"
CASES = {**PRESETS, "luma 0.85": (0.85, 1, 0), "detail 0.5": (1, 1, 0.5), "detail 1": (1, 1, 1)}
LEFT, TOP, SIDE, GAP = 165, 65, 150, 6


def planes(path: Path) -> torch.Tensor:
    return torch.from_numpy(read_picture(path).pixels).permute(2, 0, 1).contiguous()


def measured(clean: torch.Tensor, noisy: torch.Tensor, restored: torch.Tensor) -> dict[str, tuple[float, float]]:
    """PSNR in dB, and the share of the lost texture that is back: the part of the result along it, in luma."""
    found = {}
    lost = luma_of(clean - restored)
    for name, amounts in CASES.items():
        result = blended(noisy, restored.clone(), *amounts)
        back = (luma_of(result - restored) * lost).sum() / lost.square().sum()
        found[name] = (float(-10 * (result.clamp(0, 1) - clean).square().mean().log10()), float(back))
    return found


def strip(restorer) -> Image.Image:
    noisy = planes(ROOT / "examples/dog-noisy.png")
    restored = restorer(noisy)
    shown = [noisy, *(blended(noisy, restored.clone(), *amounts) for amounts in PRESETS.values())]
    gap = torch.ones(3, SIDE, GAP // 2)
    parts = [part for one in shown for part in (gap, one[:, TOP : TOP + SIDE, LEFT : LEFT + SIDE])][1:]
    pixels = (torch.cat(parts, 2).clamp(0, 1) * 255).round().byte().permute(1, 2, 0).numpy()
    sheet = Image.fromarray(pixels)
    return sheet.resize((2 * sheet.width, 2 * sheet.height), Image.Resampling.NEAREST)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--strip", type=Path)
    parser.add_argument("-o", "--out", type=Path)
    args = parser.parse_args()
    restorer = RestoreOptions().compose(load_model(MODEL))
    if args.strip:
        strip(restorer).save(args.strip, quality=80, method=6)
    table = {}
    for sigma in (15, 25):
        rows = []
        for path in sorted(args.folder.glob("*.png")):
            clean = planes(path)
            generator = torch.Generator().manual_seed(0)
            noisy = clean + sigma / 255 * torch.randn(clean.shape, generator=generator)
            noisy = (noisy.clamp(0, 1) * 255).round() / 255
            rows.append(measured(clean, noisy, restorer(noisy)))
        table[str(sigma)] = {
            name: {"psnr": round(float(np.mean([row[name][0] for row in rows])), 2),
                   "texture": round(float(np.mean([row[name][1] for row in rows])), 4)}
            for name in CASES
        }  # fmt: skip
    report = {"model": MODEL, "pictures": len(rows), "sigma": table}
    print(json.dumps(report, indent=1))
    if args.out:
        args.out.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
