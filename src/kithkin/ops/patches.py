"""A feature map as a row of non-overlapping patches, and back (Sec. 3.2)."""

from torch import Tensor

from kithkin.errors import InputError


def partition(image: Tensor, patch_size: int) -> Tensor:
    """Cut a feature map into non-overlapping square patches.

    Args:
        image: (B, H, W, C), channels last; H and W are multiples of ``patch_size``.
        patch_size: side r of a patch, in pixels.

    Returns:
        (B, N, P, C) with N = H·W / r² patches in row-major order and P = r² pixels in row-major order.

    Raises:
        InputError: the map is not 4-D, or a side is not a multiple of ``patch_size``.
    """
    if image.ndim != 4:
        raise InputError(f"partition: expected a map (B, H, W, C), got shape {tuple(image.shape)}")
    batch, height, width, channels = image.shape
    if patch_size < 1 or height % patch_size or width % patch_size:
        raise InputError(
            f"partition: a {height}×{width} map can't be cut into {patch_size}×{patch_size} patches; "
            "pad it to a multiple of the patch size first"
        )
    rows, columns = height // patch_size, width // patch_size
    cut = image.reshape(batch, rows, patch_size, columns, patch_size, channels)
    return cut.transpose(2, 3).reshape(batch, rows * columns, patch_size * patch_size, channels)


def unpartition(patches: Tensor, patch_size: int, size: tuple[int, int]) -> Tensor:
    """Lay patches back into a feature map: the inverse of ``partition``.

    Args:
        patches: (B, N, P, C).
        patch_size: side r of a patch, in pixels; P = r².
        size: (H, W) of the map, in pixels.

    Returns:
        (B, H, W, C).

    Raises:
        InputError: the patches don't fill a map of that size.
    """
    height, width = size
    if patches.ndim != 4:
        raise InputError(f"unpartition: expected patches (B, N, P, C), got shape {tuple(patches.shape)}")
    batch, count, pixels, channels = patches.shape
    fits = patch_size >= 1 and height % patch_size == 0 and width % patch_size == 0
    if not fits or pixels != patch_size**2 or count * pixels != height * width:
        raise InputError(
            f"unpartition: {count} patches of {pixels} pixels don't fill a {height}×{width} map "
            f"with {patch_size}×{patch_size} patches"
        )
    rows, columns = height // patch_size, width // patch_size
    laid = patches.reshape(batch, rows, columns, patch_size, patch_size, channels)
    return laid.transpose(2, 3).reshape(batch, height, width, channels)
