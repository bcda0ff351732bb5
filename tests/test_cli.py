"""The command line: help, exit codes, and the verbs that don't restore."""

import importlib.util
import json
import os
import re
import subprocess
import sys

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from kithkin.cli import app
from kithkin.data import list_cards
from kithkin.evaluation import load_table
from kithkin.images import Picture, write_picture
from kithkin.ops import multiplies_bfloat16

from forked import run_command as run
from freeze_help import PAGE, commands, commands_page
from layouts import write_blocks


def call(*arguments, code=0, env=None):
    result = CliRunner().invoke(app, [str(a) for a in arguments], env=env)
    assert result.exit_code == code, result.output
    return result


@pytest.fixture
def photos(tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    for seed in range(2):
        pixels = np.random.RandomState(seed).rand(32, 40, 3).astype(np.float32)
        write_picture(Picture(pixels), folder / f"{seed}.png")
    return folder


def test_help_texts_are_as_on_their_page():
    assert commands_page() == PAGE.read_text(encoding="utf-8")


@pytest.mark.parametrize(("name", "command"), [*commands()], ids=lambda part: part if isinstance(part, str) else "")
def test_help_names_every_option(name, command):
    shown = call(*name.split()[1:], "--help", env={"COLUMNS": "200", "TERM": "dumb"}).output
    for option in command.params:
        for word in option.opts:
            hidden = option.hidden or option.param_type_name == "argument"
            assert hidden or re.search(rf"{word}\b", shown), word


def test_an_expected_error_is_one_line_and_exit_code_1():
    command = ("models", "show", "nothing")
    started = subprocess.run([sys.executable, "-m", "kithkin", *command], capture_output=True, text=True)
    for found in (started, run(*command)):
        assert found.returncode == 1
        assert found.stdout == ""
        assert re.fullmatch(r"kithkin: no model is called 'nothing'; there are .+\n", found.stderr)


@pytest.mark.parametrize(
    ("columns", "command", "words"),
    [(40, "restore", {b"--strength", b"--uniform-blur", b"--ensemble"}), (100, "neighbors", {b"?"})],
)
def test_help_comes_in_narrow_terminals_and_in_those_that_know_ascii_alone(columns, command, words):
    env = os.environ | {"PYTHONIOENCODING": "ascii:strict", "COLUMNS": str(columns)}
    found = subprocess.run([sys.executable, "-m", "kithkin", command, "--help"], env=env, capture_output=True)
    assert found.returncode == 0, found.stderr
    assert words <= set(found.stdout.replace(b",", b" ").split())


def test_usage_errors_have_exit_code_2():
    assert run("restore").returncode == 2
    assert run("paint").returncode == 2


def test_version():
    from kithkin import __version__
    from kithkin.ops import native

    first, *rest = call("--version").output.splitlines()
    assert first == f"kithkin {__version__}"
    assert f"torch {torch.__version__}" in rest
    assert f"CPU kernels {native.instruction_set() or 'not compiled'}" in rest


def test_models_lists_shows_and_counts():
    assert "denoise-tiny" in call("models").output
    card = json.loads(call("models", "show", "denoise", "--json").output)
    assert card["name"] == "denoise-small"
    shown = call("models", "show", "denoise", env={"COLUMNS": "1000"}).output  # so wide that nothing is wrapped
    assert all(card[key] in shown for key in ("name", "summary", "recipe", "commit", "limits", "sha256"))
    (row,) = json.loads(call("models", "cost", "tiny", "--side", "64", "--json").output)
    assert row["name"] == "tiny"
    assert 0.9e6 < row["parameters"] < 1e6
    assert "denoise" in call("models", "cost", "denoise", "--side", "32").output


def test_recipes_are_listed_and_shown_as_they_load(tmp_path):
    from kithkin.config import list_recipes, load_config

    listed = call("recipes").output
    for name in list_recipes():
        assert name in listed
        path = tmp_path / f"{name}.toml"
        path.write_text(call("recipes", "show", name).output, encoding="utf-8")
        assert load_config(path) == load_config(name)


def test_doctor_says_what_is_there(monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET")
    findings = json.loads(call("doctor", "--json").output)
    assert findings["backend blocked (cpu)"] == "ready"
    assert findings["model denoise-gaussian-tiny"].startswith("ready")
    said = "multiplied" if multiplies_bfloat16("cpu") else "no instructions for it: float32"
    assert findings["bfloat16 (cpu)"] == said
    assert "torch" in call("doctor").output


def test_doctor_prints_the_whole_install_line(monkeypatch):
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "imagecodecs" else found(name))
    monkeypatch.delenv("TRITON_INTERPRET")  # its interpreter takes its time
    assert 'pip install "kithkin[codecs]"' in " ".join(call("doctor").output.split())


def test_doctor_finds_a_backend_that_computes_something_else(monkeypatch):
    from kithkin.ops import dispatch, reference
    from kithkin.ops.backend import Backend

    monkeypatch.delenv("TRITON_INTERPRET")
    wrong = Backend("blocked", dispatch.BACKENDS["blocked"].why_not, plain=lambda *a: 2 * reference.attention(*a))
    monkeypatch.setitem(dispatch.BACKENDS, "blocked", wrong)
    assert json.loads(call("doctor", "--json", code=1).output)["backend blocked (cpu)"].startswith("FAILED")


def test_eval_prints_json_and_a_table(photos):
    values = json.loads(call("eval", photos, "--sigma", "25", "--json").stdout)
    (found,) = values["evaluations"]
    assert found["method"] == "denoise-small"
    assert [row["image"] for row in found["images"]] == ["0.png", "1.png"]
    table = call("eval", photos, "--sigma", "25", "--per-image").output
    assert "sigma 25" in table
    assert "1.png" in table


def test_names_are_whole_where_the_terminal_is_narrow(photos):
    """Cut off, two models of one task looked alike."""
    pair = ("-m", "denoise-gaussian-tiny", "-m", "denoise-gaussian-small")
    table = call("eval", photos, "--sigma", "25", "--limit", "1", *pair, env={"COLUMNS": "80"}).stdout
    assert "…" not in table
    cells = ["".join(line.split("│")[2].split()) for line in table.splitlines() if line.startswith("│")]
    assert "".join(cells) == "denoise-gaussian-tinydenoise-gaussian-small"


def test_eval_takes_several_methods_and_goes_on_from_its_file(photos, tmp_path):
    arguments = ("eval", photos, "--sigma", "25", "-m", "input", "-m", "nlm", "--csv", tmp_path / "scores.csv")
    table = call(*arguments, "--format", "markdown").output
    assert [line.split(" | ")[2] for line in table.splitlines()[2:]] == ["input", "nlm"]
    assert call(*arguments, "--format", "markdown").output == table  # the seconds too: nothing was measured again
    assert call(*arguments, "--format", "csv").output.startswith("data set,condition,method")


def test_eval_refuses_a_method_that_is_none_before_it_measures_with_the_others(photos, tmp_path):
    scores = tmp_path / "scores.csv"
    found = run("eval", str(photos), "--sigma", "25", "-m", "input", "-m", "inptu", "--csv", str(scores))
    assert found.returncode == 1
    assert "'inptu' is no method" in found.stderr
    assert not scores.exists()


def test_eval_refuses_methods_of_one_name_which_no_table_could_tell_apart(photos):
    found = run("eval", str(photos), "--sigma", "25", "-m", "input", "-m", "input")
    assert found.returncode == 1
    assert "several methods are called input" in found.stderr


def test_a_named_set_is_measured_by_its_protocol(tmp_path):
    for side, seed in (("input", 0), ("target", 1)):
        folder = tmp_path / "Rain100L" / side
        folder.mkdir(parents=True)
        write_picture(Picture(np.random.RandomState(seed).rand(16, 24, 3).astype(np.float32)), folder / "1.png")
    arguments = ("eval", tmp_path / "Rain100L", "-m", "input", "--json")
    for more, expected in (((), "rgb"), (("--dataset", "rain100l"), "rain"), (("-p", "rain"), "rain")):
        (found,) = json.loads(call(*arguments, *more).stdout)["evaluations"]
        assert found["protocol"]["name"] == expected
    (found,) = json.loads(call("eval", tmp_path / "Rain100L", "--dataset", "rain100l", "--json").stdout)["evaluations"]
    assert found["method"] == "derain-small"


def test_sets_of_camera_noise_are_measured_with_the_model_for_it(tmp_path):
    write_blocks(tmp_path / "sidd", (1, 2, 16, 16, 3))
    arguments = ("eval", tmp_path / "sidd", "--dataset", "sidd-validation", "--json")
    for more in ((), ("--submission", tmp_path / "Idenoised.mat")):
        (found,) = json.loads(call(*arguments, *more).stdout)["evaluations"]
        assert found["method"] == "denoise-small"
    assert (tmp_path / "Idenoised.mat").exists()
    tasks = {name: card.task for name, card in list_cards().items()}
    assert {name for name, task in tasks.items() if task == "denoise"} == {
        "sidd",
        "sidd-validation",
        "dnd",
        "polyu",
    }
    assert (load_table("1").task, load_table("gaussian").task) == ("denoise", "denoise-gaussian")


def test_eval_fills_a_table_of_the_paper(tmp_path):
    for side, seed in (("input", 0), ("target", 1)):
        folder = tmp_path / "sets/Rain100L" / side
        folder.mkdir(parents=True)
        write_picture(Picture(np.random.RandomState(seed).rand(16, 24, 3).astype(np.float32)), folder / "1.png")
    table = call("eval", tmp_path / "sets", "--table", "3", "-m", "input").output
    assert "| KiT | 30.26 |" in table
    assert "Rain100L: 1 of 100 pictures" in table
    as_csv = call("eval", tmp_path / "sets", "--table", "3", "-m", "input", "--format", "csv")
    assert as_csv.stdout.startswith("group,method,")
    assert "Rain100L: 1 of 100 pictures" in as_csv.stderr
    assert "Not measured, for lack of data: Test100, Rain100H, Test2800, Test1200." in table
    arguments = ("--data", f"HIDE={tmp_path / 'sets/Rain100L'}", "-m", "input", "--json")
    values = json.loads(call("eval", tmp_path, "--table", "2", *arguments).output)
    assert values["measured"]["input"][:2] == [None, None]
    assert values["measured"]["input"][2] > 0
    assert "| KiT_S | 39.75 | 0.969 |" in call("eval", tmp_path, "--table", "5").output
    write_blocks(tmp_path / "blocks", (1, 1, 32, 32, 3))
    grid = call(
        "eval", tmp_path, "--table", "4", "--data", f"SIDD={tmp_path / 'blocks'}", "-m", "denoise-gaussian"
    ).output
    assert grid.count("| **denoise-gaussian-tiny, k = ") == 5
    assert run("eval", str(tmp_path), "--table", "2", "--data", "SIDD=x").returncode == 1
    assert run("eval", str(tmp_path), "--table", "2", "--protocol", "rgb").returncode == 2


def test_ablate_prints_and_keeps_the_grid(photos, tmp_path):
    out = tmp_path / "grid"
    printed = call("ablate", "network", photos, "--k", "1,4", "--hashes", "1", "--limit", "1", "--out", out).output
    assert printed == (out / "ablation.md").read_text(encoding="utf-8")
    assert (out / "ablation.png").stat().st_size > 1000
    assert len(json.loads((out / "ablation.json").read_text(encoding="utf-8"))["cells"]) == 2
    assert run("ablate", "network", str(photos), "--k", "one").returncode == 2


@pytest.mark.parametrize(
    "arguments",
    [
        ("ablate", "network", "PHOTOS", "--k", "1", "--hashes", "1", "--out", "FILE"),
        ("data", "prepare", "photos", "PHOTOS", "--out", "FILE"),
        ("eval", "PHOTOS", "-m", "input", "--report", "FILE"),
        ("eval", "PHOTOS", "-m", "input", "--csv", "PHOTOS"),
    ],
)
def test_a_place_that_cannot_take_the_result_is_one_line(photos, tmp_path, arguments):
    file = tmp_path / "file"
    file.write_text("kept")
    names = {"PHOTOS": str(photos), "FILE": str(file)}
    found = run(*(names.get(a, a) for a in arguments))
    assert found.returncode == 1
    assert found.stderr.startswith("kithkin: ")
    assert "Traceback" not in found.stderr
    assert "another" in found.stderr
    assert file.read_text() == "kept"


def test_ablate_trains_and_compares(photos, tmp_path):
    small = ("model.width=8", "model.depth=1", "data.crop=32", "validation.crop=32", "validation.sigmas=[25.0]")
    small += ("schedule.steps=1", "schedule.warmup=1", "schedule.batch_size=2")
    changes = [part for change in small for part in ("--set", change)]
    vary = ("--vary", "model.share_query_key=false,true", "--vary", "seed=0,1")
    folders = ("--data", photos, "--validation", photos, "--out", tmp_path / "runs")
    printed = call("ablate", "train", "denoise-gaussian-tiny", *vary, *folders, *changes).output
    assert "| True |" in printed
    assert "± sigma25 PSNR" in printed
    assert len((tmp_path / "runs/runs.csv").read_text(encoding="utf-8").splitlines()) == 5


def test_train_makes_weights_that_load(photos, tmp_path):
    out = tmp_path / "run"
    small = [
        "model.width=8",
        "model.depth=1",
        "model.n_hashes=1",
        "data.crop=32",
        "schedule.steps=2",
        "schedule.warmup=1",
    ]
    changes = [part for change in [*small, "schedule.batch_size=2"] for part in ("--set", change)]
    first = call("train", "denoise-gaussian-tiny", "--data", photos, "--out", out, *changes)
    assert (out / "denoise-gaussian-tiny.safetensors").is_file()
    assert "denoise-gaussian-tiny.safetensors" in first.stdout
    assert json.loads(
        call("models", "cost", out / "denoise-gaussian-tiny.safetensors", "--side", "32", "--json").output
    )
    again = run("train", "denoise-gaussian-tiny", "--data", str(photos), "--out", str(out), *changes)
    assert again.returncode == 1
    assert "--resume" in again.stderr


def test_train_refuses_unknown_keys_with_the_nearest(photos, tmp_path):
    out = str(tmp_path / "run")
    found = run("train", "denoise-gaussian-tiny", "--data", str(photos), "--out", out, "--set", "schedule.stepps=3")
    assert found.returncode == 1
    assert "did you mean 'steps'" in found.stderr
    assert run("train", "denoise-gaussian-tiny", "--out", out, "--set", "steps").returncode == 2
