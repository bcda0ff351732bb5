"""Small networks trained from nothing at equal steps and data, and what a picture takes them: which design gives the
most PSNR a second, and whether patches that were found by hashing are worth more than any others.

    python benchmarks/network_variants.py PHOTOGRAPHS --name conv --blocks "cc cc cc cc cc" --sigma 0 55 --seed 0

PHOTOGRAPHS is the folder of training photographs, of which ``validation_sets.tsv`` sets some aside. One row is appended
to ``results/network_variants.jsonl``: PSNR by kind of picture and noise, and the CPU seconds of one picture of 512² on
one thread, in float32 and, on a CPU with instructions for its products, under bfloat16 autocast, beside those of
FFDNet-C (``ffdnet.py``) in the same process. Times are CPU time of the thread, the least of several: other work on the
machine moves them little. ``--steps 0`` measures the times alone.
"""

import argparse
import copy
import json
import time
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from kithkin.cli._memory import keep_freed_memory
from kithkin.data.degrade import benchmark_noise
from kithkin.images import read_picture
from kithkin.layers import KNNLocalAttention
from kithkin.losses import charbonnier_loss
from kithkin.metrics import psnr
from kithkin.ops import multiplies_bfloat16
from kithkin.training.muon import Muon, hidden_weights
from kithkin.training.schedule import learning_rate

from ffdnet import ffdnet, ffdnet_c
from measure import RESULTS, machine
from validation_sets import Split, split
from variant_networks import Net, Plan, build

WINDOW = 224  # what is kept of a training photograph
VALIDATED = 256  # the central side of a validation photograph
LR, UPDATE_RMS, EMA = 4.2e-3, 0.5, 0.99  # of the recipe for small networks, over short runs


def times(model: nn.Module) -> dict[str, float]:
    """CPU seconds of a network and of FFDNet-C, under bfloat16 only where the CPU multiplies it."""
    runs = {"model": copy.deepcopy(model).eval(), "ffdnet": partial(ffdnet, ffdnet_c().eval())}
    found = {}
    for precision in ("float32", "bfloat16")[: 1 + multiplies_bfloat16("cpu")]:
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bfloat16"):
            found |= {f"{name} {precision}": round(cpu_seconds(run), 4) for name, run in runs.items()}
    return found


@torch.inference_mode()
def cpu_seconds(run: Callable[[Tensor], Tensor], *, side: int = 512, repeats: int = 3) -> float:
    """The least CPU time of one thread over ``repeats`` runs on a picture of side², after one that is not counted."""
    image = torch.rand(1, 3, side, side, generator=torch.Generator().manual_seed(0))
    run(image)
    times = []
    for _ in range(repeats):
        started = time.thread_time()
        run(image)
        times.append(time.thread_time() - started)
    return min(times)


def read_windows(files: list[Path]) -> np.ndarray:
    """One window of every photograph, the same in every run: (count, WINDOW, WINDOW, 3) uint8."""
    rng, found = np.random.default_rng(0), []
    for file in files:
        pixels = read_picture(file).pixels
        top, left = (int(rng.integers(side - WINDOW + 1)) for side in pixels.shape[:2])
        window = pixels[top : top + WINDOW, left : left + WINDOW]
        found.append(window if window.dtype == np.uint8 else np.rint(window * 255).astype(np.uint8))
    return np.stack(found)


def kept_windows(files: list[Path], cache: Path | None) -> np.ndarray:
    """``read_windows``, from a .npy file where an earlier run has kept them."""
    if cache is None or not cache.exists():
        windows = read_windows(files)
        if cache is not None:
            np.save(cache, windows)
        return windows
    return np.load(cache)


