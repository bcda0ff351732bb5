"""Data to train on and to measure with: folders of pictures and published data sets.

What works on tensors is imported from ``degrade``, ``sampling`` and ``store``, because processes that cut crops need no
PyTorch.
"""

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
]
