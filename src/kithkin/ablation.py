"""Ablations: one network with other k and h (the paper's Table 4), and training runs that differ in
a few keys."""

import csv
import io
import itertools
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kithkin.config import RunConfig, parse_config
from kithkin.errors import InputError
from kithkin.evaluation import evaluate
from kithkin.messages import missing_extra
from kithkin.methods import ModelMethod
from kithkin.model import KiT
from kithkin.storage import name_of
from kithkin.training import train
from kithkin.training.state import checkpoints, read_run
from kithkin.zoo import regrouped

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Cell:
    """One setting and what it gave.

    Attributes:
        setting: key -> value, such as ``{"k": 4, "n_hashes": 2}``.
        values: what was measured, such as ``{"sigma 25 PSNR": 30.9, "s/MP": 2.1}``; PSNR in dB.
    """

    setting: Mapping[str, Any]
    values: Mapping[str, float]


@dataclass(frozen=True)
class Ablation:
    """A grid of settings.

    Attributes:
        keys: what was varied, in order.
        cells: one a setting.
        summary: how the values were made, in words.
    """

    keys: tuple[str, ...]
    cells: tuple[Cell, ...]
    summary: str

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        cells = [{"setting": dict(cell.setting), "values": dict(cell.values)} for cell in self.cells]
        return {"keys": list(self.keys), "summary": self.summary, "cells": cells}

    def to_csv(self) -> str:
        """A line a setting."""
        file = io.StringIO()
        writer = csv.writer(file, lineterminator="\n")
        names = self._names()
        writer.writerow([*self.keys, *names])
        writer.writerows(
            [*cell.setting.values(), *(cell.values.get(name, "") for name in names)] for cell in self.cells
        )
        return file.getvalue()

    def to_markdown(self) -> str:
        """A grid for each value measured over two keys, as the paper's Table 4; else a list."""
        if len(self.keys) != 2:
            head = [*self.keys, *self._names()]
            rows = [
                [*map(_text, c.setting.values()), *(_text(c.values.get(n)) for n in self._names())] for c in self.cells
            ]
            return _markdown(head, rows) + f"\n{self.summary}\n"
        parts = []
        for name in self._names():
            rows_key, columns_key = self.keys
            head = [f"{name}; {rows_key} ↓ {columns_key} →", *map(_text, self._axis(columns_key))]
            grid = self.grid(name)
            rows = [[_text(r), *map(_text, line)] for r, line in zip(self._axis(rows_key), grid, strict=True)]
            parts.append(_markdown(head, rows))
        return "\n".join(parts) + f"\n{self.summary}\n"

    def grid(self, name: str) -> list[list[float | None]]:
        """A measured value by two keys: a row for each value of the first; None for no setting."""
        rows_key, columns_key = self.keys
        values = {(c.setting[rows_key], c.setting[columns_key]): c.values.get(name) for c in self.cells}
        return [[values.get((r, c)) for c in self._axis(columns_key)] for r in self._axis(rows_key)]

    def _axis(self, key: str) -> list[Any]:
        return list(dict.fromkeys(cell.setting[key] for cell in self.cells))

    def _names(self) -> list[str]:
        return list(dict.fromkeys(name for cell in self.cells for name in cell.values))


def vary_network(
    model: KiT,
    data: str | Path,
    *,
    ks: Sequence[int],
    n_hashes: Sequence[int],
    csv: str | Path | None = None,
    progress: Progress | None = None,
    **options: Any,
) -> Ablation:
    """The same weights with other numbers of patches k and hash rounds h: no parameter depends on
    them (Table 4).

    Rounds beyond those that the network was trained with get rotations from the same fixed stream.

    Args:
        model: the network.
        data: a folder, as ``kithkin.evaluation.evaluate`` takes it.
        ks, n_hashes: the values of k and of h; every combination is measured.
        csv: a file of scores, from which a cut-off ablation goes on.
        progress: called with the settings done and their number.
        options: of ``kithkin.evaluation.evaluate``: protocol, sigmas, limit.

    Raises:
        InputError: a value is out of range, or as for ``evaluate``.
    """
    if not ks or not n_hashes:
        raise InputError("vary_network: expected at least one value of k and one of h")
    settings = list(itertools.product(ks, n_hashes))
    cells = []
    summary = ""
    for done, (k, rounds) in enumerate(settings):
        changed = regrouped(model, k=k, n_hashes=rounds)
        report = evaluate(ModelMethod(changed, name=f"k={k} h={rounds}"), data, csv=csv, **options)
        if report.protocol.kind == "inputs":
            raise InputError(f"vary_network: {report.dataset} has no targets to compare with; take another data set")
        values: dict[str, float] = {}
        for condition, means in report.means().items():
            assert means["psnr"] is not None
            values[f"{condition} PSNR"] = means["psnr"]
            values[f"{condition} s/MP"] = float(means["seconds_per_megapixel"] or 0)
        cells.append(Cell({"k": k, "n_hashes": rounds}, values))
        pictures = next(iter(report.means().values()))["images"]
        summary = f"Fixed weights, {report.dataset}, {pictures} pictures; {report.protocol.summary}."
        if progress:
            progress(done + 1, len(settings))
    return Ablation(("k", "n_hashes"), tuple(cells), summary)


