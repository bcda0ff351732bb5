"""How crops are changed before they are degraded: mirrored, turned, in other colours, at another scale."""

import numpy as np
import pytest
import torch
from test_data import chart, of_pairs, of_photos, pairs, photos

from kithkin.data import open_folders, open_training_data
from kithkin.data.sampling import sample_batch
from kithkin.data.store import PhotoStore

NOTHING = {"flips": False, "turns": False}


def targets(config, dataset, steps, batch_size=8):
    """The clean crops on the 0-255 scale, of several steps."""
    batches = [sample_batch(dataset, config, batch_size=batch_size, seed=2, step=step) for step in range(steps)]
    return torch.cat([batch.target for batch in batches]).double().numpy() * 255


def orientation(crop):
    """(whether rows go down, whether columns go to the right, whether it lies on its side) of a crop of a chart."""
    rows, columns = crop[1], crop[2]
    lying = rows[0, 0] != rows[0, 1]
    down, right = (rows.T, columns.T) if lying else (rows, columns)
    return down[1, 0] > down[0, 0], right[0, 1] > right[0, 0], lying


@pytest.mark.parametrize("flips", [False, True])
@pytest.mark.parametrize("turns", [False, True])
def test_flips_and_turns_can_be_left_out(tmp_path, flips, turns):
    config = of_photos(photos(tmp_path), augment={"flips": flips, "turns": turns})
    seen = {tuple(map(bool, orientation(crop))) for crop in targets(config, open_folders(config), 16)}
    upright = (True, True, False)
    assert len(seen) == {(False, False): 1, (True, False): 2, (False, True): 4, (True, True): 8}[flips, turns]
    assert upright in seen
    if flips and not turns:
        assert seen == {upright, (True, False, False)}


def test_what_is_off_changes_nothing(tmp_path):
    folder = photos(tmp_path)
    default, spelled = of_photos(folder), of_photos(folder, augment={"rescaled_share": 0.0, "rescale": (0.25, 0.5)})
    assert default.augment.flips
    assert default.augment.turns
    for step in range(3):
        a, b = (sample_batch(open_folders(c), c, batch_size=4, seed=0, step=step) for c in (default, spelled))
        assert torch.equal(a.degraded, b.degraded)
        assert torch.equal(a.target, b.target)


def test_a_share_of_the_crops_has_its_channels_exchanged(tmp_path):
    """Of a chart every channel is known by what it shows."""
    config = of_photos(photos(tmp_path), augment={**NOTHING, "permuted_share": 0.5})
    orders = []
    for crop in targets(config, open_folders(config), 60):
        roles = ["row" if np.ptp(x[:, 0]) else "column" if np.ptp(x[0]) else "number" for x in crop]
        assert sorted(roles) == ["column", "number", "row"]
        orders.append(tuple(roles))
    found = {order: orders.count(order) / len(orders) for order in set(orders)}
    assert len(found) == 6
    assert found.pop(("number", "row", "column")) == pytest.approx(0.5 + 0.5 / 6, abs=0.07)
    assert all(share == pytest.approx(0.5 / 6, abs=0.05) for share in found.values())


def flat(value, side=24):
    return np.full((side, side, 3), value, np.uint8)


def test_exposure_is_in_stops_of_light_and_clips():
    store = PhotoStore([flat(100), flat(200)])
    config = of_photos("none", augment={**NOTHING, "exposure": 1.0})
    seen = targets(config, store, 60)[:, :, 0, 0]
    np.testing.assert_allclose(seen, seen[:, :1].repeat(3, 1), rtol=1e-5)
    dark, bright = 2 ** (-1 / 2.2), 2 ** (1 / 2.2)
    low = seen[seen[:, 0] < 100 * bright + 1e-3]
    assert low.min() == pytest.approx(100 * dark, rel=0.03)
    assert seen.max() == pytest.approx(255)  # 200 times 1.37 is beyond white
    once = of_photos("none", augment={**NOTHING, "exposure": 0.2})
    seen = targets(once, PhotoStore([flat(100)]), 60)[:, 0, 0, 0] / 100
    assert seen.min() == pytest.approx(2 ** (-0.2 / 2.2), rel=0.003)
    assert seen.max() == pytest.approx(2 ** (0.2 / 2.2), rel=0.003)
    assert np.log2(seen).mean() == pytest.approx(0, abs=0.01)


