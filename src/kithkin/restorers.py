"""Restorers take a picture (C, H, W) and return it restored.

Networks and filters are restorers, and so is what is composed of them, with only the layers that the options ask for:
``Blend(UniformDeblur(Tiled(Ensemble(Network(model)))))``.

The picture stays in main memory. Its tiles go to the network's device one at a time, each alone in its batch. So the
result does not depend on what else is restored, and the network's memory does not grow with the picture.
"""

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kithkin.blending import blended
from kithkin.containers import BEYOND, check_values, open_image
from kithkin.errors import KithkinError
from kithkin.precision import computing_in
from kithkin.tiles import OVERLAP, SMALLEST_TILE, Cuts, Tile, cuts

Progress = Callable[[float], None]
"""Called with the finished fraction in [0, 1]; what it raises ends the work."""
Note = Callable[[str], None]
"""Called with a sentence for the user."""


def silent(fraction: float) -> None:
    """The default progress: it does nothing."""


def share(progress: Progress, index: int, count: int) -> Progress:
    """The progress of one of ``count`` parts that take about equally long."""
    return lambda fraction: progress((index + fraction) / count)


def warn(sentence: str) -> None:
    """The default note: a Python warning."""
    warnings.warn(sentence, stacklevel=2)


class Restorer(Protocol):
    """What restores a picture.

    Attributes:
        stride: sides of tiles, and where they begin, are multiples of it.
        reach: pixels beyond a tile's border that its result needs; None where a picture must not be cut into tiles.
        device: where it runs.
    """

    @property
    def stride(self) -> int: ...

    @property
    def reach(self) -> int | None: ...

    @property
    def device(self) -> torch.device: ...

    def __call__(self, image: Tensor, progress: Progress = silent, /) -> Tensor:
        """Restore (3, H, W) float32 on the CPU, in [0, 1] but for noise; the same comes back, not clamped. ``Tiled``
        and the restorers around it also take gray (1, H, W)."""
        ...


@dataclass(frozen=True)
class Network:
    """A network, in evaluation mode while it runs; an autocast around the call changes nothing.

    Attributes:
        model: (B, 3, H, W) -> the same, on the device where it runs; it has ``config.stride``.
        precision: that it computes in, see ``kithkin.precision``.
    """

    model: nn.Module
    precision: str = "float32"
    reach = OVERLAP

    @property
    def stride(self) -> int:
        return int(self.model.config.stride)  # type: ignore[arg-type]

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters(), torch.empty(0)).device

    def __call__(self, image: Tensor, progress: Progress = silent) -> Tensor:
        """As a restorer does; pictures of one size too, (B, 3, H, W)."""
        weight = next(self.model.parameters(), torch.empty(0))
        batch = (image if image.ndim == 4 else image[None]).to(weight.device, weight.dtype).contiguous()
        with _evaluating(self.model), torch.inference_mode(), computing_in(self.precision, self.model):
            result = self.model(batch).float().cpu()
        return result.view(image.shape).clone()  # Out of inference mode, so that it may be written into.


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True


@dataclass(frozen=True)
class Unchanged:
    """The picture as it is."""

    stride = 1
    reach = 0
    device = torch.device("cpu")

    def __call__(self, image: Tensor, progress: Progress = silent) -> Tensor:
        return image.clone()


@dataclass(frozen=True)
class Composition:
    """A restorer around another one, with the stride, reach and device of that one."""

    restorer: Restorer

    @property
    def stride(self) -> int:
        return self.restorer.stride

    @property
    def reach(self) -> int | None:
        return self.restorer.reach

    @property
    def device(self) -> torch.device:
        return self.restorer.device


_MIRRORED: tuple[tuple[int, ...], ...] = ((), (-2, -1), (-2,), (-1,))
"""Axes that each of four passes flips; both are a turn by 180°. Four more passes transpose the picture first."""


@dataclass(frozen=True)
class Ensemble(Composition):
    """The mean of passes over the picture as it is, then turned by 180°, then mirrored, then all that transposed; it
    has fewer errors than one pass: geometric self-ensemble (Timofte, Rothe, Van Gool 2016).

    Attributes:
        passes: how many of them, 1 to 8; one is the restorer's output itself.
    """

    passes: int

    def __call__(self, image: Tensor, progress: Progress = silent) -> Tensor:
        total: Tensor | None = None
        for index in range(self.passes):
            axes, transposed = _MIRRORED[index % 4], index >= 4
            view = (image.mT if transposed else image).flip(axes).contiguous()
            result = self.restorer(view).float().flip(axes)
            result = result.mT if transposed else result
            total = result if total is None else total + result
        assert total is not None
        return total / self.passes


