"""Pictures in memory: any of the usual types as planes of floats, and back to that type."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from kithkin.errors import InputError
from kithkin.images import Picture, Refusal, samples_of, samples_of_cmyk

Restorable = TypeVar("Restorable", Tensor, np.ndarray, Image.Image, Picture, str, Path, os.PathLike[str])
Rebuild = Callable[[Tensor], Any]
_RANGE = (-4.0, 5.0)
"""Strong noise carries floats this far beyond [0, 1]; what lies outside is on another scale, such as 0-255."""
BEYOND = "the image holds values beyond [0, 1]: the result is clamped to them"
_DTYPES = ("uint8", "uint16", "float16", "float32", "float64", "bfloat16")


def open_image(image: Any, note: Callable[[str], None] | None = None) -> tuple[Tensor, Rebuild]:
    """Take a picture out of its container.

    Args:
        image: a tensor, an array, a PIL image or a Picture, as in ``kithkin.restoration.restore``.
        note: called with a sentence for the user where the container can't come back as it is.

    Returns:
        (B, C, H, W) float32 or float64 on the CPU, C = 3, or 1 for gray; and a function from such planes, in [0, 1],
        to the image's type, layout, dtype, device and alpha.

    Raises:
        InputError: the image is none of these.
    """
    if isinstance(image, Picture):
        return _open_picture(image)
    if isinstance(image, Image.Image):
        return _open_pillow(image, note or (lambda sentence: None))
    if isinstance(image, np.ndarray):
        return _open_array(image)
    if isinstance(image, Tensor):
        return _open_tensor(image)
    raise InputError(
        "restore: expected a torch tensor, a numpy array, a PIL image, a kithkin.images.Picture or the path of a "
        f"file, got {type(image).__name__}; convert it, for example by numpy.asarray"
    )


def check_values(planes: Tensor) -> bool:
    """Raise InputError where values are NaN, infinite or on another scale; return whether any is beyond [0, 1]."""
    low, high = (float(v) for v in planes.aminmax())
    if not np.isfinite(low) or not np.isfinite(high):
        raise InputError("restore: the image holds NaN or infinite values; replace them by values in [0, 1] first")
    if low < _RANGE[0] or high > _RANGE[1]:
        raise InputError(
            f"restore: expected floats in [0, 1], which noise may carry to {_RANGE[0]:g} and {_RANGE[1]:g}, got values "
            f"from {low:g} to {high:g}; divide by the largest possible value, such as 255, first"
        )
    return low < 0 or high > 1


def _check_dtype(name: str) -> None:
    if name not in _DTYPES:
        raise InputError(
            f"restore: expected uint8, uint16 or floats in [0, 1] of 16 to 64 bits, got {name}; convert it to one of "
            "them first, such that white is the largest value of an integer type, or 1"
        )


def _open_tensor(image: Tensor) -> tuple[Tensor, Rebuild]:
    _check_tensor_shape(tuple(image.shape))
    _check_dtype(str(image.dtype).removeprefix("torch."))
    if image.ndim == 2:
        planes, rebuild_planes = _open_tensor(image[None])
        return planes, lambda result: rebuild_planes(result)[0]
    dtype, device = image.dtype, image.device
    channels = image.shape[-3]
    colours = channels if channels in (1, 3) else channels - 1
    top = None if image.is_floating_point() else torch.iinfo(dtype).max
    colour = image.detach()[..., :colours, :, :]
    planes = colour.cpu().to(torch.float64 if dtype == torch.float64 else torch.float32)
    planes = planes.div_(top) if top else planes

    def rebuild(result: Tensor) -> Tensor:
        restored = (_rounded(result, top) if top else result).to(dtype).to(device).reshape(colour.shape)
        alpha = image.detach()[..., colours:, :, :]
        return restored if channels == colours else torch.cat([restored, alpha], dim=-3)

    return planes.reshape(-1, *planes.shape[-3:]), rebuild


def _check_tensor_shape(shape: tuple[int, ...]) -> None:
    if len(shape) == 2 or (len(shape) in (3, 4) and shape[-3] in (1, 2, 3, 4)):
        if 0 not in shape:
            return
        advice = "give it pixels"
    elif len(shape) in (3, 4) and shape[-1] in (1, 2, 3, 4):
        advice = "channels come first: " + (
            "image.permute(2, 0, 1)" if len(shape) == 3 else "image.permute(0, 3, 1, 2)"
        )
    else:
        advice = "bring it into one of these"
    raise InputError(
        "restore: expected a tensor (H, W), (C, H, W) or (B, C, H, W) with C = 1 to 4 channels, not empty, "
        f"got {shape}; {advice}"
    )


def _check_array_shape(shape: tuple[int, ...]) -> None:
    if len(shape) == 2 or (len(shape) == 3 and shape[2] in (1, 2, 3, 4)):
        if 0 not in shape:
            return
        advice = "give it pixels"
    elif len(shape) == 3 and shape[0] in (1, 2, 3, 4):
        advice = "channels come last: image.transpose(1, 2, 0)"
    elif len(shape) == 4:
        advice = "restore the pictures of a batch one by one, or give them as a torch tensor (B, C, H, W)"
    else:
        advice = "bring it into one of these"
    raise InputError(
        f"restore: expected an array (H, W) or (H, W, C) with C = 1 to 4 channels, not empty, got {shape}; {advice}"
    )


def _open_array(image: np.ndarray) -> tuple[Tensor, Rebuild]:
    _check_array_shape(image.shape)
    _check_dtype(image.dtype.newbyteorder("=").name)
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
        return np.dstack([rebuild_colour(result), image[..., colours:]]).astype(image.dtype, copy=False)

    return planes, rebuild


def _open_pillow(image: Image.Image, note: Callable[[str], None]) -> tuple[Tensor, Rebuild]:
    if image.has_transparency_data:  # In these modes, one colour stands for transparent.
        if image.mode == "1":
            key = image.info["transparency"]
            image = image.convert("L")
            image.info["transparency"] = 255 * bool(key)
        if image.mode in ("L", "RGB"):
            image = image.convert({"L": "LA", "RGB": "RGBA"}[image.mode])
        elif image.mode.startswith("I;16"):
            note("Pillow holds no transparency beside 16 bits a pixel: it is dropped")
    info = {key: value for key, value in image.info.items() if key != "transparency"}
    if image.mode in ("I", "F"):  # As the arrays that they are: floats in [0, 1] are taken, 32 bit integers are not.
        samples = np.asarray(image)
    elif image.mode == "CMYK":
        samples, sentence = samples_of_cmyk(image, info.pop("icc_profile", None))
        note(sentence)
    else:
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