def test_saturation_draws_colours_from_gray_and_leaves_gray_alone():
    color = np.broadcast_to(np.uint8([200, 100, 60]), (24, 24, 3)).copy()
    config = of_photos("none", augment={**NOTHING, "saturation": (0.0, 1.2)})
    luma = 0.299 * 200 + 0.587 * 100 + 0.114 * 60
    seen = targets(config, PhotoStore([color]), 60)[:, :, 0, 0]
    factors = (seen - luma) / (np.array([200, 100, 60]) - luma)
    np.testing.assert_allclose(factors, factors[:, :1].repeat(3, 1), atol=1e-4)
    assert 0 <= factors.min() < 0.03
    assert 1.17 < factors.max() <= 1.2001
    gray = targets(config, PhotoStore([flat(77)]), 4)
    np.testing.assert_allclose(gray, 77, atol=1e-4)


def slopes(crops):
    """How many rows and columns of a chart lie between two pixels of each crop, away from its border: a line through
    them, from which a cubic kernel strays by less than a twentieth of a row."""
    inside, steps = crops[:, :, 4:-4, 4:-4], np.arange(crops.shape[-1] - 8)
    slopes = []
    for number in inside[:, 1].mean(2), inside[:, 2].mean(1):
        slope, start = np.polyfit(steps, number.T, 1)
        assert np.abs(slope[:, None] * steps + start[:, None] - number).max() < 0.05
        slopes.append(slope)
    np.testing.assert_allclose(*slopes, atol=0.01)
    return sum(slopes) / 2


def test_a_share_of_the_crops_is_made_smaller():
    store = PhotoStore([chart(i, 60, 80) for i in range(3)])
    config = of_photos("none", augment={**NOTHING, "rescaled_share": 0.6, "rescale": (0.5, 0.9)})
    crops = targets(config, store, 40)
    found = slopes(crops)
    same = np.isclose(found, 1, atol=1e-4)
    assert same.mean() == pytest.approx(0.4, abs=0.09)
    scales = 1 / found[~same]
    assert 0.495 < scales.min() < 0.53
    assert 0.87 < scales.max() < 0.905
    assert np.allclose(crops[same], np.rint(crops[same]), atol=1e-3)
    # Everywhere, and never beyond: the largest row that a chart has is seen, and no border is repeated.
    assert crops[:, 1].min() < 2
    assert crops[:, 1].max() > 57


def test_a_small_photograph_is_made_less_small():
    store = PhotoStore([chart(0, 20, 80)])
    config = of_photos("none", augment={**NOTHING, "rescaled_share": 1.0, "rescale": (0.5, 1.0)})
    scales = 1 / slopes(targets(config, store, 20))
    assert scales.min() == pytest.approx(16 / 20, abs=5e-3)
    exact = PhotoStore([chart(0, 16, 16)])
    assert np.array_equal(np.rint(targets(config, exact, 1)[0]).transpose(1, 2, 0), chart(0, 16, 16))


EVERYTHING = {
    "permuted_share": 0.5,
    "exposure": 0.5,
    "saturation": (0.5, 1.5),
    "rescaled_share": 0.5,
    "rescale": (0.5, 1.0),
}


@pytest.mark.parametrize("degradation", [None, {"kind": "noise"}], ids=["Gaussian", "noise"])
def test_a_store_and_files_give_the_same_crops(tmp_path, degradation):
    changes = {"sigma": None, "degradation": degradation} if degradation else {}
    mixed = {"pairs": (pairs(tmp_path),), "pairs_share": 0.3}
    config = of_photos(photos(tmp_path), augment=EVERYTHING, **mixed, **changes)
    dataset = open_training_data(config)
    sides = [dataset.photos[i][0] for i in range(5)]
    store = PhotoStore(sides, mixed=[dataset.pairs[i] for i in range(5)])
    for step in range(4):
        read, gathered = (sample_batch(x, config, batch_size=8, seed=3, step=step) for x in (dataset, store))
        assert torch.equal(read.degraded, gathered.degraded)
        assert torch.equal(read.target, gathered.target)


def test_pairs_among_photographs_keep_their_colours_and_their_scale(tmp_path):
    config = of_photos(photos(tmp_path), augment={**EVERYTHING, **NOTHING}, pairs=(pairs(tmp_path),), pairs_share=1.0)
    batch = sample_batch(open_training_data(config), config, batch_size=8, seed=3, step=0)
    np.testing.assert_allclose((batch.degraded + batch.target).numpy(), 1, atol=1e-6)
    assert np.allclose(slopes(batch.degraded.double().numpy() * 255), 1, atol=1e-4)


def test_what_can_not_be_meant_is_refused(tmp_path):
    for changes in ({"permuted_share": 0.5}, {"exposure": 1}, {"saturation": (0.5, 1)}, {"rescaled_share": 0.1}):
        with pytest.raises(ValueError, match="flipped and turned alone"):
            of_pairs("none", augment=changes)
    assert not of_pairs("none", augment=NOTHING).augment.flips
    with pytest.raises(ValueError, match="less than or equal to 1"):
        of_photos("none", augment={"rescale": (0.5, 1.5)})
