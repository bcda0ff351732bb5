"""The batches of a run: where its pictures are kept, and what is drawn and read beside the training step."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

import torch

from kithkin.config import DataConfig, RunConfig
from kithkin.data import Mixed, Photos, open_training_data
from kithkin.data.ahead import drawn_ahead
from kithkin.data.sampling import Batch, Crops, Dataset, Plan, degrade_crops, draw_crops, plan_crops, share_of_rank
from kithkin.data.store import PhotoStore, store_on
from kithkin.training.distributed import Ranks


def open_batches(config: DataConfig, device: str) -> tuple[Dataset, list[str]]:
    """What a run trains on, and sentences for its owner: what is left out and, on a GPU, where the pictures are kept:
    in its memory, where they fit."""
    dataset = open_training_data(config)
    photos = dataset.photos if isinstance(dataset, Mixed) else dataset
    notes = []
    if isinstance(photos, Photos) and photos.excluded:
        notes.append(f"left out: {photos.excluded:,} training pictures that {config.exclude} names")
    if torch.device(device).type == "cpu":
        return dataset, notes
    store = store_on(device, dataset, config.cache_gb)
    if isinstance(store, PhotoStore):
        return store, [*notes, f"the training pictures are decoded into the memory of {device}"]
    return dataset, [*notes, f"the training pictures are read beside the training: {store}"]


@contextmanager
def prefetched(
    dataset: Dataset, config: RunConfig, first: int, steps: int, ranks: Ranks
) -> Iterator[Iterator[list[Batch]]]:
    """This process's share of the batches of the steps from ``first`` on, each in the parts that are accumulated;
    what describes them is drawn, and their files are read, a few steps ahead."""
    share = share_of_rank(config.schedule.batch_size, ranks.rank, ranks.world_size)
    workers = 0 if isinstance(dataset, PhotoStore) else config.data.workers
    with drawn_ahead(partial(_draw, dataset, config, share), range(first, steps), workers) as parts:
        yield ([degrade_crops(crops, config.data, ranks.device, plan) for crops, plan in drawn] for drawn in parts)


def _draw(dataset: Dataset, config: RunConfig, share: range, step: int) -> list[tuple[Crops, Plan]]:
    size = config.schedule.batch_size
    crops = draw_crops(dataset, config.data, batch_size=size, seed=config.seed, step=step, share=share)
    return [(part, plan_crops(part, config.data)) for part in crops.parts(config.schedule.accumulate)]
