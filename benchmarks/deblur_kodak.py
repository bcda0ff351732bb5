"""Deblurring of pictures under published kernels: kithkin models, which aren't told the kernel, beside Richardson-Lucy,
which is, and an unsharp mask.

    python benchmarks/deblur_kodak.py FOLDER --kernels FILE --model NAME --model NAME+8

As in the evaluation of DPIR (Zhang et al. 2021): each picture is convolved with each kernel as it is stored, with
circular borders, and gets Gaussian noise of sigma 2.55 from the seed 0; nothing is clipped or rounded before it is
restored. PSNR by the protocol `rgb-uint8`. The centroids of Levin's kernels lie up to 4.4 pixels from their middles: a
shift that nobody can see in a blurred picture, and that costs all but Richardson-Lucy. With --centred kernels are
moved, by whole pixels, to where their centroids are within half a pixel of the middle. A model with +stored behind its
name finds one kernel for the whole picture. With --limit nothing is written to `results`.
"""

import argparse
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table
from skimage.filters import unsharp_mask
from skimage.restoration import richardson_lucy

from kithkin.data.degrade import benchmark_noise
from kithkin.errors import InputError
from kithkin.images import find_pictures, read_picture
from kithkin.messages import missing_extra
from kithkin.methods import open_method
from kithkin.metrics import psnr

from measure import keep

SIGMA = 2.55
ITERATIONS = 20
RADIUS, AMOUNT = 2.0, 1.0
"""Of the unsharp mask: pixels, and how much of what it finds is added."""


