"""Restoring a picture in memory: any of the usual types in, the same type out, in tiles where it is large.

The picture stays in main memory and one tile at a time, alone in its batch, goes to the model's device. So the
result does not depend on what else is restored, and the network's memory does not grow with the picture.
"""

import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from kithkin.containers import BEYOND, Restorable, check_values, open_image
from kithkin.deconvolution import remove_uniform_blur, too_small
from kithkin.ensemble import run_ensemble
from kithkin.errors import InputError, KithkinError
from kithkin.layers import KNNLocalAttention
from kithkin.model import KiT
from kithkin.restore_options import (
    CPU_TILE,
    OVERLAP,
    SMALLEST_TILE,
    check_curve,
    check_ensemble,
    check_strength,
    check_tiling,
)
from kithkin.zoo import load_model

CUDA_TILE = 1024
CLEANER = "denoise-real"
"""The model that cleans a picture whose uniform blur was undone."""


def restore(
    model: KiT,
    image: Restorable,
    *,
    tile: str | int = "auto",
    overlap: int = OVERLAP,
    strength: float = 1.0,
    ensemble: int = 1,
    uniform_blur: str | None = None,
    progress: Callable[[float], None] | None = None,
    note: Callable[[str], None] | None = None,
) -> Restorable:
    """Return the picture as the model restores it: same type, layout, size, dtype and range, clamped to [0, 1].

    A picture no larger than one tile is restored in one pass, so the result is the model's output. A larger one is cut
    into tiles of one size, a multiple of the model's stride, and blended linearly where they overlap.
    The model runs in evaluation mode and is left as it was; the global random state is not touched.

    Args:
        model: the network, on the device where it shall run.
        image: one of
            torch (H, W), (C, H, W) or (B, C, H, W), floating in [0, 1], uint8 or uint16, with 1 (gray) to 4 channels;
            numpy (H, W) or (H, W, C), floating in [0, 1], uint8 or uint16, with 1 to 4 channels;
            a PIL image (a palette and CMYK come back as RGB, a bitmap as L, transparency as an alpha channel);
            a Picture;
            the path of a picture file: the result is written beside it, photo.jpg as photo-restored.jpg, and its path
            comes back. Alpha (the second of two channels, the fourth of four) is kept as it is; a gray picture stays
            gray, as the mean of the restored channels, and so does one in RGB whose channels are exactly equal.
        tile: ``"auto"`` (768 on the CPU, 1024 on a GPU), the largest side of a tile in pixels (at least 64 and
            twice the overlap), or ``"off"`` for one pass whatever the size.
        overlap: pixels that neighbouring tiles share at least; rounded up to the model's stride.
        strength: 0 returns the input, 1 the restored picture, anything between a mixture.
        ensemble: passes over turned and mirrored copies, whose mean is taken: 1, 2, 4 or 8. Better, and as many times
            slower (``kithkin.ensemble``).
        uniform_blur: for a model that deblurs: ``"light"`` where the whole picture is blurred alike, as by a hand that
            shook, or ``"stored"`` where that was done to stored values, as in most test sets. The kernel is found and
            undone, and the model ``denoise-real`` cleans what is left; a picture that one kernel doesn't explain is
            restored by the model alone (``kithkin.deconvolution``).
        progress: called with the finished fraction in [0, 1] after each tile; it falls when a picture is started again.
            What it raises (but for MemoryError and RuntimeError) ends the work there.
        note: called with a sentence for the user when values lie beyond [0, 1] (they may, from -4 to 5, as noise
            carries them), when CMYK becomes RGB, when the memory made the tiles smaller, or when no uniform blur was
            found; None makes it a warning.

    Raises:
        InputError: the image, or an argument, is not one of the above, or holds NaN or infinite values.
        ImageError: a file can't be read, or its result exists already or can't be written.
        KithkinError: the memory does not suffice (for tiles of 64 pixels, or for one pass with ``"off"``), or the model
            gives NaN or infinite values.
    """
    check_tiling(tile, overlap)
    check_strength(strength)
    check_ensemble(ensemble)
    if uniform_blur is not None:
        check_curve(uniform_blur)
    way = _Way(tile, overlap, ensemble, uniform_blur)
    if isinstance(image, str | os.PathLike):
        return _restore_path(model, image, way, strength, progress, note)  # type: ignore[return-value]
    note = note or _warn
    planes, rebuild = open_image(image, note)
    if check_values(planes):
        note(BEYOND)
    if strength == 0:
        return rebuild(planes.clamp(0, 1))
    result = _restored(model, planes, way, progress or (lambda fraction: None), note).to(planes.dtype)
    if strength != 1:
        torch.lerp(planes, result, strength, out=result)
    return rebuild(result.clamp_(0, 1))


