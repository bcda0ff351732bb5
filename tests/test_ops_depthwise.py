"""GELU, depth-wise convolution, GELU."""

import pytest
import torch
from torch.nn import functional as F

from kithkin.errors import InputError
from kithkin.ops import gelu_depthwise_gelu


@pytest.mark.parametrize("channels", [15, 16])
def test_large_and_small_numbers_keep_their_place(channels):
    x = torch.tensor([-1e4, -20.0, -5.0, 0.0, 5.0, 20.0, 1e4]).view(1, 7, 1, 1).expand(1, 7, 1, channels)
    weight = torch.zeros(channels, 1, 3, 3)
    weight[:, :, 1, 1] = 1.0
    out = gelu_depthwise_gelu(x, weight, torch.zeros(channels))
    torch.testing.assert_close(out, F.gelu(F.gelu(x)), rtol=1e-6, atol=1e-6)


def test_wrong_shapes_are_refused():
    x, weight, bias = torch.zeros(1, 4, 4, 16), torch.zeros(16, 1, 3, 3), torch.zeros(16)
    for wrong in ((x[0], weight, bias), (x, weight[:8], bias), (x, weight, bias[:8]), (x, weight[:, :, :2], bias)):
        with pytest.raises(InputError, match="gelu_depthwise_gelu: expected a map"):
            gelu_depthwise_gelu(*wrong)
