"""How much the drawn neighbours count: the numbers, and the thickness of the frames."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from kithkin.model import KiT
from kithkin.model_config import KiTConfig
from kithkin.neighbors import Box, Neighbors, Query, Round, draw_neighbors, find_neighbors, map_neighbors

SIDE, HEAD, LINE = 1008, 30, 3  # a gray picture of this side is drawn at its own size, with lines of 3 pixels
OWN, NEAR, FAR, BACK = (Box(x, y, 16, 16) for x, y in ((496, 496), (208, 304), (304, 704), (704, 96)))


@pytest.fixture(scope="module", params=[1, 2], ids=["one head", "two heads"])
def model(request):
    network = KiT(KiTConfig(width=8, n_stages=2, k=2, n_hashes=3, n_heads=request.param))
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for weight in network.parameters():
            weight += 0.1 * torch.randn(weight.shape, generator=generator)
    return network


@pytest.mark.parametrize("stage", ["encoder0", "decoder1"])
@pytest.mark.parametrize("size", [(52, 76), (24, 24)])
def test_the_weights_are_those_of_the_map(model, stage, size):
    """Which are the oracle's (test_neighbors_map.py)."""
    array = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
    points = [(0, 0), (size[1] - 1, size[0] - 1), (17, 20)]
    whole = next(m for m in map_neighbors(model, array) if (m.stage, m.block) == (stage, 1))
    found = find_neighbors(model, array, points, stage=stage, block=1)
    for (x, y), query in zip(points, found.queries, strict=True):
        patch = y // whole.patch_side * whole.columns + x // whole.patch_side
        there = whole.candidates[patch] >= 0
        weights = [weight for of_round in query.rounds for weight in of_round.weights]
        assert weights == pytest.approx(whole.weights[patch][there].tolist())
        assert sum(weights) == pytest.approx(1)
        boxes = [box for of_round in query.rounds for box in (*of_round.chunk, *of_round.look_back)]
        rows = [box.y // whole.patch_side * whole.columns + box.x // whole.patch_side for box in boxes]
        assert rows == whole.candidates[patch][there].tolist()
    assert found.to_dict()["queries"][0]["rounds"][0]["weights"] == [
        round(weight, 4) for weight in found.queries[0].rounds[0].weights
    ]
    assert all(getattr(module, "recorder", None) is None for module in model.modules())


def drawn(*weights):
    """A drawing of two rounds, each of two patches of a chunk and one before it."""
    gray = np.full((SIDE, SIDE), 0.5, dtype=np.float32)
    rounds = (Round((OWN, NEAR), (BACK,), 0, weights[:3]), Round((OWN, FAR), (BACK,), 2, weights[3:]))
    found = Neighbors((SIDE, SIDE), "encoder1", 0, 2, 16, (Query((500, 500), OWN, rounds),), None)
    return gray, found


def thickness(view, box):
    """Pixels of colour to the left of a patch, in the row through its middle, and beyond a gap those of a double line;
    the dark edge around a frame is no colour."""
    row = view[box.y + 8, box.x - 20 : box.x].astype(int)
    return int((row.max(-1) - row.min(-1) > 60).sum())


def test_a_frame_is_as_thick_as_its_patch_counts():
    gray, found = drawn(0.1, 0.4, 0.05, 0.15, 0.0, 0.3)
    view = np.asarray(draw_neighbors(gray, found))[HEAD : HEAD + SIDE]
    # The six places count a sixth on average, and the roots of 0.4, 0.25 and 0.35 over that are 1.55, 1.22 and 1.45.
    assert thickness(view, NEAR) == round(1.55 * LINE)
    assert thickness(view, FAR) == 1
    assert thickness(view, OWN) == round(1.22 * LINE) + LINE  # in both rounds together, and the line of a query
    top = view[BACK.y - 12 : BACK.y, BACK.x + 2].astype(int)  # in the first dash
    assert (top.max(-1) - top.min(-1) > 60).sum() == round(1.45 * LINE)
    alone = np.asarray(draw_neighbors(gray, found, rounds="separate"))[HEAD : HEAD + SIDE, :SIDE]
    assert thickness(alone, NEAR) == round(1.55 * LINE)
    assert thickness(alone, FAR) == 0


def test_no_frame_is_too_thick_and_weights_may_be_negative():
    gray, found = drawn(0.01, 0.95, 0.01, 0.01, 0.01, 0.01)
    assert thickness(np.asarray(draw_neighbors(gray, found))[HEAD:], NEAR) == 2 * LINE
    gray, found = drawn(-5.0, 3.0, 2.0, 1.0, -1.0, 1.0)  # Eq. (10) as printed divides by a signed sum
    assert thickness(np.asarray(draw_neighbors(gray, found))[HEAD:], FAR) == 1


def test_numbers_stand_below_the_patches_and_nothing_is_made_up():
    gray, found = drawn(0.1, 0.4, 0.05, 0.15, 0.0, 0.3)
    silent = replace(
        found, queries=tuple(replace(q, rounds=tuple(replace(r, weights=()) for r in q.rounds)) for q in found.queries)
    )
    with_numbers, without = (np.asarray(draw_neighbors(gray, x)) for x in (found, silent))
    assert with_numbers.shape[0] == without.shape[0] + 16  # a line of numbers; the rows of both rounds lie side by side
    assert {thickness(without[HEAD:], box) for box in (NEAR, FAR)} == {LINE}
    other = np.asarray(draw_neighbors(*drawn(0.1, 0.3, 0.15, 0.15, 0.0, 0.3)))
    below = HEAD + SIDE + 2 * 15
    differs = (other[below:] != with_numbers[below:]).any(-1)
    assert differs.any()
    assert not differs[:36].any()  # the patches themselves
