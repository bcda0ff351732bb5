"""What is trained on and measured with: folders of pictures, the field's data sets, degradations, sampling.

What works on tensors is imported when it is first used: the processes that cut crops need no PyTorch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from kithkin.data.catalog import Card, find_card, list_cards
from kithkin.data.check import CheckReport, Finding, check_dataset
from kithkin.data.dnd import write_dnd_bundle
from kithkin.data.folders import Mixed, Pairs, Photos, open_folders, open_training_data
from kithkin.data.layouts import find_within, open_samples
from kithkin.data.pack import PackOptions, PackReport, pack_photos
from kithkin.data.prepare import CutOptions, CutReport, cut_crops
from kithkin.data.samples import Sample, Samples
from kithkin.data.shards import write_indexes
from kithkin.data.sidd import write_sidd_results

if TYPE_CHECKING:
    from kithkin.data.degrade import (
        DEGRADATIONS,
        Degradation,
        benchmark_noise,
        camera_noise,
        degrade_photos,
        gaussian_noise,
        margin,
    )
    from kithkin.data.sampling import Batch, Crops, degrade_crops, draw_crops, sample_batch, share_of_rank
    from kithkin.data.store import PhotoStore

_HOME = {
    "DEGRADATIONS": "degrade",
    "Batch": "sampling",
    "Crops": "sampling",
    "Degradation": "degrade",
    "PhotoStore": "store",
    "benchmark_noise": "degrade",
    "camera_noise": "degrade",
    "degrade_crops": "sampling",
    "degrade_photos": "degrade",
    "draw_crops": "sampling",
    "gaussian_noise": "degrade",
    "margin": "degrade",
    "sample_batch": "sampling",
    "share_of_rank": "sampling",
}

__all__ = [
    "DEGRADATIONS",
    "Batch",
    "Card",
    "CheckReport",
    "Crops",
    "CutOptions",
    "CutReport",
    "Degradation",
    "Finding",
    "Mixed",
    "PackOptions",
    "PackReport",
    "Pairs",
    "PhotoStore",
    "Photos",
    "Sample",
    "Samples",
    "benchmark_noise",
    "camera_noise",
    "check_dataset",
    "cut_crops",
    "degrade_crops",
    "degrade_photos",
    "draw_crops",
    "find_card",
    "find_within",
    "gaussian_noise",
    "list_cards",
    "margin",
    "open_folders",
    "open_samples",
    "open_training_data",
    "pack_photos",
    "sample_batch",
    "share_of_rank",
    "write_dnd_bundle",
    "write_indexes",
    "write_sidd_results",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
    globals()[name] = value
    return value
