"""Images to patches and back (Sec. 3.2)."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st

from kithkin.errors import InputError
from kithkin.ops import partition, unpartition

import oracle


def numbered_image(batch, height, width, channels):
    """Every entry its own number, so that any wrong move of an entry shows."""
    return torch.arange(batch * height * width * channels, dtype=torch.float64).view(batch, height, width, channels)


@pytest.mark.parametrize(
    ("batch", "height", "width", "channels", "patch_size"),
    [(1, 4, 4, 3, 4), (2, 4, 8, 3, 4), (3, 6, 4, 1, 2), (1, 3, 5, 7, 1), (2, 9, 6, 2, 3)],
)
def test_partition_puts_every_pixel_where_the_oracle_puts_it(batch, height, width, channels, patch_size):
    image = numbered_image(batch, height, width, channels)
    expected = np.stack([oracle.partition(one, patch_size) for one in image.numpy()])
    patches = partition(image, patch_size)
    assert tuple(patches.shape) == (batch, height * width // patch_size**2, patch_size**2, channels)
    np.testing.assert_array_equal(patches.numpy(), expected)


sides = st.integers(min_value=1, max_value=5)


@settings(deadline=None, max_examples=60)
@given(batch=sides, rows=sides, columns=sides, channels=sides, patch_size=st.integers(min_value=1, max_value=4))
def test_unpartition_undoes_partition(batch, rows, columns, channels, patch_size):
    image = numbered_image(batch, rows * patch_size, columns * patch_size, channels)
    back = unpartition(partition(image, patch_size), patch_size, (rows * patch_size, columns * patch_size))
    assert torch.equal(back, image)


@settings(deadline=None, max_examples=60)
@given(batch=sides, rows=sides, columns=sides, channels=sides, patch_size=st.integers(min_value=1, max_value=4))
def test_partition_undoes_unpartition(batch, rows, columns, channels, patch_size):
    patches = numbered_image(batch, rows * columns, patch_size**2, channels)
    image = unpartition(patches, patch_size, (rows * patch_size, columns * patch_size))
    assert torch.equal(partition(image, patch_size), patches)


def test_unpartition_tells_a_tall_image_from_a_wide_one():
    patches = partition(numbered_image(1, 4, 8, 1), 2)
    assert not torch.equal(unpartition(patches, 2, (8, 4)).flatten(), unpartition(patches, 2, (4, 8)).flatten())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.int64])
def test_the_dtype_and_the_values_are_kept(dtype):
    image = numbered_image(1, 4, 4, 3).to(dtype)
    patches = partition(image, 2)
    assert patches.dtype == dtype
    assert torch.equal(unpartition(patches, 2, (4, 4)), image)


def test_an_image_that_is_not_contiguous_gives_the_same_patches():
    channel_first = numbered_image(2, 4, 6, 3).permute(0, 3, 1, 2).contiguous()
    view = channel_first.permute(0, 2, 3, 1)
    assert not view.is_contiguous()
    assert torch.equal(partition(view, 2), partition(view.contiguous(), 2))


def test_gradients_pass_through_both():
    image = numbered_image(1, 4, 6, 2).requires_grad_()
    scale = numbered_image(1, 4, 6, 2)
    (unpartition(partition(image, 2), 2, (4, 6)) * scale).sum().backward()
    assert torch.equal(image.grad, scale)


@pytest.mark.parametrize(
    ("height", "width", "patch_size"), [(5, 4, 4), (4, 5, 4), (3, 3, 2), (2, 2, 4), (4, 4, 0), (4, 4, -2)]
)
def test_partition_refuses_sides_that_are_not_multiples_of_the_patch_size(height, width, patch_size):
    with pytest.raises(InputError):
        partition(torch.zeros(1, height, width, 3), patch_size)


def test_partition_refuses_an_image_without_a_batch():
    with pytest.raises(InputError):
        partition(torch.zeros(4, 4, 3), 4)


@pytest.mark.parametrize(
    ("shape", "patch_size", "size"),
    [
        ((1, 4, 4, 3), 2, (4, 8)),  # eight patches asked for, four there
        ((1, 4, 9, 3), 2, (4, 4)),  # patches of nine pixels
        ((1, 4, 4, 3), 2, (3, 5)),  # not a multiple
        ((4, 4, 3), 2, (4, 4)),  # no batch
    ],
)
def test_unpartition_refuses_a_size_that_the_patches_do_not_fill(shape, patch_size, size):
    with pytest.raises(InputError):
        unpartition(torch.zeros(shape), patch_size, size)
