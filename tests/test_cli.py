"""The command line: help, exit codes, and the verbs that don't restore."""

import json
import re
import subprocess
import sys

import numpy as np
import pytest
from typer.testing import CliRunner

from kithkin.cli import app
from kithkin.images import Picture, write_picture

from freeze_help import VERBS, frozen_file, help_words


def run(*arguments):
    """The command in a process of its own: what a user sees."""
    return subprocess.run([sys.executable, "-m", "kithkin", *arguments], capture_output=True, text=True)


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


@pytest.mark.parametrize("verb", VERBS)
def test_help_is_as_frozen(verb):
    assert help_words(verb) == frozen_file(verb).read_text(encoding="utf-8").strip()


def test_an_expected_error_is_one_line_and_exit_code_1():
    found = run("models", "show", "nothing")
    assert found.returncode == 1
    assert found.stdout == ""
    assert re.fullmatch(r"kithkin: no model is called 'nothing'; there are .+\n", found.stderr)


def test_usage_errors_have_exit_code_2():
    assert run("restore").returncode == 2
    assert run("paint").returncode == 2


def test_version():
    from kithkin import __version__

    assert call("--version").output == f"kithkin {__version__}\n"


def test_models_lists_shows_and_counts():
    assert "denoise-tiny" in call("models").output
    card = json.loads(call("models", "show", "denoise", "--json").output)
    assert card["name"] == "denoise-tiny"
    shown = call("models", "show", "denoise", env={"COLUMNS": "1000"}).output  # so wide that nothing is wrapped
    assert all(card[key] in shown for key in ("name", "summary", "recipe", "commit", "limits", "sha256"))
    (row,) = json.loads(call("models", "cost", "tiny", "--side", "64", "--json").output)
    assert row["name"] == "tiny"
    assert 1.2e6 < row["parameters"] < 1.5e6
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
    assert findings["model denoise-tiny"].startswith("ready")
    assert "torch" in call("doctor").output


def test_doctor_finds_a_backend_that_computes_something_else(monkeypatch):
    from kithkin.ops import dispatch, reference
    from kithkin.ops.backend import Backend

    monkeypatch.delenv("TRITON_INTERPRET")
    wrong = Backend("blocked", dispatch.BACKENDS["blocked"].why_not, plain=lambda *a: 2 * reference.attention(*a))
    monkeypatch.setitem(dispatch.BACKENDS, "blocked", wrong)
    assert json.loads(call("doctor", "--json", code=1).output)["backend blocked (cpu)"].startswith("FAILED")


def test_eval_prints_json_and_a_table(photos):
    values = json.loads(call("eval", photos, "--sigma", "25", "--json").stdout)
    assert values["model"] == "denoise"
    assert [row["image"] for row in values["images"]] == ["0.png", "1.png"]
    table = call("eval", photos, "--sigma", "25", "--per-image").output
    assert "sigma 25" in table
    assert "1.png" in table


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
    first = call("train", "denoise-tiny", "--data", photos, "--out", out, *changes)
    assert (out / "denoise-tiny.safetensors").is_file()
    assert "denoise-tiny.safetensors" in first.stdout
    assert json.loads(call("models", "cost", out / "denoise-tiny.safetensors", "--side", "32", "--json").output)
    again = run("train", "denoise-tiny", "--data", str(photos), "--out", str(out), *changes)
    assert again.returncode == 1
    assert "--resume" in again.stderr


def test_train_refuses_unknown_keys_with_the_nearest(photos, tmp_path):
    out = str(tmp_path / "run")
    found = run("train", "denoise-tiny", "--data", str(photos), "--out", out, "--set", "schedule.stepps=3")
    assert found.returncode == 1
    assert "did you mean 'steps'" in found.stderr
    assert run("train", "denoise-tiny", "--out", out, "--set", "steps").returncode == 2
