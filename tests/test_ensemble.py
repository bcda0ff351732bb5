"""Geometric self-ensemble: the mean over turned and mirrored copies."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from kithkin.data.degrade import benchmark_noise
from kithkin.errors import InputError
from kithkin.metrics import psnr
from kithkin.restoration import restore
from kithkin.restore_options import PASSES, RestoreOptions
from kithkin.restorers import Ensemble
from kithkin.zoo import load_model


class Shift(nn.Module):
    """Moves a picture by a pixel down and two to the right; records what it was given."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def forward(self, batch):
        self.seen.append(batch.clone())
        assert batch.is_contiguous()
        return batch.roll((1, 2), (2, 3))


def picture(height=5, width=7):
    return torch.rand(2, 3, height, width, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("passes", PASSES)
def test_every_pass_sees_another_view_and_is_turned_back(passes):
    batch, model = picture(), Shift()
    result = Ensemble(model, passes)(batch)
    distinct = {(view.shape, view.flatten()[:20].numpy().tobytes()) for view in model.seen}
    assert len(distinct) == len(model.seen) == passes
    # What goes down and right upright goes up and left upside down; transposed, the steps change places.
    moves = [(1, 2), (-1, -2), (-1, 2), (1, -2), (2, 1), (-2, -1), (2, -1), (-2, 1)][:passes]
    torch.testing.assert_close(result, sum(batch.roll(move, (2, 3)) for move in moves) / passes)


def test_one_pass_is_the_output_itself():
    batch = picture()
    assert torch.equal(Ensemble(lambda x: x * 3, 1)(batch), batch * 3)
    assert Ensemble(lambda x: x.bfloat16(), 2)(batch).dtype == torch.float32


def test_a_network_without_a_direction_gains_nothing():
    """All eight views of a symmetric filter agree."""
    kernel = torch.tensor([[1.0, 2, 1], [2, 4, 2], [1, 2, 1]]).div(16).expand(3, 1, 3, 3)
    blur = lambda x: F.conv2d(x, kernel, padding=1, groups=3)  # noqa: E731
    torch.testing.assert_close(Ensemble(blur, 8)(picture()), blur(picture()))


@pytest.mark.parametrize("wrong", [0, 3, 16, True, 1.5, "2", None])
def test_other_numbers_of_passes_are_refused(wrong):
    with pytest.raises(InputError, match="ensemble must be one of 1, 2, 4, 8 passes"):
        RestoreOptions(ensemble=wrong)


@pytest.mark.parametrize("tile", ["off", 64])
def test_restoring_with_eight_passes_gains_decibels(tile):
    model = load_model("denoise-gaussian-tiny")
    clean = scene()
    noisy = benchmark_noise(clean, 25)
    scores = [psnr(restore(model, noisy, tile=tile, ensemble=n), clean, protocol="rgb") for n in (1, 2, 8)]
    assert scores[1] > scores[0] + 0.02
    assert scores[2] > scores[1]


def scene():
    """Edges and a texture, (96, 80, 3) float32 in [0, 1]."""
    rows, columns = np.mgrid[0:96, 0:80].astype(np.float32)
    stripes = 0.5 + 0.3 * np.sin((rows + 0.7 * columns) / 3) * (rows > 48)
    disc = ((rows - 30) ** 2 + (columns - 40) ** 2 < 400) * 0.3
    return np.clip(np.stack([stripes + disc, stripes, stripes - disc], axis=-1), 0, 1).astype(np.float32)
