"""Training: it learns, it can be stopped and resumed without a trace, and it never does so silently."""

import errno
import itertools
import json
import math
import os
import random
import shutil
import signal
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import kithkin.training.loop as loop
import kithkin.training.precision as training_precision
import kithkin.training.step as training_step
from kithkin.checkpoint import read_model, read_tensors, weights_of, write_tensors
from kithkin.config import parse_config
from kithkin.data import open_folders
from kithkin.data.degrade import DEGRADATIONS, NOISES, Degradation
from kithkin.data.degrade.fields import as_draws
from kithkin.data.sampling import degrade_crops, sample_batch
from kithkin.errors import CheckpointError, InputError, KithkinError
from kithkin.layers import KNNLocalAttention
from kithkin.metrics import psnr
from kithkin.model import KiT
from kithkin.training import batches, train
from kithkin.training.distributed import Ranks
from kithkin.training.plot import plot_curves
from kithkin.training.resume import take_over
from kithkin.training.schedule import learning_rate
from kithkin.training.state import TrainState, checkpoints
from kithkin.training.validation import validate

TIMINGS = {"seconds", "crops_per_s"}
TENSORS = ("model", "average", "exp_avg", "exp_avg_sq")


def scene(seed, size):
    """A smooth picture with edges: waves of three colours and some discs."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[0:size, 0:size] / size
    picture = np.stack([0.5 + 0.3 * np.sin(rng.normal(0, 6) * x + rng.normal(0, 6) * y + c) for c in range(3)], -1)
    for _ in range(4):
        disc = (x - rng.uniform()) ** 2 + (y - rng.uniform()) ** 2 < rng.uniform(0.1, 0.3) ** 2
        picture[disc] = rng.uniform(0, 1, 3)
    return np.rint(picture.clip(0, 1) * 255).astype(np.uint8)


@pytest.fixture
def photos(tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    for i in range(5):
        Image.fromarray(scene(i, 40)).save(folder / f"{i}.png")
    return folder


@pytest.fixture(autouse=True)
def plotless(request, monkeypatch):
    """Curves take longer than these runs: only the tests that ask for them draw them."""
    if "drawn" not in request.fixturenames:
        monkeypatch.setattr(loop, "plot_curves", lambda log, target: None)


@pytest.fixture
def drawn():
    """Draw the curves."""
    pytest.importorskip("matplotlib")


@pytest.fixture
def often(monkeypatch):
    """A row in the log every 4 steps instead of 50."""
    monkeypatch.setattr(loop, "LOG_EVERY", 4)


def run_config(photos, changes=None):
    values = {
        "name": "toy",
        "task": "denoise",
        "seed": 1,
        "precision": "float32",
        "model": {"width": 8, "depth": 1, "n_hashes": 1, "n_stages": 1, "k": 2},
        "data": {"kind": "photos", "folders": [photos], "crop": 32, "sigma": [10, 50], "cache_gb": 1},
        "validation": {"folder": photos, "sigmas": [25], "crop": 32, "every": 6},
        "schedule": {"batch_size": 2, "steps": 12, "epochs": 0, "warmup": 2, "lr": 3e-3, "final_lr": 1e-5},
        "optimizer": {"betas": [0.9, 0.99], "weight_decay": 1e-2, "grad_clip": 1.0, "ema_decay": 0.9},
        "loss": {"edge_weight": 0.05, "epsilon": 1e-3},
    }
    return parse_config(values, changes, source="the test")


def at_step(step, act):
    """A report that acts once, after this step."""
    return lambda row: act() if "steps" in row and row["step"] == step else None


def terminate():
    os.kill(os.getpid(), signal.SIGTERM)


def log_of(out, without=TIMINGS):
    rows = [json.loads(line) for line in (out / "log.jsonl").read_text(encoding="utf-8").splitlines()]
    return [{key: value for key, value in row.items() if key not in without} for row in rows]


def bits_of(checkpoint):
    found = {}
    for part in TENSORS:
        for name, tensor in read_tensors(checkpoint / f"{part}.safetensors")[0].items():
            found[part, name] = tensor.contiguous().view(torch.uint8)
    return found


def assert_same_run(first, second):
    """Model, average, moments, final weights and the log, but for what a clock wrote."""
    folders = [checkpoints(first), checkpoints(second)]
    assert folders[0][-1].name == folders[1][-1].name
    a, b = bits_of(folders[0][-1]), bits_of(folders[1][-1])
    assert a.keys() == b.keys()
    assert [name for name in a if not torch.equal(a[name], b[name])] == []
    finals = [read_tensors(folder / "toy.safetensors")[0] for folder in (first, second)]
    assert all(torch.equal(finals[0][name], finals[1][name]) for name in finals[0])
    assert log_of(first) == log_of(second)


# It learns


def test_a_tiny_network_learns_to_denoise(tmp_path, monkeypatch):
    """On eight fixed scenes under noise of sigma 50, in 150 steps: 4.5 dB over the identity, where it starts. Each of
    the seeds from 0 to 5 gains 5.0 dB or more."""
    monkeypatch.setattr(loop, "LOG_EVERY", 10)
    folder = tmp_path / "scenes"
    folder.mkdir()
    for i in range(8):
        Image.fromarray(scene(i, 32)).save(folder / f"{i}.png")
    changes = {
        "seed": 0,
        "model": {"width": 8, "depth": 1, "n_hashes": 1, "n_stages": 1, "stem_stride": 1},
        "data.sigma": [50, 50],
        "loss.edge_weight": 0.0,
        "validation.sigmas": [50],
        "validation.every": 150,
        "schedule.batch_size": 4,
        "schedule.steps": 150,
        "schedule.warmup": 10,
        "schedule.lr": 1e-2,
    }
    config = run_config(folder, changes)
    identity = validate(KiT(config.network), open_folders(config.data), config, Ranks())["sigma50"]
    assert 14 < identity < 16.5
    final = train(config, tmp_path / "out")
    rows = log_of(tmp_path / "out")
    losses = [row["loss"] for row in rows if "loss" in row]
    assert losses[-1] < 0.6 * losses[0]
    watched = [row["psnr"]["sigma50"] for row in rows if "psnr" in row]
    assert watched[-1] > identity + 4.5
    trained = validate(read_model(final), open_folders(config.data), config, Ranks())["sigma50"]
    assert trained == pytest.approx(watched[-1], abs=0.05)  # the file of float16 is as good


# It resumes


@pytest.mark.parametrize(
    ("changes", "stops"),
    [
        ({}, [4]),
        ({}, [8]),
        ({}, [4, 8]),
        ({"optimizer.ema_decay": 0.0}, [4]),
        ({"precision": "bfloat16", "model.share_query_key": True}, [8]),
        ({"optimizer.kind": "muon"}, [4, 8]),
        ({"data.augment": {"rescaled_share": 0.5, "exposure": 0.5}, "schedule.accumulate": 2}, [4]),
    ],
    ids=str,
)
def test_a_resumed_run_is_the_uninterrupted_one(tmp_path, photos, often, monkeypatch, changes, stops):
    if not changes.get("optimizer.ema_decay", 1):
        monkeypatch.setitem(globals(), "TENSORS", ("model", "exp_avg", "exp_avg_sq"))
    config = run_config(photos, changes)
    assert train(config, tmp_path / "whole") == tmp_path / "whole" / "toy.safetensors"
    for stop in stops:
        assert train(config, tmp_path / "parts", resume=True, report=at_step(stop, terminate)) is None
        assert checkpoints(tmp_path / "parts")[-1].name == f"step-{stop:08d}"
    assert train(config, tmp_path / "parts", resume=True) == tmp_path / "parts" / "toy.safetensors"
    assert_same_run(tmp_path / "whole", tmp_path / "parts")


@pytest.mark.parametrize("stop", [1, 6, 11])
def test_a_run_resumed_between_two_rows_of_the_log_logs_the_same(tmp_path, photos, often, stop):
    config = run_config(photos)
    train(config, tmp_path / "whole")
    train(config, tmp_path / "parts", report=at_step(stop, terminate))
    train(config, tmp_path / "parts", resume=True)
    assert_same_run(tmp_path / "whole", tmp_path / "parts")


def test_a_run_that_was_killed_repeats_the_steps_after_its_last_checkpoint(tmp_path, photos, often, monkeypatch):
    """Checkpoints at every step up to 8, none after; then the power fails, with rows already in the log."""

    class PowerFailureError(BaseException):
        pass

    def fail():
        raise PowerFailureError

    config = run_config(photos)
    train(config, tmp_path / "whole")
    train(config, tmp_path / "parts", report=at_step(4, terminate))
    with pytest.raises(PowerFailureError):
        train(config, tmp_path / "parts", resume=True, report=at_step(11, fail))
    assert log_of(tmp_path / "parts")[-1]["step"] == 8
    assert [p.name for p in checkpoints(tmp_path / "parts")] == ["step-00000004"]
    train(config, tmp_path / "parts", resume=True)
    assert_same_run(tmp_path / "whole", tmp_path / "parts")


def test_a_row_of_the_log_that_was_cut_off_does_not_end_the_run(tmp_path, photos, often):
    config = run_config(photos)
    train(config, tmp_path / "whole")
    train(config, tmp_path / "parts", report=at_step(4, terminate))
    with (tmp_path / "parts" / "log.jsonl").open("a", encoding="utf-8") as file:
        file.write('{"step": 8, "lo')
    train(config, tmp_path / "parts", resume=True)
    assert_same_run(tmp_path / "whole", tmp_path / "parts")


def test_a_half_written_checkpoint_is_not_taken_for_one(tmp_path, photos, often):
    config = run_config(photos)
    train(config, tmp_path / "whole")
    train(config, tmp_path / "parts", report=at_step(4, terminate))
    part = tmp_path / "parts" / "step-00000012.part"
    part.mkdir()
    (part / "model.safetensors").write_bytes(b"half")
    train(config, tmp_path / "parts", resume=True)
    assert_same_run(tmp_path / "whole", tmp_path / "parts")
    assert not part.exists()


def test_resuming_a_finished_run_changes_nothing(tmp_path, photos, often):
    config = run_config(photos)
    final = train(config, tmp_path / "out")
    tensors, header = read_tensors(final)
    log, state = log_of(tmp_path / "out", without=()), bits_of(checkpoints(tmp_path / "out")[-1])
    assert train(config, tmp_path / "out", resume=True) == final
    again, header_again = read_tensors(final)
    assert header_again == header
    assert all(torch.equal(again[name], tensors[name]) for name in tensors)
    assert log_of(tmp_path / "out", without=()) == log
    state_again = bits_of(checkpoints(tmp_path / "out")[-1])
    assert all(torch.equal(state_again[name], state[name]) for name in state)


def test_resuming_where_nothing_is_starts_a_run(tmp_path, photos):
    config = run_config(photos, {"schedule.steps": 1})
    assert train(config, tmp_path / "new" / "out", resume=True) is not None


def test_two_runs_are_the_same_whatever_the_global_random_states(tmp_path, photos, often):
    config = run_config(photos)
    for seed in (1, 2):
        torch.manual_seed(seed)
        np.random.seed(seed)
        random.seed(seed)
        train(config, tmp_path / str(seed))
    assert_same_run(tmp_path / "1", tmp_path / "2")


def test_another_seed_is_another_run(tmp_path, photos):
    configs = [run_config(photos, {"seed": seed, "schedule.steps": 2}) for seed in (1, 2)]
    a, b = (read_model(train(config, tmp_path / str(config.seed))) for config in configs)
    assert not torch.equal(a.stem.conv1.weight, b.stem.conv1.weight)


@pytest.mark.parametrize("ema_decay", [0.0, 0.9])
def test_the_global_random_states_are_left_alone(tmp_path, photos, ema_decay):
    config = run_config(photos, {"schedule.steps": 2, "optimizer.ema_decay": ema_decay})
    before = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()
    train(config, tmp_path / "out")
    assert np.array_equal(np.random.get_state()[1], before[1])
    assert random.getstate() == before[2]
    assert torch.equal(torch.get_rng_state(), before[0])


# It stops when it is told to


def test_the_time_box_leaves_a_checkpoint(tmp_path, photos):
    config = run_config(photos)
    assert train(config, tmp_path / "out", minutes=0) is None
    assert [p.name for p in checkpoints(tmp_path / "out")] == ["step-00000001"]
    assert not (tmp_path / "out" / "toy.safetensors").exists()
    assert train(config, tmp_path / "out", minutes=0, resume=True) is None
    assert [p.name for p in checkpoints(tmp_path / "out")] == ["step-00000001", "step-00000002"]


def test_a_long_time_box_is_not_felt(tmp_path, photos):
    assert train(run_config(photos, {"schedule.steps": 2}), tmp_path / "out", minutes=60) is not None


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_leaves_a_checkpoint_and_the_handlers_as_they_were(tmp_path, photos, number):
    handlers = [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)]
    config = run_config(photos)
    assert train(config, tmp_path / "out", report=at_step(3, lambda: os.kill(os.getpid(), number))) is None
    assert [p.name for p in checkpoints(tmp_path / "out")] == ["step-00000003"]
    assert [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)] == handlers


@pytest.fixture
def heeded():
    """SIGINT raises KeyboardInterrupt, also where a shell started the tests in the background, which ignore it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_a_second_interrupt_ends_the_run_at_once(tmp_path, photos, heeded):
    handlers = [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)]

    def twice():
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.2)  # two that wait together count as one
        os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        train(run_config(photos), tmp_path / "out", report=at_step(3, twice))
    assert checkpoints(tmp_path / "out") == []
    assert [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)] == handlers


