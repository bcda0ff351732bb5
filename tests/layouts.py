"""Small data sets in the layouts that people have on disk, for the tests to read."""

import io

import h5py
import lmdb
import numpy as np
import scipy.io
from PIL import Image


def picture(seed, height=40, width=56):
    """(H, W, 3) uint8 noise; another seed gives another picture."""
    return np.random.RandomState(seed).randint(0, 256, (height, width, 3), dtype=np.uint8)


def write(path, pixels):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)
    return path


def write_pairs(folder, names, sides=("input", "target"), ending=".png"):
    """Pair i: picture 2i is the input, picture 2i + 1 the target."""
    for i, name in enumerate(names):
        for j, side in enumerate(sides):
            write(folder / side / f"{name}{ending}", picture(2 * i + j))
    return folder


def write_gopro(folder, scenes=("GOPR0384_11_00", "GOPR0385_11_01"), frames=2):
    """GOPRO_Large's scenes; ``blur_gamma`` holds something else on purpose."""
    for s, scene in enumerate(scenes):
        for f in range(frames):
            for j, side in enumerate(("blur", "sharp", "blur_gamma")):
                write(folder / scene / side / f"{f + 1:06}.png", picture(100 * s + 10 * f + j))
    return folder


def write_sidd_originals(folder, scenes=3):
    """SIDD-Medium's scene folders: two captures each."""
    for s in range(1, scenes + 1):
        for n in (10, 11):
            scene = folder / "Data" / f"{s:04}_001_S6_00100_00060_3200_L"
            for j, side in enumerate(("NOISY", "GT")):
                write(scene / f"{s:04}_{side}_SRGB_{n:03}.PNG", picture(100 * s + 10 * n + j))
    return folder


def write_blocks(folder, shape=(3, 2, 8, 6, 3), *, compressed=True, **changes):
    """SIDD's two .mat files; returns their arrays. ``changes`` replaces an array by key, or leaves it out (None)."""
    folder.mkdir(parents=True, exist_ok=True)
    arrays = {}
    for seed, key in enumerate(("ValidationNoisyBlocksSrgb", "ValidationGtBlocksSrgb")):
        arrays[key] = np.random.RandomState(seed).randint(0, 256, shape, dtype=np.uint8)
        if (array := changes.get(key, arrays[key])) is not None:
            scipy.io.savemat(folder / f"{key}.mat", {key: array}, do_compression=compressed)
    return arrays


def matlab73(path):
    """An HDF5 file as MATLAB 7.3 begins it: 512 bytes of its own in front."""
    path.parent.mkdir(parents=True, exist_ok=True)
    file = h5py.File(path, "w", userblock_size=512)
    file.close()
    with path.open("r+b") as raw:
        raw.write(b"MATLAB 7.3 MAT-file, Platform: GLNXA64".ljust(116) + bytes(8) + b"\x00\x02IM")
    return h5py.File(path, "r+")


def write_dnd(folder, images=50, boxes=20, size=(70, 90)):
    """DND: MATLAB's arrays transposed, the structure array's fields as references. Returns pictures and boxes."""
    rng = np.random.RandomState(0)
    pictures, corners = [], []
    with matlab73(folder / "info.mat") as file:
        references = file.create_group("#refs#")
        info = file.create_group("info")
        field = info.create_dataset("boundingboxes", (1, images), h5py.ref_dtype)
        for i in range(images):
            top, left = rng.randint(1, size[0] - 32, boxes), rng.randint(1, size[1] - 24, boxes)
            found = np.stack([top, left, top + 31, left + 23], axis=1)
            stored = references.create_dataset(f"boxes{i}", data=found.T.astype(np.float64))
            field[0, i] = stored.ref
            corners.append(found)
    for i in range(images):
        pixels = rng.rand(*size, 3).astype(np.float32)
        with matlab73(folder / "images_srgb" / f"{i + 1:04}.mat") as file:
            file.create_dataset("InoisySRGB", data=pixels.transpose(2, 1, 0))
        pictures.append(pixels)
    return pictures, corners


def write_lmdb(path, entries, meta=True):
    """A database as BasicSR makes it: key -> PNG bytes, and meta_info.txt."""
    path.mkdir(parents=True, exist_ok=True)
    lines = []
    with lmdb.open(str(path), map_size=1 << 24) as env, env.begin(write=True) as transaction:
        for key, pixels in entries.items():
            buffer = io.BytesIO()
            Image.fromarray(pixels).save(buffer, "PNG")
            transaction.put(key.encode("ascii"), buffer.getvalue())
            lines.append(f"{key}.png ({pixels.shape[0]},{pixels.shape[1]},3) 1\n")
    if meta:
        (path / "meta_info.txt").write_text("".join(lines))
    return path
