"""What holds a picture in memory: any of the usual types as planes of floats, and the way back to that type."""

import os
from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from kithkin.errors import InputError
from kithkin.images import Picture
from kithkin.images._picture import Refusal
from kithkin.images._pillow import samples_of

Restorable = TypeVar("Restorable", Tensor, np.ndarray, Image.Image, Picture, str, os.PathLike[str])
Rebuild = Callable[[Tensor], Any]
_RANGE = (-4.0, 5.0)
"""Strong noise carries floats this far beyond [0, 1]; what lies outside is on another scale, such as 0-255."""


def open_image(image: Any) -> tuple[Tensor, Rebuild]:
    """Take a picture out of its container.

    Args:
        image: a tensor, an array, a PIL image or a Picture, as in ``kithkin.restoration.restore``.

    Returns:
        (B, C, H, W) float32 or float64 on the CPU, C = 3, or 1 for gray; and a function from such planes, in [0, 1],
        to the image's type, layout, dtype, device and alpha.

    Raises:
        InputError: the image is none of these.
    """
    if isinstance(image, Picture):
        return _open_picture(image)
    if isinstance(image, Image.Image):
        return _open_pillow(image)
    if isinstance(image, np.ndarray):
        return _open_array(image)
    if isinstance(image, Tensor):
        return _open_tensor(image)
    raise InputError(
        "restore: expected a torch tensor, a numpy array, a PIL image, a kithkin.images.Picture or the path of a "
        f"file, got {type(image).__name__}; convert it, for example by numpy.asarray"
    )


def check_values(planes: Tensor) -> None:
    """Raise InputError where values are NaN or infinite, or on another scale than [0, 1]."""
    low, high = (float(v) for v in planes.aminmax())
    if not np.isfinite(low) or not np.isfinite(high):
        raise InputError("restore: the image holds NaN or infinite values; replace them by values in [0, 1] first")
    if low < _RANGE[0] or high > _RANGE[1]:
        raise InputError(
            f"restore: expected floats in [0, 1], got values from {low:g} to {high:g}; "
            "divide by the largest possible value, such as 255, first"
        )


def _open_tensor(image: Tensor) -> tuple[Tensor, Rebuild]:
    if image.ndim not in (3, 4) or image.shape[-3] not in (1, 3, 4) or 0 in image.shape:
        raise InputError(
            "restore: expected a tensor (C, H, W) or (B, C, H, W) with C = 1, 3 or 4 channels, not empty, "
            f"got {tuple(image.shape)}; bring the channels before the rows"
        )
    integer = image.dtype in (torch.uint8, torch.uint16)
    if not image.is_floating_point() and not integer:
        raise InputError(f"restore: expected a tensor of floats in [0, 1], uint8 or uint16, got {image.dtype}")
    dtype, device, shape = image.dtype, image.device, image.shape
    top = torch.iinfo(dtype).max if integer else None
    colour = image.detach()[..., :3, :, :]
    planes = colour.cpu().to(torch.float64 if dtype == torch.float64 else torch.float32)
    planes = planes.div_(top) if top else planes

    def rebuild(result: Tensor) -> Tensor:
        restored = (_rounded(result, top) if top else result).to(dtype).to(device).reshape(colour.shape)
        return restored if shape[-3] < 4 else torch.cat([restored, image.detach()[..., 3:, :, :]], dim=-3)

    return planes.reshape(-1, *planes.shape[-3:]), rebuild


def _open_array(image: np.ndarray) -> tuple[Tensor, Rebuild]:
    if image.ndim not in (2, 3) or (image.ndim == 3 and image.shape[2] not in (1, 2, 3, 4)) or 0 in image.shape:
        raise InputError(
            f"restore: expected an array (H, W) or (H, W, C) with C = 1 to 4 channels, not empty, got {image.shape}; "
            "restore the pictures of a batch one by one, or give them as torch (B, 3, H, W)"
        )
    if image.dtype.type not in (np.uint8, np.uint16, np.float32, np.float64):
        raise InputError(
            f"restore: expected an array of float32 or float64 in [0, 1], uint8 or uint16, got {image.dtype}"
        )
    if image.ndim == 3 and image.shape[2] != 3:
        return _open_channels(image)
    dtype, gray = image.dtype, image.ndim == 2
    top = np.iinfo(dtype).max if dtype.kind == "u" else None
    wide = np.float64 if dtype.type == np.float64 else np.float32
    values = torch.from_numpy(np.require(image, wide, requirements=["C", "W"]))
    values = values.div_(top) if top else values

    def rebuild(result: Tensor) -> np.ndarray:
        samples = _rounded(result, top) if top else result
        samples = samples[0, 0] if gray else samples[0].permute(1, 2, 0)
        return samples.numpy().astype(dtype, order="C")

    return (values[None] if gray else values.permute(2, 0, 1))[None], rebuild


def _open_channels(image: np.ndarray) -> tuple[Tensor, Rebuild]:
    """Gray in three dimensions, gray with alpha, or colour with alpha."""
    colours = 3 if image.shape[2] == 4 else 1
    planes, rebuild_colour = _open_array(image[..., :3] if colours == 3 else image[..., 0])

    def rebuild(result: Tensor) -> np.ndarray:
        return np.dstack([rebuild_colour(result), image[..., colours:]])

    return planes, rebuild


def _open_pillow(image: Image.Image) -> tuple[Tensor, Rebuild]:
    if image.mode in ("L", "RGB") and image.has_transparency_data:  # One colour stands for transparent.
        image = image.convert({"L": "LA", "RGB": "RGBA"}[image.mode])
    info = {key: value for key, value in image.info.items() if key != "transparency"}
    try:
        samples = samples_of(image)
    except Refusal as refusal:
        raise InputError(f"restore: the image {refusal}") from refusal
    planes, rebuild_array = _open_array(samples)

    def rebuild(result: Tensor) -> Image.Image:
        out = Image.fromarray(rebuild_array(result))
        out.info.update(info)
        return out

    return planes, rebuild


def _open_picture(picture: Picture) -> tuple[Tensor, Rebuild]:
    planes, rebuild_array = _open_array(picture.pixels[..., 0] if picture.gray else picture.pixels)

    def rebuild(result: Tensor) -> Picture:
        array = rebuild_array(result)
        return picture.with_pixels(np.repeat(array[..., None], 3, axis=2) if picture.gray else array)

    return planes, rebuild


def _rounded(values: Tensor, top: int) -> Tensor:
    return values.mul_(top).add_(0.5).floor_()