def test_a_run_in_a_thread_leaves_signals_alone(tmp_path, photos):
    found = []
    config = run_config(photos, {"schedule.steps": 2})
    thread = threading.Thread(target=lambda: found.append(train(config, tmp_path / "out")))
    thread.start()
    thread.join()
    assert found == [tmp_path / "out" / "toy.safetensors"]


def test_all_but_the_last_two_checkpoints_are_removed(tmp_path, photos):
    seen = []

    def look(row):
        if "steps" in row:
            seen.append([p.name for p in checkpoints(tmp_path / "out")])

    changes = {"schedule.steps": 4, "schedule.checkpoint_seconds": 0}
    train(run_config(photos, changes), tmp_path / "out", report=look)
    names = [f"step-{step:08d}" for step in range(1, 5)]
    assert seen == [[], names[:1], names[:2], names[1:3]]
    assert [p.name for p in checkpoints(tmp_path / "out")] == names[2:]
    assert not list((tmp_path / "out").glob("*.part"))


def test_no_checkpoint_goes_before_the_next_is_on_the_disk(tmp_path, photos, monkeypatch):
    """A power cut may undo whatever was not synced: every file, their folder, the folder that names it."""
    synced, removed = [], []
    real_sync, real_remove = os.fsync, shutil.rmtree

    def sync(descriptor):
        synced.append(os.readlink(f"/proc/self/fd/{descriptor}"))
        real_sync(descriptor)

    def remove(folder, **options):
        removed.append((Path(folder).name, set(synced)))
        real_remove(folder, **options)

    monkeypatch.setattr(os, "fsync", sync)
    monkeypatch.setattr(shutil, "rmtree", remove)
    out = tmp_path / "out"
    train(run_config(photos, {"schedule.steps": 3, "schedule.checkpoint_seconds": 0}), out)
    ((name, done),) = removed
    assert name == "step-00000001"
    assert {str(out), str(out / "step-00000003.part")} <= done
    assert sum("step-00000003.part/.kithkin-" in path for path in done) == len(TENSORS) + 1


