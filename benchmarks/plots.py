"""Draw what was measured: the network's time and memory, its PSNR beside published methods.

python benchmarks/plots.py
"""

import json
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.figure import Figure

from kithkin.evaluation import load_table
from kithkin.zoo import list_models

from measure import save_plot

ROOT = Path(__file__).parent.parent
MODEL = "denoise-gaussian-tiny"
SIGMAS = (15, 25, 50)


def network(pictures: dict[str, dict[str, float]]) -> Figure:
    """Seconds and memory over the megapixels of a picture."""
    figure = Figure(figsize=(10, 3.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    rows = list(pictures.values())
    size = [row["megapixels"] for row in rows]
    left.loglog(size, [row["seconds"] for row in rows], marker="o", label="measured")
    per_megapixel = rows[-1]["seconds_per_megapixel"]
    left.loglog(
        size, [per_megapixel * x for x in size], linestyle=":", color="gray", label=f"{per_megapixel:.2f} s a megapixel"
    )
    left.set(xlabel="megapixels", ylabel="seconds, two cores")
    right.plot(size, [row["extra_megabytes"] for row in rows], marker="o", label="extra memory")
    right.plot(
        size,
        [row["of_which_picture_megabytes"] for row in rows],
        linestyle=":",
        color="gray",
        label="of which the picture",
    )
    right.set(xlabel="megapixels", ylabel="MB", ylim=(0, None))
    for axes in (left, right):
        axes.legend(fontsize=8)
    return figure


def quality(dataset: str) -> Figure:
    """PSNR less that of CBM3D, published methods and ours, one group of points a noise level."""
    table = load_table("gaussian")
    columns = [i for i, column in enumerate(table.columns) if column.dataset == dataset]
    methods = {name: values for group in table.groups for name, values in group.values().items()}
    measured = [
        m for m in list_models()["denoise-gaussian-tiny"].measured if m.dataset.startswith(dataset) and m.unit == "dB"
    ]
    ours = {m.condition: m.value for m in measured}
    figure = Figure(figsize=(8, 3.6), layout="constrained")
    axes = figure.subplots()
    axes.set_prop_cycle(color=matplotlib.colormaps["tab20"].colors)
    base = methods[table.baseline]
    for name, values in methods.items():
        points = [
            (n, values[i] - base[i]) for n, i in enumerate(columns) if values[i] is not None and base[i] is not None
        ]
        axes.plot(*zip(*points, strict=True), marker="o", markersize=3, linewidth=0.8, label=name)
    gains = [ours[f"sigma {sigma}"] - base[i] for sigma, i in zip(SIGMAS, columns, strict=True)]
    axes.plot(
        range(len(SIGMAS)), gains, marker="s", color="black", linewidth=2, label="denoise-gaussian-tiny (measured)"
    )
    axes.set(
        xticks=range(len(SIGMAS)), xticklabels=[f"sigma {s}" for s in SIGMAS], ylabel=f"PSNR less {table.baseline}, dB"
    )
    axes.set_title(f"{dataset}; all others as published", fontsize=9)
    axes.legend(fontsize=7, loc="center left", bbox_to_anchor=(1, 0.5))
    return figure


def main() -> None:
    found: dict[str, Any] = json.loads((ROOT / "benchmarks/results/network_cpu.json").read_text(encoding="utf-8"))
    save_plot(network(found["pictures"]), ROOT / "docs/images/network-cpu.png")
    save_plot(quality("CBSD68"), ROOT / "docs/images/quality-cbsd68.png")


if __name__ == "__main__":
    main()
