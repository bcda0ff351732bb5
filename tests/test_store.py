"""Pictures in one memory: the same crops as from files, gathered together."""

import tarfile

import numpy as np
import pytest
import torch
from test_data import chart, of_pairs, of_photos, pairs, photos

from kithkin.data import open_training_data
from kithkin.data.sampling import draw_crops, sample_batch, share_of_rank
from kithkin.data.store import PhotoStore, store_on
from kithkin.errors import ImageError, InputError
from kithkin.training.batches import open_batches

CAMERA = {"kind": "camera"}


def configs(tmp_path):
    folder, others = photos(tmp_path), pairs(tmp_path)
    mixed = {"pairs": (others,), "pairs_share": 0.4}
    return {
        "photos": of_photos(folder),
        "pairs": of_pairs(others),
        "weighted": of_photos("none", folders=(folder, folder), weights=(1, 4)),
        "mixed": of_photos(folder, **mixed),
        "mixed and degraded": of_photos(folder, sigma=(0, 50), degradation=CAMERA, degraded_share=0.5, **mixed),
    }


@pytest.mark.parametrize("kind", ["photos", "pairs", "weighted", "mixed", "mixed and degraded"])
def test_a_store_gives_the_crops_of_the_files_bit_for_bit(tmp_path, kind):
    config = configs(tmp_path)[kind]
    dataset = open_training_data(config)
    store = store_on("cpu", dataset, 1)
    assert len(store) == len(dataset) == (10 if kind == "weighted" else 5)
    for step in range(4):
        read, gathered = (sample_batch(x, config, batch_size=8, seed=3, step=step) for x in (dataset, store))
        assert torch.equal(read.degraded, gathered.degraded)
        assert torch.equal(read.target, gathered.target)
        parts = [sample_batch_of(store, config, step, share_of_rank(8, rank, 2)).target for rank in range(2)]
        assert torch.equal(torch.cat(parts), read.target)


def sample_batch_of(dataset, config, step, share):
    from kithkin.data.sampling import degrade_crops

    crops = draw_crops(dataset, config, batch_size=8, seed=3, step=step, share=share)
    return degrade_crops(crops, config)


def test_pictures_of_any_size_from_a_list():
    """Each pixel names its picture and its place, so that a crop shows where it was cut."""
    pictures = [chart(i, 20 + 3 * i, 17 + 5 * i) for i in range(6)]
    config = of_photos("none", sigma=(0, 0))
    store = PhotoStore(pictures)
    tops = set()
    for step in range(30):
        for crop in (sample_batch(store, config, batch_size=4, seed=0, step=step).target * 255).round().int():
            index, rows, columns = int(crop[0, 0, 0]), crop[1], crop[2]
            assert (crop[0] == index).all()
            along = (rows[0] == rows[0, 0]).all()  # else it lies on its side
            down, right = (rows, columns) if along else (rows.T, columns.T)
            assert (down.diff(dim=0).abs() == 1).all()
            assert (right.diff(dim=1).abs() == 1).all()
            assert down.max() < pictures[index].shape[0]
            assert right.max() < pictures[index].shape[1]
            tops.add((index, int(down.min())))
    assert len(tops) > 40


def test_what_does_not_fit_is_said_and_read_as_before(tmp_path):
    config = of_photos(photos(tmp_path))
    dataset = open_training_data(config)
    assert isinstance(store_on("cpu", dataset, 5 * chart(0).nbytes / 1e9), PhotoStore)
    said = store_on("cpu", dataset, 4.9 * chart(0).nbytes / 1e9)
    assert "data.cache_gb allows" in said
    assert open_batches(config, "cpu")[1] == []


def test_shards_of_this_machine_are_kept_as_well(tmp_path):
    folder = photos(tmp_path)
    with tarfile.open(tmp_path / "set.tar", "w") as tar:
        tar.add(folder, ".")
    config = of_photos(tmp_path / "set.tar")
    store, dataset = store_on("cpu", open_training_data(config), 1), open_training_data(of_photos(folder))
    gathered, read = (sample_batch(x, config, batch_size=4, seed=3, step=0) for x in (store, dataset))
    assert torch.equal(gathered.degraded, read.degraded)


def test_a_damaged_file_is_named(tmp_path):
    folder = photos(tmp_path)
    (folder / "02.png").write_bytes(b"not a picture")
    with pytest.raises(ImageError, match=r"02\.png"):
        store_on("cpu", open_training_data(of_photos(folder)), 1)


def test_what_is_no_picture_is_refused():
    with pytest.raises(InputError, match="at least one"):
        PhotoStore([])
    for wrong in (np.zeros((4, 4, 3)), np.zeros((4, 4), np.uint8), (chart(0), chart(0, 8, 8))):
        with pytest.raises(InputError, match=r"uint8 array \(H, W, 3\).*number 1"):
            PhotoStore([chart(0), wrong])
    with pytest.raises(InputError, match="dog is 56×40, smaller than a crop of 64"):
        sample_batch(PhotoStore([chart(0)], names=["dog"]), of_photos("x", crop=64), batch_size=1, seed=0, step=0)