# It refuses


def test_a_new_run_may_start_from_other_weights(tmp_path, photos):
    first = train(run_config(photos, {"schedule.steps": 2}), tmp_path / "first")
    still = {"schedule.steps": 1, "schedule.lr": 1e-30, "schedule.final_lr": 0.0, "optimizer.weight_decay": 0.0}
    second = train(run_config(photos, still), tmp_path / "second", init=first)
    for a, b in zip(read_model(first).parameters(), read_model(second).parameters(), strict=True):
        assert torch.equal(a, b)
    regrouped = {**still, "model.k": 2, "model.hash_features": "centered"}  # no parameter depends on these
    third = train(run_config(photos, regrouped), tmp_path / "third", init=first)
    assert read_model(third).config.hash_features == "centered"
    assert all(map(torch.equal, read_model(first).parameters(), read_model(third).parameters()))
    wider = train(run_config(photos, {**still, "model.width": 12}), tmp_path / "fourth", init=first)
    assert torch.equal(read_model(wider).stem.conv1.weight[:8], read_model(first).stem.conv1.weight)
    with pytest.raises(InputError, match="of another network: width = 12, more than 8"):
        train(run_config(photos), tmp_path / "fifth", init=wider)


def test_a_run_can_not_end_before_where_it_is(tmp_path, photos):
    train(run_config(photos, {"schedule.steps": 3}), tmp_path / "out")
    with pytest.raises(InputError, match="at step 3, beyond the 2"):
        train(run_config(photos, {"schedule.steps": 2}), tmp_path / "out", resume=True)


def test_a_damaged_checkpoint_is_named(tmp_path, photos):
    train(run_config(photos, {"schedule.steps": 1}), tmp_path / "out")
    (checkpoints(tmp_path / "out")[-1] / "run.json").write_text("{", encoding="utf-8")
    with pytest.raises(CheckpointError, match="step-00000001 is damaged"):
        train(run_config(photos, {"schedule.steps": 2}), tmp_path / "out", resume=True)