def load_kernels(path: str | Path) -> list[np.ndarray]:
    """Read published kernels: the variable ``kernels`` of a MATLAB file, a list of matrices.

    Such are the eight of Levin et al., "Understanding and evaluating blind deconvolution algorithms", 2009, and the
    twelve of USRNet (Zhang et al. 2020). Files of MATLAB 7.3 are read by h5py, older ones by SciPy.

    Returns:
        float64 matrices that sum to one, as the file orders them.

    Raises:
        InputError: the file is missing, is of another kind, or a matrix is no kernel; or SciPy or h5py isn't installed.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"load_kernels: {path} is not a file")
    try:
        matrices = _of_hdf5(path) if path.read_bytes()[:512].startswith(b"MATLAB 7.3") else _of_mat5(path)
    except ImportError as error:
        raise InputError(missing_extra(f"load_kernels: {path}", str(error.name), "data")) from error
    except (KeyError, OSError, ValueError, TypeError, zlib.error) as error:
        raise InputError(f"load_kernels: {path} is no MATLAB file with a list 'kernels' ({error})") from error
    if not matrices:
        raise InputError(f"load_kernels: the list 'kernels' of {path} is empty")
    for kernel in matrices:
        if (
            kernel.ndim != 2
            or not kernel.size
            or not np.isfinite(kernel).all()
            or kernel.min() < 0
            or kernel.sum() <= 0
        ):
            raise InputError(f"load_kernels: {path} holds a matrix of {kernel.shape} that is no kernel")
    return [kernel / kernel.sum() for kernel in matrices]


def _of_mat5(path: Path) -> list[np.ndarray]:
    from scipy.io import loadmat
    from scipy.io.matlab import MatReadError

    try:
        cells = loadmat(path)["kernels"]
    except MatReadError as error:
        raise ValueError(error) from error
    return [np.asarray(kernel, np.float64) for kernel in cells.ravel()]


def _of_hdf5(path: Path) -> list[np.ndarray]:
    import h5py

    with h5py.File(path) as file:
        # MATLAB stores columns first.
        return [np.asarray(file[reference], np.float64).T for reference in np.asarray(file["kernels"]).ravel()]


def centred(kernel: np.ndarray) -> np.ndarray:
    """A kernel that sums to one, wider, with its centroid within half a pixel of the middle on each axis."""
    centroid = (np.indices(kernel.shape) * kernel).sum(axis=(1, 2))
    steps = np.rint((np.array(kernel.shape) - 1) / 2 - centroid).astype(int)
    return np.roll(np.pad(kernel, np.abs(steps).max()), steps, axis=(0, 1))


def blur(clean: np.ndarray, kernel: np.ndarray) -> np.ndarray:
    """(H, W, 3) floats, blurred circularly, with noise."""
    size = clean.shape[:2]
    whole = np.zeros(size)
    whole[: kernel.shape[0], : kernel.shape[1]] = kernel
    middle = [-(side // 2) for side in kernel.shape]
    waves = np.fft.rfft2(np.roll(whole, middle, axis=(0, 1)))[..., None]
    moved = np.fft.irfft2(np.fft.rfft2(clean.astype(np.float64), axes=(0, 1)) * waves, s=size, axes=(0, 1))
    return benchmark_noise(moved, SIGMA)


def knowing(blurred: np.ndarray, kernel: np.ndarray) -> np.ndarray:
    """Richardson-Lucy with the true kernel, on a picture that is continued around its borders."""
    side = 2 * max(kernel.shape)
    wide = np.pad(blurred.clip(1e-4, 1), ((side, side), (side, side), (0, 0)), mode="wrap").astype(np.float64)
    planes = [richardson_lucy(wide[..., c], kernel, num_iter=ITERATIONS) for c in range(3)]
    return np.stack(planes, axis=-1)[side:-side, side:-side]


def sharpened(blurred: np.ndarray, kernel: np.ndarray) -> np.ndarray:
    """An unsharp mask."""
    # Not -1: scikit-image 0.26 then fills three rows and leaves the others as the memory was.
    return unsharp_mask(blurred.clip(0, 1), RADIUS, AMOUNT, channel_axis=2)


def methods(names: list[str]) -> dict[str, Callable[[np.ndarray, np.ndarray], np.ndarray]]:
    """What a column is called -> how it makes a picture of a blurred one and the kernel."""

    def ours(name: str) -> Callable[[np.ndarray, np.ndarray], np.ndarray]:
        model = open_method(name, tile="auto")
        return lambda blurred, kernel: model(blurred)

    return {
        "blurred": lambda blurred, kernel: blurred,
        "unsharp mask": sharpened,
        **{f"kithkin, {name}": ours(name) for name in names},
        f"Richardson-Lucy, {ITERATIONS} iterations, kernel known": knowing,
    }


def measure(folder: Path, kernels: list[np.ndarray], names: list[str], limit: int | None) -> list[dict[str, float]]:
    """For each kernel, each method's mean PSNR over the pictures."""
    chosen = methods(names)
    clean = [read_picture(path).pixels for path in find_pictures(folder)[:limit]]
    rows = []
    for kernel in kernels[:limit]:
        found: dict[str, list[float]] = {method: [] for method in chosen}
        for picture in clean:
            blurred = blur(picture, kernel)
            for method, run in chosen.items():
                found[method].append(
                    psnr(run(blurred, kernel).clip(0, 1).astype(np.float32), picture, protocol="rgb-uint8")
                )
        rows.append({method: float(np.mean(values)) for method, values in found.items()})
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="clean pictures")
    parser.add_argument("--kernels", type=Path, required=True, help="a MATLAB file of published kernels")
    parser.add_argument(
        "--model",
        action="append",
        help="a shipped model or a checkpoint, with what `kithkin eval` takes behind it (+8, +stored); may be repeated",
    )
    parser.add_argument("--centred", action="store_true", help="move the kernels' centroids to their middles")
    parser.add_argument("--results", metavar="NAME", help="of the file; without it deblur_KERNELS, and _centred")
    parser.add_argument("--limit", type=int, help="only so many pictures and kernels")
    chosen = parser.parse_args()
    kernels = [centred(kernel) if chosen.centred else kernel for kernel in load_kernels(chosen.kernels)]
    rows = measure(chosen.folder, kernels, chosen.model or ["deblur"], chosen.limit)
    means = {method: float(np.mean([row[method] for row in rows])) for method in rows[0]}
    name = chosen.kernels.stem + (", centred" if chosen.centred else "")
    table = Table("kernel", "size", *means, title=f"PSNR in dB, {chosen.folder.name} under {name}")
    for i, (kernel, row) in enumerate(zip(kernels, rows, strict=False)):
        table.add_row(str(i + 1), "×".join(map(str, kernel.shape)), *(f"{value:.2f}" for value in row.values()))
    table.add_row("mean", "", *(f"{value:.2f}" for value in means.values()))
    Console().print(table)
    if chosen.limit is None:
        settings = {"pictures": chosen.folder.name, "sigma": SIGMA, "boundary": "circular", "iterations": ITERATIONS}
        kept = chosen.results or f"deblur_{chosen.kernels.stem.lower()}" + ("_centred" if chosen.centred else "")
        keep(kept, {**settings, "mean": means, "kernels": rows})


if __name__ == "__main__":
    main()