def vary_recipe(
    recipe: RunConfig,
    variations: Mapping[str, Sequence[Any]],
    out: str | Path,
    *,
    init: str | None = None,
    device: str = "cpu",
    minutes: float | None = None,
    report: Callable[[dict[str, Any]], None] | None = None,
) -> Ablation:
    """Train a network for every combination of some keys, each on the same data and steps, and
    compare on the validation pictures (Tables 4 and 5, and the choices where the paper is silent).

    Args:
        recipe: the run, with its folders and a validation folder.
        variations: dotted key of the recipe -> its values, such as ``{"model.share_query_key":
            [False, True]}``.
        out: gets a folder a run; a run that was cut off goes on, a finished one is not trained
            again.
        init: weights that every run starts from, as in ``kithkin.training.train``.
        device: of the networks.
        minutes: stop each run after this long; it is then missing from the result, and goes on the
            next time.
        report: called with every row of each run's log, and with ``{"note": …}`` before each.

    Returns:
        The last validation of every finished run. Ctrl-C and SIGTERM stop the run under way, with a
        checkpoint, and begin no other. ``mean_over_seeds`` takes the means where ``"seed"`` is
        among the keys.

    Raises:
        InputError: an unknown key, a value out of range, no validation folder, ``out`` holds
            finished runs of another recipe, or as for ``train``.
    """
    if recipe.validation.folder is None:
        raise InputError("vary_recipe: the runs are compared by their validation; give a validation folder")
    runs = list(_combinations(recipe, variations))
    cells = []
    for setting, config in runs:
        folder = Path(out) / "-".join(f"{key.rpartition('.')[2]}={value}" for key, value in setting.items())
        log = folder / "log.jsonl"
        if (folder / f"{config.name}.safetensors").is_file():
            _refuse_another(folder, config)
        else:
            if report:
                report({"note": f"{folder.name}"})
            started = time.monotonic()
            done = train(config, folder, init=init, resume=True, minutes=minutes, device=device, report=report)
            if done is None and (minutes is None or time.monotonic() - started < 60 * minutes):
                break  # it was told to stop, by Ctrl-C or SIGTERM
        if (folder / f"{config.name}.safetensors").is_file():
            cells.append(Cell(setting, {f"{name} PSNR": value for name, value in _last_validation(log).items()}))

    def tried(key: str, value: Any) -> str:
        return " or ".join(map(str, variations.get(key, [value])))

    schedule = recipe.schedule
    length = f"{tried('schedule.steps', schedule.steps)} steps" if schedule.steps else f"{schedule.epochs} epochs"
    crops = f"{tried('schedule.batch_size', schedule.batch_size)} crops of {tried('data.crop', recipe.data.crop)}²"
    summary = (
        f"Training runs{f' from {init}' if init else ''} of {length} of {crops}, compared on "
        f"{name_of(recipe.validation.folder)}; PSNR of protocol rgb."
    )
    return Ablation(tuple(variations), tuple(cells), summary)