@pytest.mark.parametrize("damaged", ["run.json", "model.safetensors"])
def test_a_run_goes_on_from_the_checkpoint_before_a_damaged_one(tmp_path, photos, often, damaged):
    config = run_config(photos, {"schedule.steps": 4, "schedule.checkpoint_seconds": 0})
    train(config, tmp_path / "whole")
    train(config, tmp_path / "parts", report=at_step(3, terminate))
    (tmp_path / "parts/step-00000003" / damaged).write_bytes(b"")
    with pytest.raises(CheckpointError, match="step-00000003.*; remove it, and the run goes on from step-00000002"):
        train(config, tmp_path / "parts", resume=True)
    shutil.rmtree(tmp_path / "parts/step-00000003")
    train(config, tmp_path / "parts", resume=True)
    assert_same_run(tmp_path / "whole", tmp_path / "parts")


def test_the_folder_of_a_run_can_not_be_a_file(tmp_path, photos):
    (tmp_path / "out").write_text("precious", encoding="utf-8")
    with pytest.raises(InputError, match="can't be the folder of a run"):
        train(run_config(photos), tmp_path / "out")


def test_no_gpu_is_reseeded(tmp_path, photos, monkeypatch):
    monkeypatch.setattr(torch.cuda, "manual_seed_all", lambda seed: pytest.fail("the global state of the GPUs"))
    train(run_config(photos, {"schedule.steps": 1}), tmp_path / "out")


def test_a_run_is_not_overwritten(tmp_path, photos):
    config = run_config(photos, {"schedule.steps": 2})
    final = train(config, tmp_path / "out")
    before = final.read_bytes()
    with pytest.raises(InputError, match="holds a run at step-00000002.*`resume`"):
        train(config, tmp_path / "out")
    assert final.read_bytes() == before


@pytest.mark.parametrize("resume", [False, True])
def test_what_is_left_of_a_finished_run_is_not_replaced(tmp_path, photos, resume):
    final = train(run_config(photos, {"schedule.steps": 2}), tmp_path / "out")
    for checkpoint in checkpoints(tmp_path / "out"):
        shutil.rmtree(checkpoint)
    before = [path.read_bytes() for path in (final, tmp_path / "out/log.jsonl")]
    with pytest.raises(InputError, match="holds the log or the weights of a run"):
        train(run_config(photos, {"seed": 3}), tmp_path / "out", resume=resume)
    assert [path.read_bytes() for path in (final, tmp_path / "out/log.jsonl")] == before


def test_a_resumed_run_says_what_is_not_as_before(tmp_path, photos):
    first = train(run_config(photos, {"schedule.steps": 1}), tmp_path / "first")
    train(run_config(photos, {"schedule.steps": 1}), tmp_path / "out")
    count, told = len(list(photos.iterdir())), []
    Image.fromarray(scene(9, 64)).save(photos / "one-more.png")
    again = run_config(photos, {"schedule.steps": 2})
    train(again, tmp_path / "out", resume=True, init=first, report=told.append)
    notes = " ".join(row["note"] for row in told if "note" in row)
    assert f"`init` {first} is for its beginning alone" in notes
    assert f"saw {count} pictures up to step 1 and goes on with {count + 1}" in notes
    told.clear()
    train(run_config(photos, {"schedule.steps": 3}), tmp_path / "out", resume=True, report=told.append)
    assert not any("goes on" in row.get("note", "") for row in told)


def test_a_length_in_epochs_binds_the_batch(tmp_path, photos):
    epochs = {"schedule.steps": 0, "schedule.epochs": 2}
    train(run_config(photos, epochs), tmp_path / "out", minutes=0)
    with pytest.raises(InputError, match=r"another schedule\.batch_size;"):
        train(run_config(photos, {**epochs, "schedule.batch_size": 1}), tmp_path / "out", resume=True)
    train(run_config(photos, epochs), tmp_path / "out", resume=True)
    with pytest.raises(InputError, match=r"raise schedule\.epochs"):
        train(run_config(photos, {**epochs, "schedule.epochs": 1}), tmp_path / "out", resume=True)


def test_a_resumed_run_keeps_its_precision_and_a_slow_one_is_told(tmp_path, photos, monkeypatch):
    config, out, told = run_config(photos, {"precision": "auto", "schedule.steps": 4}), tmp_path / "out", []
    monkeypatch.setattr(training_precision, "multiplies_bfloat16", lambda device: True)
    train(config, out, report=lambda row: (told.append(row), at_step(1, terminate)(row)))
    assert told[0] == {"note": "precision: bfloat16 on cpu, which multiplies bfloat16"}
    monkeypatch.setattr(training_precision, "multiplies_bfloat16", lambda device: False)
    with pytest.warns(UserWarning, match="which has no .* about 10 times as long as in float32; go on"):
        final = train(config, out, resume=True)
    assert json.loads(read_tensors(final)[1]["run"])["precision"] == "bfloat16"


def test_a_run_that_comes_apart_keeps_what_was_before(tmp_path, photos, monkeypatch):
    steps = iter(range(1, 100))
    monkeypatch.setattr(
        training_step,
        "restoration_loss",
        lambda a, b, **rest: (a - b).square().mean() * (math.nan if next(steps) > 3 else 1.0),
    )
    with pytest.raises(KithkinError, match=r"the loss of step 4 isn't finite.*lower schedule\.lr"):
        train(run_config(photos, {"schedule.checkpoint_seconds": 0}), tmp_path / "out")
    last = checkpoints(tmp_path / "out")[-1]
    assert last.name == "step-00000003"
    for part in TENSORS:
        assert all(x.isfinite().all() for x in read_tensors(last / f"{part}.safetensors")[0].values())
    assert not (tmp_path / "out/toy.safetensors").exists()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
