"""Data to train on and to measure with: folders of pictures, published data sets, degradations, sampling.

Modules that work on tensors are imported when first used, because processes that cut crops need no PyTorch.
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
        DEGRADATIONS as DEGRADATIONS,
        NOISES as NOISES,
        Degradation as Degradation,
        benchmark_noise as benchmark_noise,
        camera_noise as camera_noise,
        degrade_photos as degrade_photos,
        gaussian_noise as gaussian_noise,
        margin as margin,
        noise_example as noise_example,
    )
    from kithkin.data.sampling import (
        Batch as Batch,
        Crops as Crops,
        degrade_crops as degrade_crops,
        draw_crops as draw_crops,
        sample_batch as sample_batch,
        share_of_rank as share_of_rank,
    )
    from kithkin.data.store import PhotoStore as PhotoStore

_MODULE_OF = {
    "DEGRADATIONS": "degrade",
    "NOISES": "degrade",
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
    "noise_example": "degrade",
    "sample_batch": "sampling",
    "share_of_rank": "sampling",
}

__all__ = [
    "Card",
    "CheckReport",
    "CutOptions",
    "CutReport",
    "Finding",
    "Mixed",
    "PackOptions",
    "PackReport",
    "Pairs",
    "Photos",
    "Sample",
    "Samples",
    "check_dataset",
    "cut_crops",
    "find_card",
    "find_within",
    "list_cards",
    "open_folders",
    "open_samples",
    "open_training_data",
    "pack_photos",
    "write_dnd_bundle",
    "write_indexes",
    "write_sidd_results",
    *_MODULE_OF,
]


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_MODULE_OF[name]}"), name)
    globals()[name] = value
    return value
