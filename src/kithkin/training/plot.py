"""The curves of a run as a picture."""

import json
from pathlib import Path

from kithkin.messages import missing_extra


def plot_curves(log: Path, target: Path) -> str | None:
    """Draw loss, learning rate and validation PSNR over the steps.

    Args:
        log: ``log.jsonl`` of a run.
        target: the PNG to write.

    Returns:
        None, or one sentence on why there is no picture.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError:
        return f"no curves.png: {missing_extra('it', 'matplotlib', 'plot')}"
    rows = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()] if log.exists() else []
    losses = [row for row in rows if "loss" in row]
    if not losses:
        return "no curves.png: the log holds no losses yet"
    figure = Figure(figsize=(10, 4), layout="constrained")
    left, right = figure.subplots(1, 2)
    steps = [row["step"] for row in losses]
    left.plot(steps, [row["loss"] for row in losses], color="tab:blue", label="loss")
    left.set(xlabel="step", ylabel="loss", yscale="log")
    rate = left.twinx()
    rate.plot(steps, [row["lr"] for row in losses], color="tab:gray", linestyle=":", label="learning rate")
    rate.set_ylabel("learning rate")
    watched = [row for row in rows if "psnr" in row]
    for name in dict.fromkeys(name for row in watched for name in row["psnr"]):
        points = [(row["step"], row["psnr"][name]) for row in watched if name in row["psnr"]]
        right.plot(*zip(*points, strict=True), label=name)
    right.set(xlabel="step", ylabel="validation PSNR (dB)")
    if watched:
        right.legend()
    figure.savefig(target, dpi=110)
    return None