def test_a_full_disk_is_named(tmp_path, photos, monkeypatch):
    monkeypatch.setattr(loop, "LOG_EVERY", 2)
    fill = at_step(1, lambda: (tmp_path / "out/log.jsonl").symlink_to("/dev/full"))
    with pytest.raises(CheckpointError, match="the log can't be written"):
        train(run_config(photos), tmp_path / "out", report=fill)
    monkeypatch.setattr(Path, "rename", fail_for_want_of_space)
    with pytest.raises(CheckpointError, match="step-00000001 can't be written"):
        train(run_config(photos, {"schedule.steps": 1}), tmp_path / "other")
    assert checkpoints(tmp_path / "other") == []


def fail_for_want_of_space(*args, **rest):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"seed": 2}, "seed"),
        ({"data.sigma": [0, 9]}, "data.sigma"),
        ({"optimizer.ema_decay": 0.5}, "optimizer.ema_decay"),
        ({"loss.edge_weight": 0.0}, "loss.edge_weight"),
        ({"precision": "bfloat16"}, "precision"),
        ({"model.width": 16, "loss.epsilon": 1e-2}, "model.width, loss.epsilon"),
        ({"schedule.warmup": 3, "schedule.lr": 1e-4}, "schedule.warmup, schedule.lr"),
    ],
    ids=str,
)
def test_a_changed_configuration_is_not_resumed(tmp_path, photos, changes, named):
    train(run_config(photos), tmp_path / "out", minutes=0)
    before = bits_of(checkpoints(tmp_path / "out")[-1])
    with pytest.raises(InputError, match=f"another {named};"):
        train(run_config(photos, changes), tmp_path / "out", resume=True)
    after = bits_of(checkpoints(tmp_path / "out")[-1])
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_a_run_takes_the_backend_it_names_and_is_resumed_with_another(tmp_path, photos):
    train(run_config(photos, {"backend": "blocked"}), tmp_path / "out", minutes=0)
    state = TrainState.create(run_config(photos, {"backend": "reference"}), Ranks())
    take_over(state, tmp_path / "out", run_config(photos, {"backend": "reference"}), True, None)
    layers = [m for m in state.model.modules() if isinstance(m, KNNLocalAttention)]
    assert {layer.backend for layer in layers} == {"reference"}


def test_a_run_of_an_older_recipe_is_resumed(tmp_path, photos, often):
    """Its configuration knows nothing of degradations; the keys that came later have their defaults."""
    train(run_config(photos), tmp_path / "whole")
    train(run_config(photos), tmp_path / "out", report=at_step(5, terminate))
    path = checkpoints(tmp_path / "out")[-1] / "run.json"
    run = json.loads(path.read_text(encoding="utf-8"))
    for key in ("degradation", "degraded_share", "pairs", "pairs_share"):
        del run["config"]["data"][key]
    path.write_text(json.dumps(run), encoding="utf-8")
    train(run_config(photos), tmp_path / "out", resume=True)
    assert_same_run(tmp_path / "whole", tmp_path / "out")


def test_a_run_with_a_degradation_is_resumed_and_not_with_another(tmp_path, photos, often):
    changes = {"data.crop": 24, "data.sigma": None, "data.degradation": {"kind": "camera"}}
    train(run_config(photos, changes), tmp_path / "whole")
    train(run_config(photos, changes), tmp_path / "out", report=at_step(5, terminate))
    with pytest.raises(InputError, match=r"another data\.degradation;"):
        train(run_config(photos, {**changes, "data.degradation.jpeg_share": 0.5}), tmp_path / "out", resume=True)
    train(run_config(photos, changes), tmp_path / "out", resume=True)
    assert_same_run(tmp_path / "whole", tmp_path / "out")
    assert [list(row["psnr"]) for row in log_of(tmp_path / "out") if "psnr" in row] == [["sigma25", "camera"]] * 2


def test_a_run_by_weights_and_a_list_is_resumed_and_not_with_other_weights(tmp_path, photos, often):
    first = sorted(photos.rglob("*.png"))[0]
    (tmp_path / "held.txt").write_text(f"{photos.name}/{first.name}\n")
    changes = {"data.folders": [photos, photos], "data.weights": [1, 3], "data.exclude": tmp_path / "held.txt"}
    config, said = run_config(photos, changes), []
    train(config, tmp_path / "whole", report=said.append)
    assert [row["note"] for row in said if "left out: 2 training pictures" in row.get("note", "")]
    train(config, tmp_path / "out", report=at_step(5, terminate))
    with pytest.raises(InputError, match=r"another data\.weights;"):
        train(run_config(photos, {**changes, "data.weights": [3, 1]}), tmp_path / "out", resume=True)
    train(config, tmp_path / "out", resume=True)
    assert_same_run(tmp_path / "whole", tmp_path / "out")
    assert loop._without_paths(config)["data"]["exclude"] == "held.txt"


def test_length_and_validation_may_change_at_a_resume(tmp_path, photos, often, drawn):
    train(run_config(photos, {"schedule.steps": 4}), tmp_path / "out")
    longer = {"schedule.steps": 8, "validation.every": 4, "validation.sigmas": [50], "name": "longer"}
    assert train(run_config(photos, longer), tmp_path / "out", resume=True) == tmp_path / "out" / "longer.safetensors"
    watched = [row for row in log_of(tmp_path / "out") if "psnr" in row]
    assert [list(row["psnr"]) for row in watched] == [["sigma25"], ["sigma50"]]


def test_crops_may_grow_at_a_resume(tmp_path, photos, often, monkeypatch):
    seen = []

    def degrade(crops, *args):
        seen.append(crops.sides[0].shape[:2])
        return degrade_crops(crops, *args)

    monkeypatch.setattr(batches, "degrade_crops", degrade)
    train(run_config(photos, {"schedule.steps": 2, "data.crop": 16}), tmp_path / "out")
    train(run_config(photos, {"schedule.steps": 4, "schedule.batch_size": 1}), tmp_path / "out", resume=True)
    assert seen == [(2, 16)] * 2 + [(1, 32)] * 2


