"""What `restore` takes and gives back: container x dtype x layout, each cell the same type out, or one sentence.

The table in docs/how-to/python.md is what this finds.
"""

import re
import types
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from kithkin.containers import open_image
from kithkin.errors import InputError
from kithkin.restoration import restore
from kithkin.zoo import load_model

RNG = np.random.default_rng(2)
DOCUMENT = Path(__file__).parents[1] / "docs/how-to/python.md"
DTYPES = ("uint8", "uint16", "float16", "bfloat16", "float32", "float64", "bool", "int16", "int32", "int64")
REFUSED = (
    "restore: expected uint8, uint16 or floats in [0, 1] of 16 to 64 bits, got {}; convert it to one of them first"
)
ARRAYS = [(6, 7), (6, 7, 1), (6, 7, 2), (6, 7, 3), (6, 7, 4)]
TENSORS = [(6, 7), (1, 6, 7), (2, 6, 7), (3, 6, 7), (4, 6, 7), (1, 2, 6, 7), (2, 1, 6, 7), (2, 3, 6, 7), (2, 4, 6, 7)]
# The mode that comes back, and a word of the sentence where none does.
MODES = {
    "L": "L",
    "LA": "LA",
    "RGB": "RGB",
    "RGBA": "RGBA",
    "I;16": "I;16",
    "F": "F",
    "1": "L",
    "P": "RGB",
    "PA": "RGBA",
    "La": "LA",
    "RGBa": "RGBA",
    "RGBX": "RGB",
    "YCbCr": "RGB",
    "CMYK": "RGB",
    "I": "int32",
    "LAB": "(LAB)",
    "HSV": "(HSV)",
}


class Square(nn.Module):
    """A network that changes what it sees."""

    config = types.SimpleNamespace(stride=1, blocks="")

    def forward(self, image):
        return image * image


def stored(unit, dtype):
    """Values in [0, 1] as a dtype holds them."""
    kind = np.dtype(dtype)
    if kind.kind == "f":
        return unit.astype(kind)
    return (unit * (np.iinfo(kind).max if kind.kind in "iu" else 1)).astype(kind)


def values(dtype, shape):
    unit = RNG.random(shape)
    if dtype == "bfloat16":
        return torch.from_numpy(unit).bfloat16()
    return stored(unit, dtype)


def colours(shape, axis):
    return slice(0, shape[axis] if shape[axis] in (1, 3) else shape[axis] - 1)


def check(image, result, axis):
    """Type, shape and dtype are those of the input, alpha is as it was, and colours are the squares of before."""
    assert (type(result), result.shape, result.dtype) == (type(image), image.shape, image.dtype)
    before, after = (torch.as_tensor(a) if isinstance(a, np.ndarray) else a for a in (image, result))
    top = 1 if before.is_floating_point() else torch.iinfo(before.dtype).max
    before, after = before.double() / top, after.double() / top
    if before.ndim > 2:
        kept = colours(before.shape, axis).stop
        count = before.shape[axis] - kept
        assert torch.equal(after.narrow(axis, kept, count), before.narrow(axis, kept, count))
        before, after = before.narrow(axis, 0, kept), after.narrow(axis, 0, kept)
    tolerance = {torch.bfloat16: 0.01, torch.float16: 0.001}.get(getattr(image, "dtype", None), 0.51 / 255)
    torch.testing.assert_close(after, before**2, rtol=0, atol=tolerance)


def outcome(image, axis):
    """``same`` or the sentence of the refusal."""
    try:
        result = restore(Square(), image)
    except InputError as error:
        return str(error)
    check(image, result, axis)
    return "same"


def row(dtype):
    """What becomes of a dtype in arrays and in tensors; an AssertionError where that depends on the layout."""
    arrays = {outcome(values(dtype, shape), -1) for shape in ARRAYS if dtype != "bfloat16"}
    tensors = {outcome(torch.as_tensor(values(dtype, shape)), -3) for shape in TENSORS}
    assert len(arrays | tensors) == 1, (dtype, arrays, tensors)
    (found,) = tensors
    if found != "same":
        assert found.startswith(REFUSED.format(dtype)), found
        found = "refused"
    return found if dtype != "bfloat16" else f"{found} (torch)"


def pillow(mode):
    image = Image.fromarray(stored(RNG.random((6, 7, 3)), "uint8"))
    if mode == "I;16":
        return Image.fromarray(stored(RNG.random((6, 7)), "uint16"))
    if mode == "F":
        return Image.fromarray(RNG.random((6, 7)).astype(np.float32))
    steps = {"PA": ("P",), "La": ("LA",), "RGBa": ("RGBA",), "I": ("L",)}.get(mode, ())
    for step in (*steps, mode):
        image = image.convert(step)
    return image