@dataclass(frozen=True)
class Blend(Composition):
    """A part of a restoration, see ``kithkin.blending``. It takes float64 too and returns that.

    Attributes:
        luma, chroma: shares of the change in luminance and in colour that are applied.
        detail: share of the structure in what was removed that is brought back.
    """

    luma: float
    chroma: float
    detail: float = 0.0

    def __call__(self, image: Tensor, progress: Progress = silent) -> Tensor:
        restored = self.restorer(image, progress).to(image.dtype)
        return blended(image, restored, self.luma, self.chroma, self.detail)


@dataclass(frozen=True)
class Tiled(Composition):
    """A picture of any size, gray (1, H, W) too, which is shown as three equal channels whose mean comes back.

    A picture no larger than a tile goes through in one pass. A larger one is cut into tiles of one size, which are
    blended linearly where they overlap. Where the memory does not suffice, it starts again with tiles of half the side.
    The result does not depend on the order of the tiles.

    Attributes:
        side: of the largest tile, in pixels; None for one pass whatever the size.
        overlap: pixels that neighbouring tiles share at least; rounded up to the stride.
        exact: height and width of every tile of a larger picture, for networks of one fixed size; None for any up to
            ``side``.
        note: told where tiles became smaller.
        choose: the tile to restore next, of those that are left; None goes from the top to the bottom. What it takes
            early is held until the tiles above are restored.
        watch: given each tile when it is restored, before it is blended with its neighbours: (C, h, w), not clamped.
    """

    side: int | None = None
    overlap: int = OVERLAP
    exact: tuple[int | None, int | None] = (None, None)
    note: Note = warn
    choose: Callable[[Sequence[Tile]], Tile] | None = None
    watch: Callable[[Tile, Tensor], None] | None = None

    @property
    def reach(self) -> None:
        return None

    def __call__(self, image: Tensor, progress: Progress = silent) -> Tensor:
        height, width = image.shape[1:]
        largest = None if self.restorer.reach is None else self.side
        side = max(height, width) if largest is None else min(largest, max(height, width))
        while True:
            try:
                return self._in_tiles(image, side, progress)
            except (MemoryError, RuntimeError) as error:
                if not out_of_memory(error):
                    raise
            # Only here, after the except clause, are the tensors of the failed pass released.
            if self.device.type == "cuda":
                torch.cuda.empty_cache()
            if largest is None:
                raise KithkinError(
                    f"restore: not enough memory on {self.device} for {width} x {height} at once; use tile='auto'"
                )
            if side <= SMALLEST_TILE:
                raise KithkinError(
                    f"restore: not enough memory on {self.device}, even for tiles of {SMALLEST_TILE} pixels; free "
                    "some, use another device or a smaller model"
                )
            smaller = max(SMALLEST_TILE, (side + 1) // 2)
            self.note(f"not enough memory on {self.device} for tiles of {side} pixels: started again with {smaller}")
            side = smaller

    def _in_tiles(self, image: Tensor, side: int, progress: Progress) -> Tensor:
        """Restore band by band of tiles of at most ``side`` pixels."""
        channels, height, width = image.shape
        tall, wide = self.exact[0] or side, self.exact[1] or side
        rows, columns = Cuts(height, (0,)), Cuts(width, (0,))
        if height > tall or width > wide:
            rows = cuts(height, tall, self.overlap, self.stride, exact=self.exact[0] is not None)
            columns = cuts(width, wide, self.overlap, self.stride, exact=self.exact[1] is not None)
        tiles = [
            Tile(left, top, min(columns.size, width - left), min(rows.size, height - top))
            for top in rows.starts
            for left in columns.starts
        ]
        waiting, early = list(tiles), dict[Tile, Tensor]()

        out, band = (image.new_empty(size, dtype=torch.float32) for size in (image.shape, (channels, rows.size, width)))
        progress(0.0)
        for i, top in enumerate(rows.starts):
            bottom = min(top + rows.size, height)
            for j, left in enumerate(columns.starts):
                due = tiles[i * len(columns.starts) + j]
                while due not in early:
                    tile = self.choose(waiting) if self.choose else due
                    waiting.remove(tile)
                    crop = image[:, tile.top : tile.top + tile.height, tile.left : tile.left + tile.width].float()
                    # Gray is shown as three equal channels.
                    piece = self.restorer(_extended(crop, rows.size, columns.size).expand(3, -1, -1))
                    piece = (piece.mean(0, keepdim=True) if channels == 1 else piece)[:, : tile.height, : tile.width]
                    early[tile] = piece
                    if self.watch:
                        self.watch(tile, piece)
                    progress(1 - len(waiting) / len(tiles))
                piece = early.pop(due)
                _crossfade(band[:, : bottom - top], piece, left, columns.end(j - 1), dim=2)
            _crossfade(out, band[:, : bottom - top], top, rows.end(i - 1), dim=1)
        return out


def _extended(crop: Tensor, height: int, width: int) -> Tensor:
    """Extend (C, h, w) below and to the right as the model extends a picture: by reflection, or its last pixels."""
    below, right = height - crop.shape[1], width - crop.shape[2]
    if not below and not right:
        return crop
    mode = "reflect" if below < crop.shape[1] and right < crop.shape[2] else "replicate"
    return F.pad(crop[None], (0, right, 0, below), mode=mode)[0]


def _crossfade(canvas: Tensor, piece: Tensor, start: int, covered: int, *, dim: int) -> None:
    """Put `piece` into `canvas` from `start` on, with a linear transition up to `covered`, the end of the one before.

    Where both pieces are equal, so is the result, exactly; a sum of weighted tiles would differ by rounding.
    """
    length = piece.shape[dim]
    shared = min(max(covered - start, 0), length)
    ramp = ((canvas.new_tensor(range(shared)) + 0.5) / max(shared, 1)).view([-1 if d == dim else 1 for d in range(3)])
    canvas.narrow(dim, start, shared).lerp_(piece.narrow(dim, 0, shared), ramp)
    canvas.narrow(dim, start + shared, length - shared).copy_(piece.narrow(dim, shared, length - shared))


def out_of_memory(error: BaseException) -> bool:
    """Whether an exception says that the main memory or the device's memory is used up."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    signs = ("DefaultCPUAllocator", "out of memory", "ALLOC_FAILED")
    return isinstance(error, RuntimeError) and any(sign in str(error) for sign in signs)


def restore_image(restorer: Restorer, image: Any, *, progress: Progress = silent, note: Note = warn) -> Any:
    """Restore what holds a picture in memory, one of a batch after the other.

    A picture whose channels are equal everywhere goes through as one channel, and so has no colour afterwards.

    Args:
        restorer: from ``RestoreOptions.compose``.
        image: as ``kithkin.containers.open_image`` takes it.
        progress: called with the finished fraction of the batch.
        note: told where values lie beyond [0, 1], and what the container loses.

    Returns:
        The same type, layout, size, dtype and range, clamped to [0, 1].

    Raises:
        InputError: the image is no image, or holds NaN or infinite values.
        KithkinError: the restorer gives NaN or infinite values, or the memory does not suffice.
    """
    planes, rebuild = open_image(image, note)
    if check_values(planes):
        note(BEYOND)
    results = []
    for i, picture in enumerate(planes):
        shown = picture[:1] if is_neutral(picture) else picture
        restored = finished(restorer(shown, share(progress, i, len(planes))))
        results.append(restored.to(planes.dtype).expand(picture.shape))
    # One picture alone is not copied: it may be large.
    return rebuild(torch.stack(results) if len(results) > 1 else results[0][None].contiguous())


def is_neutral(picture: Tensor) -> bool:
    """Whether a picture (C, H, W) has no colour: its channels are equal everywhere, exactly."""
    return all(torch.equal(picture[0], plane) for plane in picture[1:])


def finished(restored: Tensor) -> Tensor:
    """Clamp to [0, 1] in place; raise KithkinError for NaN and infinite values."""
    if not all(torch.isfinite(v) for v in restored.aminmax()):
        raise KithkinError("restore: the model gives NaN or infinite values; its weights are damaged, take others")
    return restored.clamp_(0, 1)