def test_a_picture_that_is_too_small_ends_the_run_with_its_name(tmp_path, photos):
    Image.fromarray(scene(9, 20)).save(photos / "tiny.png")
    with pytest.raises(InputError, match=r"tiny\.png is 20×20"):
        train(run_config(photos), tmp_path / "out")


def test_a_run_without_data_is_refused(tmp_path, photos):
    with pytest.raises(InputError, match="names no training data"):
        train(run_config(photos, {"data.folders": []}), tmp_path / "out")
    assert not checkpoints(tmp_path / "out")


# What it writes


def test_the_log(tmp_path, photos, often):
    told = []
    train(run_config(photos, {"schedule.steps": 10}), tmp_path / "out", report=told.append)
    rows = log_of(tmp_path / "out", without=())
    assert [(row["step"], *(key for key in ("loss", "psnr") if key in row)) for row in rows] == [
        (4, "loss"),
        (6, "psnr"),
        (8, "loss"),
        (10, "loss"),
        (10, "psnr"),
    ]
    for row in rows:
        if "loss" in row:
            assert set(row) == {"step", "loss", "lr", "crops_per_s", "seconds"}
            assert row["loss"] > 0
            assert row["crops_per_s"] > 0
            schedule = {"steps": 10, "warmup": 2, "lr": 3e-3, "final_lr": 1e-5}
            assert row["lr"] == pytest.approx(learning_rate(row["step"] - 1, **schedule), rel=1e-5)
        else:
            assert list(row["psnr"]) == ["sigma25"]
    assert told[0] == {"note": "precision: float32 on cpu"}
    assert [row for row in told[1:] if "steps" not in row] == rows
    assert [row for row in told if "steps" in row] == [{"step": i, "steps": 10} for i in range(1, 11)]


def test_a_loss_in_the_log_is_the_mean_since_the_last_one(tmp_path, photos, monkeypatch):
    """At a learning rate of (nearly) 0 the network stays the identity, so each loss follows from its batch alone."""
    monkeypatch.setattr(loop, "LOG_EVERY", 3)
    changes = {"schedule.lr": 1e-30, "schedule.final_lr": 0.0, "schedule.steps": 6, "loss.edge_weight": 0.0}
    config = run_config(photos, changes)
    train(config, tmp_path / "out")
    losses = []
    for step in range(6):
        batch = sample_batch(open_folders(config.data), config.data, batch_size=2, seed=1, step=step)
        losses.append(((batch.degraded - batch.target).double() ** 2 + 1e-6).sqrt().mean().item())
    found = [row["loss"] for row in log_of(tmp_path / "out") if "loss" in row]
    assert found == pytest.approx([np.mean(losses[:3]), np.mean(losses[3:])], rel=1e-5)


def test_the_final_weights(tmp_path, photos):
    config = run_config(photos, {"schedule.steps": 3})
    final = train(config, tmp_path / "out")
    tensors, header = read_tensors(final)
    stored = weights_of(tensors)
    assert {tensor.dtype for tensor in stored.values()} == {torch.float16}
    assert json.loads(header["step"]) == 3
    found = parse_config(json.loads(header["run"]), source="the header")
    assert [str(folder) for folder in found.data.folders] == [folder.name for folder in config.data.folders]
    assert found.model_copy(update={"data": config.data, "validation": config.validation}) == config
    assert str(config.data.folders[0].parent) not in header["run"]
    average = read_tensors(checkpoints(tmp_path / "out")[-1] / "average.safetensors")[0]
    assert all(torch.equal(stored[name], average[name].half()) for name in stored)
    assert read_model(final).config == config.network


def test_the_curves(tmp_path, photos, often, drawn):
    train(run_config(photos), tmp_path / "out")
    with Image.open(tmp_path / "out" / "curves.png") as picture:
        assert picture.format == "PNG"
        assert min(picture.size) > 300
        colours = np.unique(np.asarray(picture.convert("RGB")).reshape(-1, 3), axis=0)
    assert len(colours) > 10


def test_curves_without_matplotlib_or_without_rows_are_left_out(tmp_path, monkeypatch):
    log = tmp_path / "log.jsonl"
    assert "no curves.png" in plot_curves(log, tmp_path / "curves.png")
    log.write_text('{"step": 6, "psnr": {"sigma25": 20.0}}\n', encoding="utf-8")
    assert "no curves.png" in plot_curves(log, tmp_path / "curves.png")
    log.write_text('{"step": 6, "loss": 0.1, "lr": 1e-3}\n', encoding="utf-8")
    monkeypatch.setitem(__import__("sys").modules, "matplotlib.figure", None)
    assert "no curves.png" in plot_curves(log, tmp_path / "curves.png")
    assert not (tmp_path / "curves.png").exists()


def test_a_run_without_validation(tmp_path, photos, often):
    config = run_config(photos, {"validation": {"crop": 32, "every": 2}, "schedule.steps": 4})
    assert train(config, tmp_path / "out") is not None
    assert [list(row) for row in log_of(tmp_path / "out")] == [["step", "loss", "lr"]]