def mean_over_seeds(ablation: Ablation) -> Ablation:
    """The means over the key ``"seed"``, with the largest distance from a mean as ``± name``."""
    keys = tuple(key for key in ablation.keys if key != "seed")
    groups: dict[tuple[Any, ...], list[Cell]] = {}
    for cell in ablation.cells:
        groups.setdefault(tuple(cell.setting[key] for key in keys), []).append(cell)
    cells = []
    for setting, members in groups.items():
        values: dict[str, float] = {}
        for name in members[0].values:
            measured = [cell.values[name] for cell in members]
            mean = sum(measured) / len(measured)
            values |= {name: mean, f"± {name}": max(abs(value - mean) for value in measured)}
        cells.append(Cell(dict(zip(keys, setting, strict=True)), values))
    return Ablation(keys, tuple(cells), f"Mean over seeds. {ablation.summary}")


def draw_heat_map(ablation: Ablation, target: Path, *, name: str | None = None) -> None:
    """Draw one measured value over the two keys as a heat map.

    Args:
        ablation: of two keys.
        target: the PNG to write.
        name: of the value; None takes the first PSNR.

    Raises:
        InputError: not two keys, no such value, or matplotlib is missing.
    """
    if len(ablation.keys) != 2 or not ablation.cells:
        raise InputError(f"draw_heat_map: a heat map needs two keys and a setting, got keys {list(ablation.keys)}")
    name = name or next(iter(ablation.cells[0].values))
    if name not in ablation.cells[0].values:
        raise InputError(f"draw_heat_map: nothing is called {name!r}; there are {', '.join(ablation.cells[0].values)}")
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise InputError(missing_extra("draw_heat_map", "matplotlib", "plot")) from error
    grid = [[float("nan") if v is None else v for v in line] for line in ablation.grid(name)]
    rows, columns = ([_text(v) for v in ablation._axis(key)] for key in ablation.keys)
    figure = Figure(figsize=(1.6 + 0.95 * len(columns), 1.4 + 0.62 * len(rows)), layout="constrained")
    axes = figure.subplots()
    image = axes.imshow(grid, cmap="viridis", aspect="auto")
    axes.set(xticks=range(len(columns)), xticklabels=columns, yticks=range(len(rows)), yticklabels=rows, title=name)
    axes.set(xlabel=ablation.keys[1], ylabel=ablation.keys[0])
    known = [value for line in grid for value in line if value == value]
    middle = (min(known) + max(known)) / 2
    for y, line in enumerate(grid):
        for x, value in enumerate(line):
            colour = "white" if value < middle else "black"
            axes.text(x, y, "" if value != value else f"{value:.2f}", ha="center", va="center", color=colour)
    figure.colorbar(image, ax=axes)
    figure.savefig(target, dpi=110)


def _combinations(
    recipe: RunConfig, variations: Mapping[str, Sequence[Any]]
) -> Iterator[tuple[dict[str, Any], RunConfig]]:
    if not variations or not all(variations.values()):
        raise InputError("vary_recipe: expected at least one key with its values")
    # model_dump keeps paths and tuples as they are, so the copy is checked but not rewritten.
    values = recipe.model_dump()
    for combination in itertools.product(*variations.values()):
        setting = dict(zip(variations, combination, strict=True))
        yield setting, parse_config(values, setting, source=", ".join(f"{k}={v}" for k, v in setting.items()))


def _refuse_another(folder: Path, config: RunConfig) -> None:
    """Refuse a finished run that another recipe made, steps and validation included."""
    for checkpoint in checkpoints(folder)[-1:]:
        done = parse_config(read_run(checkpoint)["config"], source=str(checkpoint)).model_dump(mode="json")
        now = config.model_dump(mode="json")
        now["data"] |= {key: done["data"][key] for key in ("cache_gb", "workers")}  # change no result
        now["backend"] = done["backend"]
        if config.precision == "auto":  # was settled when the run began
            now["precision"] = done["precision"]
        changed = [key for key in now if now[key] != done[key]]
        if changed:
            raise InputError(
                f"vary_recipe: {folder} holds a finished run with another {', '.join(changed)}; choose another folder"
            )


def _last_validation(log: Path) -> dict[str, float]:
    rows = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()]
    watched = [row["psnr"] for row in rows if "psnr" in row]
    if not watched:
        raise InputError(f"{log} holds no validation; delete its folder, and train again")
    return dict(watched[-1])


def _text(value: Any) -> str:
    return "" if value is None else f"{value:.2f}" if isinstance(value, float) else str(value)


def _markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "".join("| " + " | ".join(line) + " |\n" for line in lines)