def draw(windows: np.ndarray, args: argparse.Namespace, step: int) -> tuple[Tensor, Tensor]:
    """(noisy, clean) of a step, (B, 3, S, S): a function of the seed and the step alone."""
    rng = np.random.default_rng([args.seed, step])
    crops, reach = [], WINDOW - args.crop
    for i in rng.integers(len(windows), size=args.batch):
        top, left = rng.integers(reach + 1, size=2)
        crop = np.rot90(windows[i, top : top + args.crop, left : left + args.crop], int(rng.integers(4)))
        crops.append(crop[:, ::-1] if rng.integers(2) else crop)
    clean = torch.from_numpy(np.stack(crops)).permute(0, 3, 1, 2).float() / 255
    sigma = torch.from_numpy(rng.uniform(*args.sigma, size=(args.batch, 1, 1, 1)).astype(np.float32))
    noise = torch.randn(clean.shape, generator=torch.Generator().manual_seed(int(rng.integers(2**62))))
    return clean + noise * sigma / 255, clean


def optimizers(model: nn.Module, dtype: torch.dtype, by_kernel: bool) -> tuple[torch.optim.Optimizer, ...]:
    """Muon for the weights between features, AdamW for the others, as the recipe.

    A step of k×k weights moves what their convolution does up to k times as far as one of a point-wise layer. KiT has
    few, and takes it; a network of them comes apart, so there (``by_kernel``) they get a k-th.
    """
    edges = {id(layer.weight) for layer in model.edges()}
    hidden = [weight for weight in hidden_weights(model) if id(weight) not in edges]
    taken = {id(weight) for weight in hidden}
    others = [p for p in model.parameters() if id(p) not in taken]
    adamw = torch.optim.AdamW(others, lr=0.0, betas=(0.9, 0.99), weight_decay=0.0, fused=True)
    groups: dict[int, list[Tensor]] = {}
    for weight in hidden:
        groups.setdefault(weight.shape[-1] if weight.ndim == 4 and by_kernel else 1, []).append(weight)
    sized = [{"params": weights, "update_rms": UPDATE_RMS / side} for side, weights in groups.items()]
    return Muon(sized, lr=0.0, weight_decay=1e-3, dtype=dtype), adamw