def test_a_run_on_pairs(tmp_path, often):
    for side, lift in (("input", 40), ("target", 0)):
        (tmp_path / "pairs" / side).mkdir(parents=True)
        for i in range(3):
            Image.fromarray(scene(i, 40) // 2 + lift).save(tmp_path / "pairs" / side / f"{i}.png")
    changes = {
        "task": "deblur",
        "data": {"kind": "pairs", "folders": [tmp_path / "pairs"], "crop": 32, "cache_gb": 0},
        "validation": {"folder": tmp_path / "pairs", "crop": 32, "every": 20},
        "schedule.steps": 40,
    }
    train(run_config(tmp_path, changes), tmp_path / "out")
    watched = [row["psnr"]["psnr"] for row in log_of(tmp_path / "out") if "psnr" in row]
    identity = -20 * math.log10(40 / 255)
    assert watched[-1] > identity + 3


# The step


def test_the_network_trains_in_training_mode_and_is_watched_in_evaluation_mode(tmp_path, photos, monkeypatch):
    seen = []
    forward = KiT.forward

    def recorded(self, image):
        modes = {module.training for module in self.modules()}
        seen.append((modes, torch.is_grad_enabled(), len(image)))
        return forward(self, image)

    monkeypatch.setattr(KiT, "forward", recorded)
    for ema_decay in (0.9, 0.0):  # without an average the trained network itself is watched
        seen.clear()
        changes = {"schedule.steps": 3, "validation.every": 1, "optimizer.ema_decay": ema_decay}
        train(run_config(photos, changes), tmp_path / str(ema_decay))
        assert seen == [({True}, True, 2), *[({False}, False, 1)] * 5] * 3


def test_rotations_are_redrawn_at_each_step_and_fixed_when_watched(tmp_path, photos, monkeypatch):
    drawn, watched = [], []
    forward = KNNLocalAttention.forward

    def recorded(self, x):
        if self.rotations.numel():
            (drawn if self.training else watched).append(self.rotations.flatten()[:4].clone())
        return forward(self, x)

    monkeypatch.setattr(KNNLocalAttention, "forward", recorded)
    changes = {"schedule.steps": 3, "validation.every": 1, "optimizer.ema_decay": 0.0}
    config = run_config(photos, changes)
    train(config, tmp_path / "out")
    assert len({tuple(x.tolist()) for x in drawn}) == len(drawn) == 6  # 2 blocks, 3 steps
    fixed = [m.rotations.flatten()[:4] for m in KiT(config.network).modules() if isinstance(m, KNNLocalAttention)]
    fixed = {tuple(x.tolist()) for x in fixed if x.numel()}
    assert {tuple(x.tolist()) for x in watched} == fixed


def test_offsets_and_norms_do_not_decay(photos):
    state = TrainState.create(run_config(photos), Ranks())
    decayed, plain = state.optimizers[0].param_groups
    assert (decayed["weight_decay"], plain["weight_decay"]) == (1e-2, 0.0)
    assert {p.ndim for p in plain["params"]} == {1}
    assert min(p.ndim for p in decayed["params"]) == 2
    assert len(decayed["params"]) + len(plain["params"]) == len(list(state.model.parameters()))


def test_muon_takes_the_weights_between_features_and_adamw_the_others(photos):
    state = TrainState.create(run_config(photos, {"optimizer.kind": "muon", "optimizer.update_rms": 0.3}), Ranks())
    muon, adamw = state.optimizers
    names = {id(p): name for name, p in state.model.named_parameters()}
    hidden = [names[id(p)] for group in muon.param_groups for p in group["params"]]
    others = [names[id(p)] for group in adamw.param_groups for p in group["params"]]
    assert sorted(hidden + others) == sorted(names.values())
    assert {"stem.conv2.weight", "encoder.0.0.attention.query_proj.weight", "down.0.conv.weight"} <= set(hidden)
    assert all(name.endswith(".weight") and "depthwise" not in name and "norm" not in name for name in hidden)
    assert {"stem.conv1.weight", "head.conv3.weight", "encoder.0.0.ffn.depthwise.weight"} <= set(others)
    (group,) = muon.param_groups
    assert (group["momentum"], group["weight_decay"], group["update_rms"]) == (0.95, 1e-2, 0.3)


def test_a_checkpoint_without_the_state_of_adamw_for_a_weight_is_damaged(tmp_path, photos):
    """Of a weight that Muon takes it has none; of the others it needs both moments."""
    config = run_config(photos, {"optimizer.kind": "muon", "schedule.steps": 2})
    train(config, tmp_path)
    (folder,) = checkpoints(tmp_path)
    moments, header = read_tensors(folder / "exp_avg_sq.safetensors")
    assert "stem.conv2.weight" not in moments
    del moments["stem.conv1.weight"]
    write_tensors(moments, folder / "exp_avg_sq.safetensors", header)
    with pytest.raises(CheckpointError, match=r"no optimiser state for stem\.conv1\.weight"):
        train(config, tmp_path, resume=True)


def test_the_gradient_is_clipped(tmp_path, photos, monkeypatch):
    norms = []
    step = torch.optim.AdamW.step

    def recorded(self, *args, **kwargs):
        gradients = [p.grad.flatten() for group in self.param_groups for p in group["params"]]
        norms.append(torch.cat(gradients).norm().item())
        return step(self, *args, **kwargs)

    monkeypatch.setattr(torch.optim.AdamW, "step", recorded)
    for clip in (0.0, 1e-3):
        norms.clear()
        train(run_config(photos, {"schedule.steps": 3, "optimizer.grad_clip": clip}), tmp_path / str(clip))
        assert len(norms) == 3
        assert all(norm <= 1.001e-3 for norm in norms) if clip else all(norm > 1e-3 for norm in norms)


def test_the_average_by_hand(photos):
    """A moving average whose decay grows as (1 + n) / (10 + n) up to the one that is asked for."""
    state = TrainState.create(run_config(photos), Ranks())
    weight, average = state.model.head.conv3.weight, state.average.head.conv3.weight
    expected = 0.0
    for state.step in range(1, 200):
        with torch.no_grad():
            weight.fill_(state.step)
        state.update_average(state.share_of_average(0.9))
        decay = min(0.9, (1 + state.step) / (10 + state.step))
        expected = decay * expected + (1 - decay) * state.step
        assert average.mean().item() == pytest.approx(expected, rel=1e-5)
    assert state.average is not state.model


def test_without_a_decay_no_average_is_kept(photos):
    state = TrainState.create(run_config(photos, {"optimizer.ema_decay": 0.0}), Ranks())
    assert state.average is state.model


def test_the_start_follows_from_the_seed_alone(photos):
    weights = []
    for seed, outer in ((1, 5), (1, 6), (2, 5)):
        torch.manual_seed(outer)
        weights.append(TrainState.create(run_config(photos, {"seed": seed}), Ranks()).model.stem.conv1.weight)
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


# The schedule


def test_the_learning_rate_by_hand():
    rates = [learning_rate(step, steps=11, warmup=4, lr=1.0, final_lr=0.1) for step in range(11)]
    assert rates[:4] == [0.25, 0.5, 0.75, 1.0]
    assert rates[4] == pytest.approx(1.0)
    assert rates[7] == pytest.approx(0.55)  # half way between 4 and 10
    assert rates[10] == pytest.approx(0.1)
    assert all(a > b for a, b in itertools.pairwise(rates[4:]))


@pytest.mark.parametrize(("steps", "warmup"), [(1, 0), (1, 1), (5, 0), (5, 4), (5, 5), (5, 9)])
def test_the_learning_rate_of_short_runs(steps, warmup):
    rates = [learning_rate(step, steps=steps, warmup=warmup, lr=1.0, final_lr=0.1) for step in range(steps + 1)]
    assert all(0.1 <= rate <= 1.0 for rate in rates)


# Validation


def test_validation_by_hand(photos):
    """Noise with seed 0 before every picture, the central crop, clamped and quantised output, mean over pictures."""
    config = run_config(photos, {"validation.sigmas": [15, 50], "validation.crop": 24})
    model = KiT(config.network)
    found = validate(model, open_folders(config.data), config, Ranks())
    for sigma in (15, 50):
        scores = []
        for i in range(5):
            clean = scene(i, 40)[8:32, 8:32] / 255
            np.random.seed(0)
            noisy = (clean + np.random.normal(0, sigma / 255, clean.shape)).clip(0, 1)
            error = np.mean((np.rint(noisy * 255) - np.rint(clean * 255)) ** 2)
            scores.append(10 * math.log10(255**2 / error))
        assert found[f"sigma{sigma}"] == pytest.approx(np.mean(scores), abs=0.01)
    assert not model.training
    assert set(found) == {"sigma15", "sigma50"}


def test_validation_of_a_degradation(photos, monkeypatch):
    """Each picture from a seed of its own, whatever the share in training; the margin comes from the picture."""
    seeds = []

    def halve(clean, numbers, settings):
        assert clean.shape == (1, 3, 30, 30)
        inside = clean[..., 3:-3, 3:-3]
        return inside / 2, inside * 0.75

    def seen(draws, size, settings):
        seeds.append(draws.seeds)

    monkeypatch.setitem(DEGRADATIONS, "camera", Degradation(seen, halve, margin=lambda settings: 3))
    changes = {"data.degradation": {"kind": "camera"}, "data.degraded_share": 0.2, "validation.sigmas": []}
    config = run_config(photos, {**changes, "validation.crop": 24})
    found = validate(KiT(config.network), open_folders(config.data), config, Ranks())
    scores = []
    for i in range(5):
        clean = scene(i, 40)[8:32, 8:32].astype(np.float64)
        error = np.mean((np.rint(clean / 2) - np.rint(clean * 0.75)) ** 2)
        scores.append(10 * math.log10(255**2 / error))
    assert found == {"camera": pytest.approx(np.mean(scores), abs=0.1)}
    assert [list(x) for x in seeds] == [list(as_draws(torch.Generator().manual_seed(i), 1).seeds) for i in range(5)]


def test_validation_of_every_noise_is_the_same_whatever_the_run(photos):
    found = []
    for noise, seed in (({}, 1), ({"white": 0.0, "gray_share": 1.0, "sigma": [0, 5]}, 2)):
        changes = {"data.sigma": None, "data.degradation": {"kind": "noise", **noise}, "validation.sigmas": []}
        config = run_config(photos, {**changes, "seed": seed, "validation.crop": 24})
        torch.manual_seed(0)
        found.append(validate(KiT(config.network), open_folders(config.data), config, Ranks()))
    assert list(found[0]) == list(NOISES)
    assert found[0] == found[1]
    assert len(set(found[0].values())) == len(NOISES)
    config = run_config(photos, {"validation.sigmas": [25], "validation.crop": 24})
    torch.manual_seed(0)
    published = validate(KiT(config.network), open_folders(config.data), config, Ranks())
    assert found[0]["white25"] == published["sigma25"]


def test_validation_of_pairs(tmp_path):
    for side, lift in (("input", 10), ("target", 0)):
        (tmp_path / side).mkdir()
        Image.fromarray(scene(0, 30) // 2 + lift).save(tmp_path / side / "1.png")
    changes = {"data": {"kind": "pairs", "folders": [tmp_path], "crop": 16, "cache_gb": 0}, "validation.sigmas": []}
    config = run_config(tmp_path, changes)
    found = validate(KiT(config.network), open_folders(config.data), config, Ranks())
    assert found == {"psnr": pytest.approx(-20 * math.log10(10 / 255), abs=1e-3)}


def test_a_picture_smaller_than_the_validation_crop_is_taken_whole(photos):
    config = run_config(photos, {"validation.crop": 1000})
    small = run_config(photos, {"validation.crop": 40})
    scores = [validate(KiT(c.network), open_folders(c.data), c, Ranks()) for c in (config, small)]
    assert scores[0] == scores[1]


def test_psnr_rises_with_less_noise(photos):
    config = run_config(photos, {"validation.sigmas": [50, 25, 15]})
    found = validate(KiT(config.network), open_folders(config.data), config, Ranks())
    assert list(found) == ["sigma50", "sigma25", "sigma15"]
    assert list(found.values()) == sorted(found.values())
    image = torch.rand(1, 3, 8, 8)
    assert psnr(image, image, protocol="rgb") == math.inf
