"""One step of training, alone: without files, and without waiting for the device."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from kithkin.config import RunConfig, parse_config
from kithkin.data import Batch
from kithkin.training.step import TrainingStep

# What brings a number from the device to Python, or must see the numbers to know the size of what comes out. On a CPU
# `Tensor.cpu` and its like are no operation, so they are watched as methods.
WAITS = {"_local_scalar_dense", "item", "nonzero", "masked_select", "is_nonzero", "equal", "unique_dim", "_unique2"}
READS = ("cpu", "tolist", "numpy")


class Seen(TorchDispatchMode):
    """The operations that run under it."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.names.append(function.overloadpacket.__name__)
        return function(*args, **(kwargs or {}))


@pytest.fixture
def read(monkeypatch):
    """The names of the methods that read a tensor, as they are called."""
    calls = []

    def recorded(name, method):
        return lambda *args, **options: (calls.append(name), method(*args, **options))[1]

    for name in READS:
        monkeypatch.setattr(torch.Tensor, name, recorded(name, getattr(torch.Tensor, name)))
    return calls


def config_of(**changes) -> RunConfig:
    values = {
        "name": "toy",
        "task": "denoise",
        "seed": 1,
        "precision": "float32",
        "model": {"width": 16, "depth": 1, "n_hashes": 1, "n_stages": 1, "k": 2},
        "data": {"kind": "photos", "folders": [], "crop": 32, "sigma": [10, 50], "cache_gb": 1},
        "validation": {"sigmas": [25], "crop": 32, "every": 6},
        "schedule": {"batch_size": 2, "steps": 12, "epochs": 0, "warmup": 2, "lr": 3e-3, "final_lr": 1e-5},
        "optimizer": {"betas": [0.9, 0.99], "weight_decay": 1e-2, "grad_clip": 1.0, "ema_decay": 0.9},
        "loss": {"edge_weight": 0.05, "epsilon": 1e-3},
    }
    return parse_config(values, changes, source="the test")


def batch_of(seed, size=32, count=2) -> Batch:
    target = torch.rand(count, 3, size, size, generator=torch.Generator().manual_seed(seed))
    return Batch(target + 0.1 * target.roll(1, 2), target)


def test_a_step_runs_without_a_data_set_and_without_files():
    step = TrainingStep(config_of())
    before = [p.clone() for p in step.state.model.parameters()]
    for seed in range(2):
        step.run([batch_of(seed)])
    assert step.state.step == 2
    assert any(not torch.equal(p, q) for p, q in zip(step.state.model.parameters(), before, strict=True))
    assert len(step.state.losses) == 2
    assert torch.stack(step.state.losses).isfinite().all()


@pytest.mark.parametrize("kind", ["adamw", "muon"])
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_step_waits_for_no_number(read, kind, precision):
    step = TrainingStep(config_of(**{"optimizer.kind": kind, "precision": precision}))
    step.run([batch_of(0)])
    read.clear()
    with Seen() as seen:
        step.run([batch_of(1), batch_of(2)])
    assert "convolution" in seen.names
    assert WAITS & set(seen.names) == set()
    assert read == []
    with Seen() as seen:
        step.state.finite_losses()  # what reads them is seen
    assert WAITS & set(seen.names)
    assert read
