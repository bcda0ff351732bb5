"""The one command for a few minutes of a GPU, on the CPU: everything it measures, trains and leaves behind."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
COMMAND = [sys.executable, str(ROOT / "benchmarks/gpu.py"), "--dry-run"]
MOST_FILES, LARGEST = 8, 16 * 2**20  # what a machine may hand back
ALONE = {**os.environ, "PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1"}
ALONE.pop("TRITON_INTERPRET", None)  # its interpreter has tests of its own, and takes its time


def results(out):
    files = [path for path in out.rglob("*") if path.is_file()]
    assert len(files) <= MOST_FILES, files
    assert all(path.stat().st_size <= LARGEST for path in files)
    return json.loads((out / "gpu.json").read_text(encoding="utf-8"))


def step_of(out):
    """Of the checkpoint that came back whole; 0 without one."""
    with contextlib.suppress(FileNotFoundError):
        return json.loads((out / "checkpoint.json").read_text())["step"]
    return 0


@pytest.fixture(scope="module")
def first(tmp_path_factory):
    """What a run of everything leaves behind."""
    out, started = tmp_path_factory.mktemp("first"), time.monotonic()
    run = subprocess.run([*COMMAND, "--out", out, "--minutes", "1"], env=ALONE, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout + run.stderr
    assert time.monotonic() - started < 120
    return out


@pytest.mark.slow
def test_the_dry_run_measures_and_trains(first):
    found = results(first)
    assert found["operator"]["parity"]
    assert [layer["code"] for layer in found["compile"]["layers"]] == [0, 0]
    rows = found["throughput"]["blocked"]["rows"]
    assert [row["batch"] for row in rows] == [2, 4]
    assert all(row[f"{what}_crops_per_s"] > 0 for row in rows for what in ("data", "step", "both"))
    assert found["best"]["both_crops_per_s"] >= 0.95 * max(row["both_crops_per_s"] for row in rows)
    assert found["training"]["finished"]
    assert "psnr" in found["training"]["last"][-1]
    assert (first / "denoise-gaussian-small.safetensors").is_file()


@pytest.mark.slow
def test_it_goes_on_from_what_came_back_alone_and_a_signal_ends_it_with_a_checkpoint(first, tmp_path):
    last, out = step_of(first), tmp_path / "out"
    more = ["--skip", "operator", "throughput", "--resume", first, "--set", f"schedule.steps={last + 10**6}"]
    process = subprocess.Popen(
        [*COMMAND, "--out", out, "--minutes", "1", *more], env=ALONE, stdout=subprocess.PIPE, text=True
    )
    while step_of(out) <= last:
        assert process.poll() is None, process.stdout.read()
        time.sleep(0.2)
    process.send_signal(signal.SIGTERM)
    said, _ = process.communicate(timeout=60)
    assert process.returncode == 0, said
    found = results(out)
    assert found["resumed"] == {"step": last, "whole": True}
    assert found["stopped"]
    assert not found["training"]["finished"]
    assert step_of(out) > last


def test_it_needs_photographs_on_a_gpu(tmp_path):
    run = subprocess.run([sys.executable, COMMAND[1], "--out", tmp_path], env=ALONE, capture_output=True, text=True)
    assert run.returncode == 2
    assert "kithkin data pack" in run.stderr


def test_a_phase_that_fails_is_named_and_the_others_go_on(tmp_path):
    command = [*COMMAND, "--out", tmp_path, "--minutes", "1", "--skip", "operator", "train", "--recipe", "none"]
    run = subprocess.run(command, env=ALONE, capture_output=True, text=True)
    assert run.returncode == 1
    assert "neither a file nor a recipe" in json.dumps(results(tmp_path)["failures"])