def train(model: nn.Module, windows: np.ndarray, args: argparse.Namespace) -> tuple[nn.Module, float]:
    """The average of the weights at the end, and the mean loss of the last tenth of the steps."""
    average, losses = copy.deepcopy(model), []
    by_kernel = isinstance(model, Net) and not args.whole_steps
    steppers = optimizers(model, torch.bfloat16 if args.bfloat16 else torch.float32, by_kernel)
    for step in range(args.steps):
        lr = learning_rate(step, steps=args.steps, warmup=args.steps // 10, lr=args.lr, final_lr=1e-6)
        for group in (group for stepper in steppers for group in stepper.param_groups):
            group["lr"] = lr
        generator = torch.Generator().manual_seed(args.seed * 1_000_003 + step + 1)
        for layer in attentions(model):
            layer.redraw_rotations(generator)
        noisy, clean = draw(windows, args, step)
        show_clean(model, clean)
        with torch.autocast("cpu", torch.bfloat16, enabled=args.bfloat16):
            restored = model(noisy)
        loss = charbonnier_loss(restored.float(), clean)
        model.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for stepper in steppers:
            stepper.step()
        share = 1 - min(EMA, (2 + step) / (11 + step))
        with torch.no_grad():
            torch._foreach_lerp_(list(average.parameters()), list(model.parameters()), share)
        losses.append(loss.item())
        if step % 100 == 99:
            print(f"{step + 1} {np.mean(losses[-100:]):.5f} {time.thread_time():.0f} s", flush=True)
    return average, float(np.mean(losses[-args.steps // 10 :]))


def attentions(model: nn.Module) -> list[KNNLocalAttention]:
    """Its layers of k-NN attention."""
    return [layer for layer in model.modules() if isinstance(layer, KNNLocalAttention)]


def show_clean(model: nn.Module, clean: Tensor) -> None:
    """Let groupings that may see the clean picture (``clean``) see it."""
    for layer in attentions(model):
        layer.clean = clean


@torch.inference_mode()
def validate(model: nn.Module, parts: Split, sigmas: list[float]) -> dict[str, dict[str, float]]:
    """Mean PSNR in dB (protocol ``rgb``) of the central crops, by kind and sigma."""
    model.eval()
    for layer in attentions(model):
        layer.redraw_rotations()
    scores: dict[str, dict[str, float]] = {}
    for kind, files in parts.kinds.items():
        pictures = [central(read_picture(file).pixels) for file in files]
        for sigma in sigmas:
            found = []
            for clean in pictures:
                noisy = torch.from_numpy(benchmark_noise(clean, sigma)).permute(2, 0, 1)[None]
                show_clean(model, torch.from_numpy(clean).permute(2, 0, 1)[None])
                found.append(psnr(model(noisy)[0].permute(1, 2, 0).numpy(), clean, protocol="rgb"))
            scores.setdefault(kind, {})[f"{sigma:g}"] = round(float(np.mean(found)), 4)
    return scores


def central(pixels: np.ndarray) -> np.ndarray:
    """The central VALIDATED² pixels, float32 in [0, 1]."""
    top, left = ((side - VALIDATED) // 2 for side in pixels.shape[:2])
    cut = pixels[top : top + VALIDATED, left : left + VALIDATED]
    return cut.astype(np.float32) / 255 if cut.dtype == np.uint8 else cut


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photographs", type=Path)
    parser.add_argument("--name", required=True, help="of the row")
    parser.add_argument("--sigma", type=float, nargs=2, default=(0.0, 55.0), help="between which noise is drawn")
    parser.add_argument("--validate", type=float, nargs="+", help="sigmas; left out: 15, 25, 50, or the fixed one")
    parser.add_argument("--crop", type=int, default=96)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--lr", type=float, default=LR)
    for name, default in (("steps", 800), ("seed", 0)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--bfloat16", action="store_true", help="train under autocast")
    parser.add_argument("--whole-steps", action="store_true", help="Muon's for 3×3 weights of a network with --blocks")
    parser.add_argument("--out", type=Path, default=RESULTS / "network_variants.jsonl")
    parser.add_argument("--windows", type=Path, help=".npy that keeps what is read of the photographs for the next run")
    parser.add_argument("--weights", type=Path, help="where to keep the average of the weights")
    for field, value in asdict(Plan()).items():
        kind = {"action": "store_true"} if isinstance(value, bool) else {"type": type(value), "default": value}
        parser.add_argument(f"--{field.replace('_', '-')}", **kind)
    return parser.parse_args()


def result(model: nn.Module, args: argparse.Namespace) -> dict[str, Any]:
    """What training makes of a network."""
    parts, started = split(args.photographs), time.thread_time()
    average, loss = train(model, kept_windows(parts.train, args.windows), args)
    trained = time.thread_time() - started
    if args.weights:
        torch.save(average.state_dict(), args.weights)
    sigmas = args.validate or ([args.sigma[0]] if args.sigma[0] == args.sigma[1] else [15.0, 25.0, 50.0])
    return {"loss": round(loss, 6), "training_seconds": round(trained, 1), "psnr": validate(average, parts, sigmas)}


def main() -> None:
    args = arguments()
    torch.set_num_threads(1)
    keep_freed_memory()
    plan = Plan(**{field: getattr(args, field) for field in asdict(Plan())})
    torch.manual_seed(args.seed)
    model = build(plan).train()
    seconds = times(model)
    row = {
        "name": args.name,
        "plan": asdict(plan),
        **{key: getattr(args, key) for key in ("seed", "steps", "crop", "batch", "lr", "sigma", "bfloat16")},
        "parameters": sum(p.numel() for p in model.parameters()),
        "seconds": seconds,
        "of_ffdnet": round(seconds["model float32"] / seconds["ffdnet float32"], 3),
        "cpu": machine()["cpu"],
        **(result(model, args) if args.steps else {}),
    }
    args.out.parent.mkdir(exist_ok=True)
    with args.out.open("a", encoding="utf-8") as file:
        file.write(json.dumps(row) + "\n")
    print(json.dumps(row))


if __name__ == "__main__":
    main()
