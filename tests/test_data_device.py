"""Batches on a device: as many operations for a large batch as for a small one, none of which the host waits for."""

from collections import Counter

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from kithkin.config import DataConfig
from kithkin.data.sampling import degrade_crops, draw_crops, plan_crops
from kithkin.data.store import PhotoStore
from kithkin.data.transfer import _arrays

# What only says how memory is looked at, or sets some aside, starts nothing on a device.
VIEWS = (
    *("view", "_unsafe_view", "slice", "select.int", "unsqueeze", "expand", "permute", "transpose", "t.", "split"),
    *("unbind", "alias", "detach", "lift_fresh", "empty", "new_empty"),
)
KINDS = {
    "gaussian": {"sigma": (0, 50)},
    "correlated": {"degradation": {"kind": "correlated"}},
    "camera": {"degradation": {"kind": "camera"}},
    "noise": {"degradation": {"kind": "noise"}},
    "rain": {"degradation": {"kind": "rain"}},
    "blur": {"degradation": {"kind": "blur"}},
    "augmented": {
        "sigma": (0, 50),
        "augment": {"permuted_share": 0.5, "exposure": 0.5, "saturation": (0.5, 1.5), "rescaled_share": 0.5},
    },
    "mixed": {"sigma": (0, 50), "pairs": ("pairs",), "pairs_share": 0.3},
}


class Counted(TorchDispatchMode):
    """Counts the operations that start something."""

    def __init__(self):
        super().__init__()
        self.operations = Counter()

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        name = str(operation).removeprefix("aten.")
        if not name.startswith(VIEWS):
            self.operations[name] += 1
        return operation(*args, **(kwargs or {}))


def setting(kind, device="cpu"):
    rng = np.random.default_rng(0)
    pictures = [rng.integers(0, 256, (130, 120, 3), dtype=np.uint8) for _ in range(3)]
    config = DataConfig(kind="photos", folders=("photos",), crop=48, cache_gb=0, **KINDS[kind])
    return config, PhotoStore(pictures, mixed=[(x, 255 - x) for x in pictures], device=device)


def operations(config, store, batch_size, step=0):
    """Of the part that runs on the store's device, by name."""
    crops = draw_crops(store, config, batch_size=batch_size, seed=0, step=step)
    plan = plan_crops(crops, config)
    with Counted() as counted:
        degrade_crops(crops, config, str(store.device), plan)
    return counted.operations


def branches(config, store, batch_size, step):
    """How many of the ways to degrade a crop this batch takes: the groups that are not empty."""
    crops = draw_crops(store, config, batch_size=batch_size, seed=0, step=step)
    return sum(len(x) > 0 for x in _arrays(plan_crops(crops, config)))


@pytest.mark.parametrize("kind", KINDS)
def test_a_large_batch_takes_as_many_operations_as_a_small_one(kind):
    """On the device without memory, where what asks for a value (an item, a mask's places, a copy back) is an error.
    At most 1.3 times as many as for the one crop that takes most, of the ways there are to degrade one; where a batch
    has crops of several kinds, than for one with one of each."""
    config, store = setting(kind, "meta")
    small = 4 if kind in ("mixed", "noise") else 1
    few = operations(config, store, small, max(range(24), key=lambda step: branches(config, store, small, step)))
    many, more = (operations(config, store, size) for size in (64, 128))
    assert many.total() <= 1.3 * few.total()
    assert more.total() <= many.total() + 2  # a group of all needs no row of groups
    assert many.total() < (600 if kind == "noise" else 300)  # it has a camera's among its kinds, and a second JPEG
    waiting = ("_local_scalar_dense", "nonzero", "masked_select", "unique", "item", "equal", "is_nonzero")
    assert not [name for name in more if name.startswith(waiting)]


def test_what_waits_would_be_found():
    config, store = setting("gaussian", "meta")
    batch = degrade_crops(draw_crops(store, config, batch_size=2, seed=0, step=0), config, "meta")
    for wait in (lambda x: x.sum().item(), lambda x: x.cpu(), lambda x: x[x > 0], torch.nonzero):
        with pytest.raises((RuntimeError, NotImplementedError)):
            wait(batch.degraded)


@pytest.mark.parametrize("kind", KINDS)
def test_a_crop_does_not_depend_on_its_fellows_bit_for_bit(kind):
    """Crop by crop, in fours, and all eight together."""
    config, store = setting(kind)
    for step in range(2):
        whole, *shares = (
            degrade_crops(draw_crops(store, config, batch_size=8, seed=3, step=step, share=share), config)
            for share in (None, range(4), range(4, 8), *(range(i, i + 1) for i in range(8)))
        )
        for parts in (shares[:2], shares[2:]):
            assert torch.equal(torch.cat([part.degraded for part in parts]), whole.degraded)
            assert torch.equal(torch.cat([part.target for part in parts]), whole.target)