def _restore_path(
    model: KiT,
    path: str | os.PathLike[str],
    way: "_Way",
    strength: float,
    progress: Callable[[float], None] | None,
    note: Callable[[str], None] | None,
) -> str | os.PathLike[str]:
    """Restore a file beside itself and return the result's path: a string for a string, else a Path."""
    from kithkin.restore_files import RestoreOptions, beside, restore_file

    if os.path.isdir(path):
        raise InputError(f"restore: {os.fspath(path)} is a folder; `kithkin restore` and restore_files take folders")
    target = beside(path)
    options = RestoreOptions(strength=strength, **way._asdict())
    for sentence in restore_file(model, path, target, options=options, progress=progress):
        (note or _warn)(sentence)
    return str(target) if isinstance(path, str) else target


def out_of_memory(error: BaseException) -> bool:
    """Whether an exception says that the main memory or the device's memory is used up."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    signs = ("DefaultCPUAllocator", "out of memory", "ALLOC_FAILED")
    return isinstance(error, RuntimeError) and any(sign in str(error) for sign in signs)


def _warn(sentence: str) -> None:
    warnings.warn(sentence, stacklevel=2)


class _Way(NamedTuple):
    tile: str | int
    overlap: int
    ensemble: int
    uniform_blur: str | None = None

    def side(self, size: tuple[int, int], device: torch.device) -> int:
        """The largest side of a tile of an (H, W) picture."""
        if isinstance(self.tile, int):
            return self.tile
        return max(size) if self.tile == "off" else CUDA_TILE if device.type == "cuda" else CPU_TILE


def _restored(
    model: KiT, planes: Tensor, way: _Way, progress: Callable[[float], None], note: Callable[[str], None]
) -> Tensor:
    """Return what the model makes of (B, C, H, W), float32 on the CPU, not clamped."""
    result = torch.empty(planes.shape, dtype=torch.float32)
    count = len(planes)
    with _evaluating(model):
        for i in range(count):

            def advance(part: float, done: int = i) -> None:
                progress((done + part) / count)

            image, out = (planes[i, :1], result[i, :1]) if is_neutral(planes[i]) else (planes[i], result[i])
            if way.uniform_blur is None:
                _restore_one(model, image, out, way, advance, note)
            else:
                _restore_one(model, image, out, way, _third(advance), note)
                _deconvolve_one(model, image, out, way, advance, note)
            if len(out) < len(result[i]):
                result[i, 1:] = out
    if not all(torch.isfinite(v) for v in result.aminmax()):
        raise KithkinError("restore: the model gives NaN or infinite values; its weights are damaged, take others")
    return result


def is_neutral(planes: Tensor) -> bool:
    """Whether a picture (C, H, W) has no colour: its channels are equal everywhere, exactly."""
    return all(torch.equal(planes[0], plane) for plane in planes[1:])


def _third(progress: Callable[[float], None]) -> Callable[[float], None]:
    return lambda part: progress(part / 3)


@contextmanager
def _evaluating(model: KiT) -> Iterator[None]:
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True


def _restore_one(
    model: KiT,
    image: Tensor,
    out: Tensor,
    way: _Way,
    progress: Callable[[float], None],
    note: Callable[[str], None],
) -> None:
    """Restore (C, H, W) into `out`; where the memory does not suffice, again with tiles of half the side."""
    height, width = image.shape[1:]
    device = _home(model)[0]
    side = min(way.side((height, width), device), max(height, width))
    while True:
        try:
            return _fill(model, image, out, way._replace(tile=side), progress)
        except (MemoryError, RuntimeError) as error:
            if not out_of_memory(error):
                raise
        # Only here, after the except clause, are the tensors of the failed pass released.
        if device.type == "cuda":
            torch.cuda.empty_cache()
        if way.tile == "off":
            raise KithkinError(
                f"restore: not enough memory on {device} for {width} x {height} at once; use tile='auto'"
            )
        if side <= SMALLEST_TILE:
            raise KithkinError(
                f"restore: not enough memory on {device}, even for tiles of {SMALLEST_TILE} pixels; free some, use "
                "another device or a smaller model"
            )
        smaller = max(SMALLEST_TILE, (side + 1) // 2)
        note(f"not enough memory on {device} for tiles of {side} pixels: started again with {smaller}")
        side = smaller


def _deconvolve_one(
    model: KiT,
    image: Tensor,
    out: Tensor,
    way: _Way,
    progress: Callable[[float], None],
    note: Callable[[str], None],
) -> None:
    """Put (C, H, W) without its uniform blur into `out`, where the model's result lies; leave that if there is none."""
    assert way.uniform_blur is not None
    backends = [module.backend for module in model.modules() if isinstance(module, KNNLocalAttention)]
    cleaner = _cleaner(str(_home(model)[0]), backends[0] if backends else None)
    done = [1]

    def clean(picture: Tensor) -> Tensor:
        result = torch.empty(picture.shape)
        _restore_one(cleaner, picture, result, way, lambda part: progress((done[0] + part) / 3), note)
        done[0] += 1
        return result

    sharp = None
    try:
        sharp = remove_uniform_blur(image, out, clean, curve=way.uniform_blur)
        why = "it is too small" if too_small(image) else "no blur that is the same everywhere was found"
    except (MemoryError, RuntimeError) as error:
        if not out_of_memory(error):
            raise
        why = "not enough memory to find a blur that is the same everywhere"
    if sharp is None:
        note(f"{why}: restored by the model alone")
    else:
        out.copy_(sharp)
    progress(1.0)


