"""A run's checkpoint in pieces of a bounded size, and back."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

sys.path.insert(0, str(Path(__file__).parent.parent / "benchmarks"))
from pieces import PiecesError, join, newest_checkpoint, split

NAMES = ("model", "average", "exp_avg", "exp_avg_sq")


def checkpoint(run, step=300, numbers=4000):
    folder = run / f"step-{step:08d}"
    folder.mkdir(parents=True)
    for i, name in enumerate(NAMES):
        values = np.random.default_rng([step, i]).standard_normal(numbers).astype(np.float32)
        save_file({"w": values}, folder / f"{name}.safetensors", {"kithkin": "{}"})
    (folder / "run.json").write_text(json.dumps({"step": step}))
    return folder


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_a_checkpoint_comes_back_whole(tmp_path):
    found = checkpoint(tmp_path / "run")
    manifest = split(found, tmp_path, size=30_000, most=4)
    sizes = [path.stat().st_size for path in sorted(tmp_path.glob("checkpoint-*.bin"))]
    assert len(sizes) == len(manifest["pieces"]) == 3
    assert max(sizes) <= 30_000
    back, resumable = join(tmp_path, tmp_path / "back")
    assert resumable
    assert back.name == found.name
    assert contents(back) == contents(found)


def test_a_later_checkpoint_replaces_all_pieces(tmp_path):
    before = split(checkpoint(tmp_path / "run", 300), tmp_path, size=10_000, most=9)
    later = checkpoint(tmp_path / "run", 600, numbers=1000)
    assert newest_checkpoint(tmp_path / "run") == later
    after = split(later, tmp_path, size=10_000, most=9)
    assert len(list(tmp_path.glob("checkpoint-*.bin"))) == len(after["pieces"]) < len(before["pieces"])
    assert contents(join(tmp_path, tmp_path / "back")[0]) == contents(later)


def test_what_does_not_fit_is_left_out_and_said(tmp_path):
    found = checkpoint(tmp_path / "run", numbers=8000)
    assert split(found, tmp_path, size=120_000, most=1)["left_out"] == ["exp_avg_sq.safetensors"]
    manifest = split(found, tmp_path, size=45_000, most=1)
    assert manifest["left_out"] == [f"{name}.safetensors" for name in ("exp_avg_sq", "exp_avg", "model")]
    back, resumable = join(tmp_path, tmp_path / "back")
    assert not resumable
    assert contents(back)["average.safetensors"] == contents(found)["average.safetensors"]
    split(found, tmp_path, size=30_000, most=1)
    back, _ = join(tmp_path, tmp_path / "half")
    half = load_file(back / "average.safetensors")["w"]
    assert half.dtype == np.float16
    np.testing.assert_array_equal(half, load_file(found / "average.safetensors")["w"].astype(np.float16))
    with pytest.raises(PiecesError, match="float16"):
        split(found, tmp_path, size=5_000, most=1)


def test_pieces_of_two_checkpoints_are_not_joined(tmp_path):
    split(checkpoint(tmp_path / "run", 300), tmp_path, size=30_000, most=4)
    damaged = bytearray((tmp_path / "checkpoint-1.bin").read_bytes())
    damaged[7] ^= 1
    (tmp_path / "checkpoint-1.bin").write_bytes(damaged)
    with pytest.raises(PiecesError, match="another checkpoint"):
        join(tmp_path, tmp_path / "back")
    (tmp_path / "checkpoint-1.bin").unlink()
    with pytest.raises(PiecesError, match="no whole checkpoint"):
        join(tmp_path, tmp_path / "back")


def test_unfinished_checkpoints_are_passed_over(tmp_path):
    (tmp_path / "step-00000300.part").mkdir()
    assert newest_checkpoint(tmp_path) is None
