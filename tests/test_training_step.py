"""One step of training, alone: without files, and without waiting for the device."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import kithkin.training.precision as precision
from kithkin.config import RunConfig, list_recipes, load_config, parse_config
from kithkin.data.sampling import Batch
from kithkin.ops import PatchGroups
from kithkin.training.graph import WARM_UP
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


@pytest.mark.parametrize(
    ("kind", "dtype", "backend"),
    [("adamw", "float32", "blocked"), ("muon", "bfloat16", None), ("muon", "bfloat16", "blocked")],
)
def test_a_step_waits_for_no_number(read, monkeypatch, kind, dtype, backend):
    monkeypatch.setattr(PatchGroups, "_check_values", lambda groups: None)  # looks at the values on CPUs alone
    step = TrainingStep(config_of(**{"optimizer.kind": kind, "precision": dtype}))
    step.state.model.set_backend(backend)
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


# As a graph


class Tape(TorchDispatchMode):
    """Operations as they run, on the tensors they ran on: what a CUDA graph keeps, and nothing that Python computes."""

    def __init__(self):
        super().__init__()
        self.calls = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        out = function(*args, **kwargs)
        self.calls.append((function, args, kwargs, out))
        return out

    def replay(self):
        for function, args, kwargs, out in self.calls:
            if function.is_view:
                continue  # reads the memory that its base had at the capture
            found = function(*args, **kwargs)
            for old, new in zip(tree_leaves(out), tree_leaves(found), strict=True):
                if isinstance(old, torch.Tensor) and old.data_ptr() != new.data_ptr():
                    old.copy_(new)


class TapeRecorder:
    """A graph of the CPU. Recording runs the step, so what it moved is put back: a capture computes nothing."""

    def __init__(self):
        self.captures, self.replays = 0, 0
        self.step = None

    def warm_up(self, function):
        return function()

    def memory(self):
        state = self.step.state
        moments = [x for o in state.optimizers for s in o.state.values() for x in s.values()]
        return [*state.model.parameters(), *state.average.parameters(), *moments]

    @torch.no_grad()
    def capture(self, function):
        self.captures += 1
        before = [x.clone() for x in self.memory()]
        tape = Tape()
        with tape, torch.enable_grad():
            loss = function()
        for x, old in zip(self.memory(), before, strict=True):
            x.copy_(old)

        @torch.no_grad()
        def replay():
            self.replays += 1
            tape.replay()

        return replay, loss


def ran(config, recorder=None, sizes=(32,) * 8, **options):
    """The step after some batches, and what it noted."""
    notes = []
    step = TrainingStep(config, recorder=recorder, note=notes.append, **options)
    if recorder is not None:
        recorder.step = step
    for seed, size in enumerate(sizes):
        step.run([batch_of(seed, size), batch_of(100 + seed, size)])
    return step, notes


class Refuses(TapeRecorder):
    def capture(self, function):
        raise RuntimeError("operation not permitted when stream is capturing\nat some line")


def assert_same(found, wanted):
    """Weights, average and losses of two steps, bit for bit."""
    numbers = [
        [*step.state.losses, *step.state.model.parameters(), *step.state.average.parameters()]
        for step in (found, wanted)
    ]
    assert [i for i, (a, b) in enumerate(zip(*numbers, strict=True)) if not torch.equal(a, b)] == []


@pytest.mark.parametrize("kind", ["adamw", "muon"])
def test_a_captured_step_moves_as_one_that_is_not(kind):
    """Through warm-up, capture and replay, with a learning rate, rotations and a share of the average that change."""
    config = config_of(**{"optimizer.kind": kind})
    recorder = TapeRecorder()
    (found, notes), (wanted, _) = ran(config, recorder), ran(config, Refuses())
    assert (recorder.captures, recorder.replays) == (1, 8 - WARM_UP)
    assert notes == []
    assert found.state.step == wanted.state.step == 8
    assert_same(found, wanted)


def test_parts_of_another_size_are_captured_anew():
    sizes = (32,) * 5 + (24,) * 5
    recorder = TapeRecorder()
    (found, notes), (wanted, _) = ran(config_of(), recorder, sizes), ran(config_of(), Refuses(), sizes)
    assert (recorder.captures, recorder.replays) == (2, 10 - 2 * WARM_UP)
    assert notes == []
    assert_same(found, wanted)


def test_a_step_that_cannot_be_captured_runs_all_the_same_and_says_so():
    (found, notes), (wanted, _) = ran(config_of(), Refuses()), ran(config_of())
    assert len(notes) == 1
    assert "can't be captured as a CUDA graph (operation not permitted when stream is capturing);" in notes[0]
    # Tensors hold what changes from step to step in float32, which Python has in float64.
    torch.testing.assert_close(torch.stack(found.state.losses), torch.stack(wanted.state.losses), rtol=1e-4, atol=0)


# Its precision


@pytest.mark.parametrize(("able", "expected"), [(True, "bfloat16"), (False, "float32")])
def test_auto_is_bfloat16_where_the_device_multiplies_it(monkeypatch, able, expected):
    monkeypatch.setattr(precision, "multiplies_bfloat16", lambda device: able)
    step = TrainingStep(config_of(**{"precision": "auto", "optimizer.kind": "muon"}))
    assert step.config.precision == expected
    assert step.state.optimizers[0].dtype == getattr(torch, expected)
    assert precision.settled(config_of(precision="float32"), "cpu").precision == "float32"


def test_a_gpu_multiplies_bfloat16_from_compute_capability_8_on(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    for capability, able in (((7, 5), False), ((8, 0), True), ((9, 0), True)):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device, found=capability: found)
        assert precision.multiplies_bfloat16("cuda:1") is able
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert not precision.multiplies_bfloat16("cuda")
    assert not precision.multiplies_bfloat16("mps")


def test_every_recipe_leaves_the_precision_to_the_device():
    assert {load_config(name).precision for name in list_recipes()} == {"auto"}


def test_tf32_is_put_back():
    before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32

    def interrupted():
        with precision.tf32(torch.device("cuda")):
            assert torch.get_float32_matmul_precision() == "high"
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert (torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32) == before
    with precision.tf32(torch.device("cpu")):
        assert torch.get_float32_matmul_precision() == before[0]
