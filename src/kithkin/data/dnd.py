"""The Darmstadt Noise Dataset: its noisy crops, and the bundle of results that its server takes.

Source of both forms: DND's submission kit (Plötz and Roth, CVPR 2017), its ``dnd_denoise.py`` and
``bundle_submissions.py``.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from kithkin.data.samples import INPUTS, Sample, need, source_of
from kithkin.data.sidd import check_result
from kithkin.errors import InputError
from kithkin.files import replacing

IMAGES, BOXES = 50, 20
KEY = "InoisySRGB"


class DndCrops:
    """The crops of DND's sRGB pictures (HDF5), read one at a time.

    Args:
        folder: holds ``info.mat`` and ``images_srgb/0001.mat`` to ``0050.mat``.

    Raises:
        InputError: h5py is not installed, or a file is missing, damaged or holds something else.
    """

    def __init__(self, folder: Path) -> None:
        self.title, self.kind, self.source = folder.absolute().name, INPUTS, source_of(folder)
        self._folder = folder
        self._boxes = read_boxes(folder / "info.mat")
        self.names = [f"{i + 1:04}_{b + 1:02}" for i, boxes in enumerate(self._boxes) for b in range(len(boxes))]
        self._places = [(i, b) for i, boxes in enumerate(self._boxes) for b in range(len(boxes))]

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> Sample:
        """A crop: input float32 (H, W, 3) in [0, 1]; the target is not public."""
        image, box = self._places[index]
        top, left, bottom, right = (int(x) for x in self._boxes[image][box])
        path = image_file(self._folder, image)
        with open_image(path) as noisy:
            width, height = noisy.shape[1:]
            if not (1 <= top <= bottom <= height and 1 <= left <= right <= width):
                raise InputError(
                    f"{path} is {width}×{height}, but box {box + 1} of info.mat reaches from "
                    f"({top}, {left}) to ({bottom}, {right}); the two are not from the same download"
                )
            crop = noisy[:, left - 1 : right, top - 1 : bottom]
        return Sample(self.names[index], np.ascontiguousarray(crop.T, np.float32), None)


def image_file(folder: Path, image: int) -> Path:
    """The file of a picture, counted from 0."""
    return folder / "images_srgb" / f"{image + 1:04}.mat"


def read_boxes(path: Path) -> list[np.ndarray]:
    """The boxes of every picture, each (boxes, 4): top, left, bottom, right, counted from 1, the last included.

    MATLAB's 7.3 files hold arrays transposed and a structure array as references to its fields' values.

    Raises:
        InputError: the file is not DND's ``info.mat``.
    """
    with _hdf5(path) as file:
        if "info" not in file or "boundingboxes" not in file["info"]:
            raise InputError(
                f"{path} holds {', '.join(file) or 'nothing'}, expected info/boundingboxes; use DND's info.mat"
            )
        boxes = [np.array(file[reference]).T for reference in np.ravel(file["info"]["boundingboxes"])]
    for i, corners in enumerate(boxes):
        if corners.ndim != 2 or corners.shape[1] != 4:
            raise InputError(
                f"{path}: the boxes of picture {i + 1} are {corners.shape}, expected (20, 4); use DND's info.mat"
            )
    return [corners.astype(np.int64) for corners in boxes]


@contextmanager
def open_image(path: Path) -> Iterator[Any]:
    """A picture's array in its file: (3, W, H), not read yet.

    Raises:
        InputError: the file is missing, damaged, or holds no float array ``InoisySRGB`` of that shape.
    """
    with _hdf5(path) as file:
        if KEY not in file:
            hint = "that is the raw half; use images_srgb" if "Inoisy" in file else "use DND's images_srgb"
            raise InputError(f"{path} holds {', '.join(file) or 'nothing'}, expected {KEY}; {hint}")
        noisy = file[KEY]
        if noisy.ndim != 3 or noisy.shape[0] != 3 or not np.issubdtype(noisy.dtype, np.floating):
            raise InputError(
                f"{path}: {KEY} is {noisy.dtype} {noisy.shape}, expected floats (3, W, H) in [0, 1]; download it again"
            )
        yield noisy


@contextmanager
def _hdf5(path: Path) -> Iterator[Any]:
    h5py = need("h5py", f"{path.name} (HDF5)")
    if not path.is_file():
        raise InputError(f"{path} does not exist; DND has info.mat and images_srgb/0001.mat to 0050.mat in one folder")
    try:
        with h5py.File(path, "r") as file:
            yield file
    except OSError as error:
        raise InputError(f"{path} is damaged or no MATLAB 7.3 file (HDF5): {error}; download it again") from error


def write_dnd_bundle(crops: Iterable[np.ndarray], folder: Path) -> list[Path]:
    """Write the 50 files that DND's server takes for sRGB, ``0001.mat`` to ``0050.mat``.

    Each holds "Idenoised", a 1 × 20 cell of float32 (H, W, 3), "israw" False and "eval_version" "1.0".

    Args:
        crops: 1,000 restored crops in the order of ``DndCrops.names``, each (H, W, 3) floats in [0, 1].
        folder: for the files; made where it is missing, files in it are replaced. 20 crops at a time are in memory.

    Returns:
        The files.

    Raises:
        InputError: scipy is not installed, too few or too many crops, values that are not in [0, 1].
    """
    savemat = need("scipy.io", "write_dnd_bundle").savemat
    folder.mkdir(parents=True, exist_ok=True)
    written: list[Path] = []
    waiting: list[np.ndarray] = []
    for count, crop in enumerate(crops, 1):
        check_result(crop, f"crop {count}", crop.shape)
        waiting.append(crop.astype(np.float32))
        if len(waiting) < BOXES:
            continue
        if len(written) == IMAGES:
            break
        cell = np.empty(BOXES, object)
        cell[:] = waiting
        path = folder / f"{len(written) + 1:04}.mat"
        with replacing(path) as part:
            savemat(part, {"Idenoised": cell, "israw": False, "eval_version": "1.0"}, appendmat=False)
        written.append(path)
        waiting = []
    if len(written) != IMAGES or waiting:
        raise InputError(
            f"write_dnd_bundle: expected {IMAGES * BOXES} crops, got {len(written) * BOXES + len(waiting)}"
        )
    return written
