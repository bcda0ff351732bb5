"""SIDD's validation blocks and the file of results that its server takes."""

import os
import tempfile
from collections.abc import Iterable, Iterator
from functools import cached_property
from pathlib import Path
from typing import BinaryIO

import numpy as np

from kithkin.data.mat5 import Variable, open_variable, write_variable
from kithkin.data.samples import PAIRS, Sample, source_of
from kithkin.errors import InputError

KEYS = ("ValidationNoisyBlocksSrgb", "ValidationGtBlocksSrgb")
SHAPE = (40, 32, 256, 256, 3)
_PIECE = 1 << 21  # bytes of all blocks together that are in memory at once


class SiddBlocks:
    """The validation blocks: ``<key>.mat`` for noisy and clean, uint8 (images, blocks, H, W, 3) of MATLAB's version 5.

    A file is copied once, block by block, into a temporary file as large as its array (252 MB where it has SIDD's
    size); then a block is one short read. No array is ever in memory as a whole.

    Args:
        folder: holds both files.

    Raises:
        InputError: a file is missing, damaged, or holds something else.
    """

    def __init__(self, folder: Path) -> None:
        self.title, self.kind, self.source = folder.absolute().name, PAIRS, source_of(folder)
        self._files = [folder / f"{key}.mat" for key in KEYS]
        noisy, clean = (block_header(path, key) for path, key in zip(self._files, KEYS, strict=True))
        if noisy.shape != clean.shape:
            raise InputError(
                f"{folder}: {KEYS[0]} is {noisy.shape} but {KEYS[1]} is {clean.shape}; download both again"
            )
        self.shape = noisy.shape
        images, blocks = noisy.shape[:2]
        self.names = [f"{i + 1:04}_{j + 1:02}" for i in range(images) for j in range(blocks)]

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> Sample:
        """A block: input and target uint8 (H, W, 3)."""
        index = range(len(self))[index]
        return Sample(self.names[index], *(self._block(copy, index) for copy in self._copies))

    @cached_property
    def _copies(self) -> list[BinaryIO]:
        return [_copy_blocks(path, key) for path, key in zip(self._files, KEYS, strict=True)]

    def _block(self, copy: BinaryIO, index: int) -> np.ndarray:
        height, width, channels = self.shape[2:]
        size = height * width * channels
        data = os.pread(copy.fileno(), size, index * size)
        return np.ascontiguousarray(np.frombuffer(data, np.uint8).reshape(channels, width, height).T)


def block_header(path: Path, key: str) -> Variable:
    """The head of a file of blocks.

    Raises:
        InputError: no such variable, or it is not uint8 of shape (images, blocks, H, W, 3).
    """
    with open_variable(path, key) as (variable, _):
        pass
    shape, types = variable.shape, {variable.dtype, variable.stored}
    if types != {"uint8"} or len(shape) != 5 or shape[4] != 3:
        raise InputError(
            f"{path}: {key} is {variable.dtype} {shape}, expected uint8 {SHAPE}; get SIDD's sRGB blocks, not the raw"
        )
    return variable


def read_through(path: Path, key: str) -> None:
    """Inflate a variable to its end, keeping nothing.

    Raises:
        InputError: the file is damaged.
    """
    with open_variable(path, key) as (variable, source):
        left = int(np.prod(variable.shape))
        while left:
            left -= len(source.read(min(left, 1 << 20)))
        source.finish()


def _copy_blocks(path: Path, key: str) -> BinaryIO:
    """A temporary file with the blocks one after the other, each (3, W, H) in C order.

    MATLAB stores the block numbers as the fastest index: one block's bytes lie scattered over the whole array.
    """
    copy: BinaryIO = tempfile.TemporaryFile()  # noqa: SIM115 -- it lives as long as the data set
    with open_variable(path, key) as (variable, source):
        images, blocks, height, width, channels = variable.shape
        count, pixels = images * blocks, height * width * channels
        for start, strip in _pieces(pixels, count):
            values = np.frombuffer(source.read(strip * count), np.uint8).reshape(strip, blocks, images)
            rows = np.ascontiguousarray(values.transpose(2, 1, 0)).reshape(count, strip)
            for number, row in enumerate(rows):
                os.pwrite(copy.fileno(), row.data, number * pixels + start)
        source.finish()
    return copy


def _pieces(numbers: int, width: int) -> Iterator[tuple[int, int]]:
    """(start, length) of pieces of a row of numbers, each of ``width`` bytes over all blocks."""
    step = max(1, _PIECE // width)
    yield from ((start, min(step, numbers - start)) for start in range(0, numbers, step))


def write_sidd_results(
    blocks: Iterable[np.ndarray], path: Path, *, images: int = SHAPE[0], per_image: int = SHAPE[1]
) -> None:
    """Write ``Idenoised.mat`` as SIDD's evaluation takes it: "Idenoised", float32 (images, blocks, H, W, 3).

    The blocks pass through a temporary file beside ``path``; a few at a time are in memory.

    Args:
        blocks: restored blocks in the order of ``SiddBlocks.names``, each (H, W, 3) floats in [0, 1].
        path: of the file; replaced where it exists, complete or not at all.
        images, per_image: how many there are.

    Raises:
        InputError: too few or too many blocks, unequal shapes, values that are not in [0, 1].
    """
    expected = images * per_image
    with tempfile.TemporaryFile(dir=path.parent) as copy:
        shape: tuple[int, ...] | None = None
        count = 0
        for count, block in enumerate(blocks, 1):
            shape = shape or block.shape
            check_result(block, f"block {count}", shape)
            copy.write(np.ascontiguousarray(block.T, np.float32).data)
        if count != expected or shape is None:
            raise InputError(f"write_sidd_results: expected {expected} blocks ({images} × {per_image}), got {count}")
        copy.flush()
        strips = _strips(copy, images, per_image, int(np.prod(shape)))
        write_variable(path, "Idenoised", (images, per_image, *shape), "float32", strips)


def check_result(result: np.ndarray, what: str, shape: tuple[int, ...]) -> None:
    """Raise InputError unless a restored picture is (H, W, 3) floats in [0, 1] of this shape."""
    if result.ndim != 3 or result.shape != shape or result.shape[2] != 3:
        raise InputError(f"{what} is {result.shape}, expected (H, W, 3), all blocks alike; got {shape} before")
    if not np.issubdtype(result.dtype, np.floating):
        raise InputError(f"{what} is {result.dtype}, expected floats in [0, 1]; divide by 255")
    if not (result.min() >= 0 and result.max() <= 1):
        raise InputError(f"{what} has values outside [0, 1]; clamp the network's output first")


def _strips(copy: BinaryIO, images: int, per_image: int, pixels: int) -> Iterator[np.ndarray]:
    """The blocks' numbers in MATLAB's order: a strip of pixels of every block at a time."""
    for start, strip in _pieces(pixels, images * per_image * 4):
        rows = np.empty((images, per_image, strip), np.float32)
        for number in range(images * per_image):
            data = os.pread(copy.fileno(), strip * 4, (number * pixels + start) * 4)
            rows[divmod(number, per_image)] = np.frombuffer(data, np.float32)
        yield rows.transpose(2, 1, 0)