@lru_cache(maxsize=2)
def _cleaner(device: str, backend: str | None) -> KiT:
    return load_model(CLEANER, device=device).set_backend(backend).eval()


def _fill(model: KiT, image: Tensor, out: Tensor, way: _Way, progress: Callable[[float], None]) -> None:
    """Restore (C, H, W) into `out`, band by band of tiles of at most `way.tile` pixels, a number here."""
    overlap, ensemble = way.overlap, way.ensemble
    height, width = image.shape[1:]
    side = way.side((height, width), torch.device("cpu"))
    progress(0.0)
    if height <= side and width <= side:
        out.copy_(_pass(model, image, ensemble))
        return progress(1.0)
    rows = cuts(height, side, overlap, model.config.stride)
    columns = cuts(width, side, overlap, model.config.stride)
    band = torch.empty(image.shape[0], rows.size, width)
    for i, top in enumerate(rows.starts):
        bottom = min(top + rows.size, height)
        for j, left in enumerate(columns.starts):
            crop = image[:, top:bottom, left : left + columns.size]
            whole = _pass(model, _extended(crop, rows.size, columns.size), ensemble)
            piece = whole[:, : crop.shape[1], : crop.shape[2]]
            _blend(band[:, : bottom - top], piece, left, columns.end(j - 1), dim=2)
            progress((i + (j + 1) / len(columns.starts)) / len(rows.starts))
        _blend(out, band[:, : bottom - top], top, rows.end(i - 1), dim=1)
    return None


class Cuts(NamedTuple):
    """Where one axis is cut: tiles of `size` pixels from each of `starts`; the last may reach beyond the picture."""

    size: int
    starts: tuple[int, ...]

    def end(self, index: int) -> int:
        """Where a tile ends; 0 before the first one."""
        return self.starts[index] + self.size if index >= 0 else 0


def cuts(length: int, side: int, overlap: int, stride: int) -> Cuts:
    """Cut an axis into as few tiles of at most `side` pixels as it takes, all of one size and spread evenly.

    Size and starts are multiples of `stride`, so that every tile meets the model's grid as the whole picture does.

    Args:
        length: of the axis, in pixels.
        side: of the largest tile; where the stride is large, a tile has at least two strides.
        overlap: pixels that neighbours share at least; rounded up to the stride, and at most half of `side` before.
        stride: of the model.
    """
    whole = _ceil(length, stride)
    overlap = _ceil(min(overlap, side // 2), stride)
    side = max(side // stride * stride, overlap + stride)
    if whole <= side:
        return Cuts(whole, (0,))
    count = -(-(whole - overlap) // (side - overlap))
    size = _ceil(-(-(whole + (count - 1) * overlap) // count), stride)
    steps = (whole - size) // stride
    gaps = count - 1
    return Cuts(size, tuple(stride * ((2 * i * steps + gaps) // (2 * gaps)) for i in range(count)))


def _ceil(value: int, multiple: int) -> int:
    return -(-value // multiple) * multiple


def _blend(canvas: Tensor, piece: Tensor, start: int, covered: int, *, dim: int) -> None:
    """Put `piece` into `canvas` from `start` on; before `covered`, where another lies already, in a linear transition.

    A mean of two equal numbers is that number exactly, which a sum of weighted tiles would miss by rounding.
    """
    length = piece.shape[dim]
    shared = min(max(covered - start, 0), length)
    ramp = ((torch.arange(shared) + 0.5) / max(shared, 1)).view([-1 if d == dim else 1 for d in range(3)])
    canvas.narrow(dim, start, shared).lerp_(piece.narrow(dim, 0, shared), ramp)
    canvas.narrow(dim, start + shared, length - shared).copy_(piece.narrow(dim, shared, length - shared))


def _extended(crop: Tensor, height: int, width: int) -> Tensor:
    """Extend (C, h, w) below and to the right as the model extends a picture: by reflection, or its last pixels."""
    below, right = height - crop.shape[1], width - crop.shape[2]
    if not below and not right:
        return crop
    mode = "reflect" if below < crop.shape[1] and right < crop.shape[2] else "replicate"
    return F.pad(crop[None], (0, right, 0, below), mode=mode)[0]


def _pass(model: KiT, crop: Tensor, ensemble: int = 1) -> Tensor:
    """Return what the model makes of one (C, h, w), float32 on the CPU; gray goes in thrice and comes out as a mean."""
    device, dtype = _home(model)
    batch = crop.expand(3, -1, -1)[None].to(device, dtype).contiguous()
    with torch.inference_mode():
        result = run_ensemble(model, batch, ensemble)[0]
        return (result.mean(0, keepdim=True) if len(crop) == 1 else result).cpu()


def _home(model: KiT) -> tuple[torch.device, torch.dtype]:
    weight = next(model.parameters(), torch.empty(0))
    return weight.device, weight.dtype
