"""Ablations: k and h on fixed weights, and grids of training runs."""

import csv
from dataclasses import replace

import numpy as np
import pytest
import torch

from kithkin.ablation import Ablation, Cell, draw_heat_map, mean_over_seeds, vary_network, vary_recipe
from kithkin.config import load_config
from kithkin.errors import InputError
from kithkin.evaluation import evaluate
from kithkin.images import Picture, write_picture
from kithkin.model import KiT
from kithkin.model_config import KiTConfig

SMALL = KiTConfig(width=8, depth=1, n_hashes=2)


@pytest.fixture
def photos(tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    for seed in range(2):
        pixels = np.random.RandomState(seed).rand(48, 64, 3).astype(np.float32)
        write_picture(Picture(pixels), folder / f"{seed}.png")
    return folder


@pytest.fixture
def model():
    """A network whose attention matters."""
    model = KiT(SMALL).eval()
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.1, generator=generator)
    return model


def test_k_and_h_change_and_the_weights_stay(photos, model):
    found = vary_network(model, photos, ks=(1, 4), n_hashes=(1, 2, 8), sigmas=(25,))
    assert [tuple(cell.setting.values()) for cell in found.cells] == [(k, h) for k in (1, 4) for h in (1, 2, 8)]
    grid = found.grid("sigma 25 PSNR")
    assert len(set(grid[0])) == 1  # with k = 1 nothing is hashed
    assert len({*grid[1], grid[0][0]}) == 4
    own = evaluate(model, photos, sigmas=(25,)).means()["sigma 25"]["psnr"]
    assert grid[1][1] == own  # k = 4, h = 2 is the network as it was trained
    other = KiT(replace(SMALL, k=4, n_hashes=8)).eval()
    other.load_state_dict(model.state_dict())
    assert grid[1][2] == evaluate(other, photos, sigmas=(25,)).means()["sigma 25"]["psnr"]
    assert model.config == SMALL


def test_an_ablation_goes_on_from_its_file(photos, model, tmp_path):
    first = vary_network(model, photos, ks=(4,), n_hashes=(1,), sigmas=(25,), csv=tmp_path / "s.csv")
    both = vary_network(model, photos, ks=(4,), n_hashes=(1, 2), sigmas=(25,), csv=tmp_path / "s.csv")
    assert first.cells[0] == both.cells[0]  # its seconds too
    assert len(list(csv.DictReader((tmp_path / "s.csv").open()))) == 4


def recipe(photos, **more):
    changes = {
        "model.width": 8,
        "model.depth": 1,
        "data.crop": 32,
        "data.folders": [photos],
        "validation.folder": photos,
        "validation.sigmas": [25.0],
        "validation.crop": 32,
        "schedule.batch_size": 2,
        "schedule.steps": 2,
        "schedule.warmup": 1,
    }
    return load_config("denoise-gaussian-tiny", changes | more)


def test_runs_differ_in_what_is_varied_alone(photos, tmp_path):
    rows = []
    variations = {"model.share_query_key": [False, True], "seed": [0, 1]}
    found = vary_recipe(recipe(photos), variations, tmp_path / "runs", report=rows.append)
    assert [tuple(cell.setting.values()) for cell in found.cells] == [(s, n) for s in (False, True) for n in (0, 1)]
    values = [cell.values["sigma25 PSNR"] for cell in found.cells]
    assert len(set(values)) == 4
    assert sum(row.get("steps") == 2 and row["step"] == 2 for row in rows) == 4
    rows.clear()
    again = vary_recipe(recipe(photos), variations, tmp_path / "runs", report=rows.append)
    assert again == found
    assert rows == []  # nothing is trained twice
    with pytest.raises(InputError, match="another schedule"):  # finished runs of two steps are no result of three
        vary_recipe(recipe(photos, **{"schedule.steps": 3}), variations, tmp_path / "runs")
    mean = mean_over_seeds(found)
    assert mean.keys == ("model.share_query_key",)
    assert mean.cells[0].values["sigma25 PSNR"] == pytest.approx((values[0] + values[1]) / 2)
    assert mean.cells[0].values["± sigma25 PSNR"] == pytest.approx(abs(values[0] - values[1]) / 2)


def test_a_run_that_was_cut_off_goes_on(photos, tmp_path):
    variations = {"model.k": [2, 4]}
    cut = vary_recipe(recipe(photos, **{"schedule.steps": 3}), variations, tmp_path, minutes=0)
    assert cut.cells == ()
    assert len(vary_recipe(recipe(photos, **{"schedule.steps": 3}), variations, tmp_path).cells) == 2


def test_an_interrupted_ablation_begins_no_further_run(photos, tmp_path, monkeypatch):
    begun = []
    monkeypatch.setattr("kithkin.ablation.train", lambda config, folder, **options: begun.append(folder))
    assert vary_recipe(recipe(photos), {"model.k": [2, 4]}, tmp_path).cells == ()
    assert len(begun) == 1
    vary_recipe(recipe(photos), {"model.k": [2, 4]}, tmp_path, minutes=0)  # each run had its time
    assert len(begun) == 3


def test_the_summary_says_what_was_varied(photos, tmp_path, monkeypatch):
    monkeypatch.setattr("kithkin.ablation.train", lambda *arguments, **options: None)
    fixed = {"schedule.steps": 3, "schedule.batch_size": 2}
    said = vary_recipe(recipe(photos, **fixed), {"model.k": [2]}, tmp_path, minutes=0).summary
    assert said.startswith("Training runs of 3 steps of 2 crops of ")
    said = vary_recipe(
        recipe(photos, **fixed), {"schedule.steps": [3, 9], "data.crop": [32]}, tmp_path, minutes=0
    ).summary
    assert said.startswith("Training runs of 3 or 9 steps of 2 crops of 32², ")


def test_wrong_requests_are_refused(photos, tmp_path, model):
    with pytest.raises(InputError, match="did you mean"):
        vary_recipe(recipe(photos), {"model.n_hash": [1]}, tmp_path / "a")
    with pytest.raises(InputError):
        vary_recipe(recipe(photos), {"model.k": [0]}, tmp_path / "b")
    with pytest.raises(InputError):
        vary_recipe(recipe(photos), {}, tmp_path / "c")
    with pytest.raises(InputError, match="validation"):
        vary_recipe(recipe(photos, **{"validation.folder": None}), {"model.k": [1]}, tmp_path / "d")
    with pytest.raises(InputError):
        vary_network(model, photos, ks=(), n_hashes=(1,))
    assert not any(tmp_path.glob("?"))


GRID = Ablation(
    ("k", "n_hashes"),
    tuple(Cell({"k": k, "n_hashes": h}, {"PSNR": 30 + k + h / 10}) for k, h in ((1, 1), (1, 2), (2, 1))),
    "Made up.",
)


def test_a_grid_is_printed_as_in_table_4_and_drawn(tmp_path):
    lines = GRID.to_markdown().splitlines()
    assert lines[2] == "| 1 | 31.10 | 31.20 |"
    assert lines[3] == "| 2 | 32.10 |  |"
    assert GRID.to_csv().splitlines()[1] == "1,1,31.1"
    draw_heat_map(GRID, tmp_path / "map.png")
    assert (tmp_path / "map.png").stat().st_size > 1000
    with pytest.raises(InputError, match="nothing is called"):
        draw_heat_map(GRID, tmp_path / "map.png", name="SSIM")
    with pytest.raises(InputError, match="two keys"):
        draw_heat_map(mean_over_seeds(Ablation(("k", "seed"), (), "")), tmp_path / "map.png")