def table():
    lines = ["| numpy and torch | in every layout |", "| --- | --- |"]
    lines += [f"| {dtype} | {row(dtype)} |" for dtype in DTYPES]
    lines += ["", "| PIL mode | comes back as |", "| --- | --- |"]
    return lines + [f"| {mode} | {mode_out(mode)} |" for mode in MODES]


def mode_out(mode):
    image = pillow(mode)
    if MODES[mode] not in MODES:
        with pytest.raises(InputError, match=rf"{re.escape(MODES[mode])}.* first"):  # what it is, and what to do
            restore(Square(), image)
        return "refused"
    result = restore(Square(), image, note=lambda sentence: None)
    assert result.size == image.size
    assert result.mode == MODES[mode]
    return result.mode


def test_every_cell_is_what_the_document_says():
    found = re.search(r"<!-- table: containers -->\n(.*?)<!-- end -->", DOCUMENT.read_text(), re.S)[1]
    assert found == "\n".join(table()) + "\n"


@pytest.mark.parametrize("shape", ARRAYS)
@pytest.mark.parametrize("dtype", [">u2", ">f4", ">f8"])
def test_arrays_keep_the_order_of_their_bytes(shape, dtype):
    image = stored(RNG.random(shape), dtype)
    result = restore(Square(), image)
    assert result.dtype == image.dtype
    np.testing.assert_array_equal(result, restore(Square(), image.astype(image.dtype.newbyteorder("="))))


@pytest.mark.parametrize(
    ("image", "advice"),
    [
        (np.zeros((3, 5, 6), np.float32), "image.transpose(1, 2, 0)"),
        (np.zeros((1, 5, 6), np.uint8), "image.transpose(1, 2, 0)"),
        (np.zeros((2, 5, 6, 3), np.uint8), "one by one"),
        (np.zeros((5, 6, 7), np.uint8), "bring it into one of these"),
        (np.zeros((5, 0), np.uint8), "give it pixels"),
        (torch.zeros(5, 6, 3), "image.permute(2, 0, 1)"),
        (torch.zeros(2, 5, 6, 3), "image.permute(0, 3, 1, 2)"),
        (torch.zeros(5, 6, 7), "bring it into one of these"),
        (torch.zeros(7), "bring it into one of these"),
        (torch.zeros(3, 0, 6), "give it pixels"),
    ],
    ids=lambda value: value if isinstance(value, str) else str(tuple(value.shape)),
)
def test_a_wrong_shape_is_told_what_to_do(image, advice):
    with pytest.raises(InputError, match=re.escape(advice)) as caught:
        restore(Square(), image)
    assert str(tuple(image.shape)) in str(caught.value)
    if advice.startswith("image."):  # and that works
        assert restore(Square(), eval(advice)).ndim == image.ndim


def test_the_advice_for_dtypes_works():
    image = RNG.integers(0, 2, (5, 6)).astype(bool)
    assert restore(Square(), image.astype(np.uint8) * 255).max() == 255


def test_ink_becomes_rgb_with_a_sentence_as_in_a_file():
    notes = []
    result = restore(Square(), Image.new("CMYK", (4, 3), (255, 0, 0, 0)), note=notes.append)
    assert (result.mode, result.getpixel((0, 0))) == ("RGB", (0, 255, 255))
    assert "CMYK" in notes[0]
    assert open_image(Image.new("CMYK", (4, 3)))[0].shape == (1, 3, 3, 4)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
@pytest.mark.parametrize("device", ["cuda", "cuda:7", "toaster"])
def test_a_device_that_is_not_there_is_refused(device):
    from kithkin import denoise

    with pytest.raises(InputError, match=f"'{device}' can't be used .*take 'cpu'"):
        load_model("denoise-gaussian", device=device)
    with pytest.raises(InputError, match=device):
        denoise(np.zeros((8, 8, 3), np.uint8), device=device)


def test_type_checkers_find_the_types():
    import kithkin

    assert (Path(kithkin.__file__).parent / "py.typed").is_file()


if __name__ == "__main__":  # python tests/test_containers.py writes the table
    start, end = "<!-- table: containers -->\n", "<!-- end -->"
    before, rest = DOCUMENT.read_text().split(start)
    DOCUMENT.write_text(before + start + "\n".join(table()) + "\n" + end + rest.split(end, 1)[1])
