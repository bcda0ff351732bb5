"""Restoring pictures in memory: types, tiles, memory, and the plan of files."""

import types
import warnings

import numpy as np
import pytest
import tifffile
import torch
from hypothesis import given, settings, strategies as st
from PIL import Image
from torch import nn

from kithkin import restore_files as files
from kithkin.cluster._together import restore_together
from kithkin.errors import ImageError, InputError, KithkinError
from kithkin.images import Picture, read_picture, write_picture
from kithkin.model import KiT
from kithkin.model_config import KiTConfig
from kithkin.restoration import restore
from kithkin.restore_files import Job, RestoreOptions, plan_files, restore_file, restore_files, side_by_side
from kithkin.restorers import out_of_memory
from kithkin.tiles import CPU_TILE, OVERLAP, cuts
from kithkin.zoo import load_model

RNG = np.random.default_rng(11)


class Local(nn.Module):
    """A stand-in for a network whose output pixel depends on the input pixel alone; it keeps the sizes it was given."""

    def __init__(self, function=lambda x: 1 - x * x, *, stride=16, largest=None):
        super().__init__()
        self.config = types.SimpleNamespace(stride=stride, blocks="")
        self.function, self.largest, self.sizes = function, largest, []

    def forward(self, image):
        assert not self.training
        assert image.dtype == torch.float32
        assert image.is_contiguous()
        assert torch.is_inference_mode_enabled()
        assert image.shape[:2] == (1, 3)
        self.sizes.append(tuple(image.shape[2:]))
        if self.largest and max(image.shape[2:]) > self.largest:
            raise RuntimeError(
                "[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"
            )
        return self.function(image)


def tiny(seed=0):
    """A small network that changes its input: an untrained one returns it."""
    model = KiT(KiTConfig(width=8, depth=1, n_hashes=1)).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.05 * torch.randn(parameter.shape, generator=generator)
    return model


MODEL = tiny()


def random_image(height, width, channels=3):
    return torch.from_numpy(RNG.random((channels, height, width), dtype=np.float32))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.uint8])
@pytest.mark.parametrize("lead", [(), (1,), (2,)])
def test_tensors_come_back_in_shape_and_dtype(dtype, lead):
    values = torch.rand(*lead, 3, 9, 14, generator=torch.Generator().manual_seed(1))
    image = (values * 255).to(dtype) if dtype == torch.uint8 else values.to(dtype)
    before = image.clone()
    result = restore(MODEL, image)
    assert (result.shape, result.dtype, result.device) == (image.shape, dtype, image.device)
    assert torch.equal(image, before)
    unit = image.double() / 255 if dtype == torch.uint8 else image.double()
    batch = unit.float().reshape(-1, 3, 9, 14)
    with torch.no_grad():
        want = torch.cat([MODEL(one[None]) for one in batch]).clamp(0, 1).reshape(unit.shape)
    want = torch.floor(want * 255 + 0.5) if dtype == torch.uint8 else want
    assert torch.equal(result, want.to(dtype))
    assert not torch.equal(result, image)


def test_the_result_can_be_used_in_training():
    image = random_image(8, 8)
    weight = torch.ones(1, requires_grad=True)
    (restore(MODEL, image) * weight).sum().backward()
    assert weight.grad is not None


@pytest.mark.parametrize("dtype", ["float32", "float64", "uint8", "uint16", ">u2", ">f4"])
@pytest.mark.parametrize("shape", [(11, 7, 3), (11, 7)])
def test_arrays_come_back_in_shape_and_dtype(dtype, shape):
    top = np.iinfo(dtype).max if np.dtype(dtype).kind == "u" else 1
    image = (RNG.random(shape) * top).astype(dtype)
    image.flags.writeable = False
    result = restore(MODEL, image)
    assert (result.shape, result.dtype) == (image.shape, np.dtype(dtype))
    planes = torch.from_numpy((image / top).astype(np.float32))
    planes = planes.permute(2, 0, 1) if image.ndim == 3 else planes.expand(3, -1, -1)
    with torch.no_grad():
        want = MODEL(planes[None].contiguous())[0]
    want = (want.permute(1, 2, 0) if image.ndim == 3 else want.mean(0)).clamp(0, 1).numpy() * float(top)
    np.testing.assert_allclose(result, want, atol=0.51 if top > 1 else 1e-6)
    assert np.abs(result.astype(float) - image).max() > 0


def test_views_of_arrays_are_restored_as_what_they_show():
    image = RNG.integers(0, 256, (20, 30, 3), dtype=np.uint8)
    view = image[::-2, ::3]
    np.testing.assert_array_equal(restore(MODEL, view), restore(MODEL, view.copy()))


@pytest.mark.parametrize("mode", ["RGB", "L", "RGBA", "LA", "I;16", "1", "P", "RGBa", "YCbCr"])
def test_pillow_images_keep_size_alpha_and_profile(mode):
    if mode == "I;16":
        image = Image.fromarray(RNG.integers(0, 65536, (9, 12), dtype=np.uint16))
    else:
        image = (
            Image.fromarray(RNG.integers(0, 256, (9, 12, 4), dtype=np.uint8))
            .convert("RGB")
            .convert(mode if mode != "RGBa" else "RGBA")
        )
        image = image.convert("RGBa") if mode == "RGBa" else image
    if mode in ("RGBA", "LA"):
        image.putalpha(Image.fromarray(RNG.integers(0, 256, (9, 12), dtype=np.uint8)))
    image.info["icc_profile"] = b"profile"
    result = restore(MODEL, image)
    assert result.mode == {"1": "L", "P": "RGB", "RGBa": "RGBA", "YCbCr": "RGB"}.get(mode, mode)
    assert result.size == image.size
    assert result.info["icc_profile"] == b"profile"
    if mode in ("RGBA", "LA"):
        assert result.getchannel("A").tobytes() == image.getchannel("A").tobytes()
    colour = np.asarray(image.convert("RGB"))
    if mode in ("RGB", "RGBA"):
        np.testing.assert_array_equal(np.asarray(result)[..., :3], restore(MODEL, colour))


@pytest.mark.parametrize(
    ("mode", "key", "other", "want"),
    [("RGB", (1, 2, 3), (9, 9, 9), "RGBA"), ("L", 7, 9, "LA"), ("1", 1, 0, "LA"), ("1", 0, 1, "LA")],
)
def test_a_transparent_colour_becomes_an_alpha_channel(mode, key, other, want):
    image = Image.new(mode, (4, 3), key)
    image.putpixel((0, 0), other)
    image.info["transparency"] = key
    result = restore(MODEL, image)
    assert result.mode == want
    assert np.asarray(result.getchannel("A")).ravel().tolist() == [255] + [0] * 11
    assert "transparency" not in result.info


def test_a_transparent_colour_of_16_bits_is_dropped_with_a_sentence():
    image, notes = Image.fromarray(np.full((3, 4), 7, np.uint16)), []
    image.info["transparency"] = 7
    result = restore(MODEL, image, note=notes.append)
    assert (result.mode, "transparency" in result.info) == ("I;16", False)
    assert notes == ["Pillow holds no transparency beside 16 bits a pixel: it is dropped"]


def test_a_palette_with_transparency_comes_back_as_rgba():
    image = Image.new("P", (4, 3), 1)
    image.putpalette([0, 0, 0, 200, 100, 50])
    image.info["transparency"] = 1
    assert restore(MODEL, image).mode == "RGBA"


@pytest.mark.parametrize("gray", [False, True])
def test_pictures_keep_all_but_their_pixels(gray):
    pixels = (
        np.repeat(RNG.random((9, 8, 1), dtype=np.float32), 3, axis=2) if gray else RNG.random((9, 8, 3), np.float32)
    )
    alpha = RNG.random((9, 8), dtype=np.float32)
    picture = Picture(pixels, alpha, 16, gray, icc=b"icc", exif=b"exif", dpi=(72.0, 73.0), notes=("a note",))
    result = restore(MODEL, picture)
    assert (result.depth, result.gray, result.icc, result.exif, result.dpi) == (16, gray, b"icc", b"exif", (72.0, 73.0))
    assert result.notes == ("a note",)
    np.testing.assert_array_equal(result.alpha, alpha)
    np.testing.assert_array_equal(
        result.pixels, restore(MODEL, pixels) if not gray else result.pixels[..., :1].repeat(3, 2)
    )
    assert result.pixels.flags.c_contiguous
    assert not np.array_equal(result.pixels, pixels)


@pytest.mark.parametrize(
    "container", ["file", "16 bit file", "PIL", "PIL with alpha", "array", "16 bit", "float", "tensor"]
)
def test_a_picture_without_colour_stays_without(tmp_path, container):
    gray = RNG.integers(0, 256, (20, 24), dtype=np.uint8)
    rgb = np.repeat(gray[..., None], 3, axis=2)
    alpha = RNG.integers(0, 256, (20, 24, 1), dtype=np.uint8)
    unit = rgb / np.float32(255)
    # (the picture without colour, the same with one sample of another value; how to get at (H, W, 3))
    if "file" in container:
        depth = 16 if container.startswith("16") else 8
        made = [Picture(values, depth=depth) for values in (unit, touched(unit, 1.0))]
        made = [(write_picture(p, tmp_path / f"{i}.tif"), tmp_path / f"{i}.tif")[1] for i, p in enumerate(made)]
        see = lambda path: read_picture(path).pixels  # noqa: E731
    elif container.startswith("PIL"):
        more = [alpha] if "alpha" in container else []
        made = [Image.fromarray(np.dstack([values, *more])) for values in (rgb, touched(rgb, 255))]
        see = lambda image: np.asarray(image)[..., :3]  # noqa: E731
    elif container == "tensor":
        made = [torch.from_numpy(values).permute(2, 0, 1)[None] for values in (unit, touched(unit, 1.0))]
        see = lambda image: image[0].permute(1, 2, 0).numpy()  # noqa: E731
    else:
        scale = {"array": 1, "16 bit": np.uint16(257), "float": np.float64(1 / 255)}[container]
        made = [values * scale for values in (rgb, touched(rgb, 255))]
        see = lambda image: image  # noqa: E731
    neutral, coloured = (see(restore(MODEL, image)) for image in made)
    assert (neutral == neutral[..., :1]).all()
    assert not (coloured == coloured[..., :1]).all()
    assert not np.array_equal(neutral, see(made[0]))
    # As the same picture stored as gray.
    if container == "array":
        np.testing.assert_array_equal(neutral[..., 0], restore(MODEL, gray))


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".webp", ".tif"])
@pytest.mark.parametrize("stored", ["RGB", "gray", "16 bit gray"])
def test_a_black_and_white_file_stays_so_in_every_format(tmp_path, stored, suffix):
    """Whatever the network makes of it, here one with random weights: read by another program."""
    values = np.random.default_rng(4).integers(0, 256, (20, 24), dtype=np.uint8)
    samples = {"RGB": np.repeat(values[..., None], 3, axis=2), "gray": values, "16 bit gray": values * np.uint16(257)}
    Image.fromarray(samples[stored]).save(tmp_path / "a.png")
    restore_file(MODEL, tmp_path / "a.png", tmp_path / f"b{suffix}")
    if stored == "16 bit gray" and suffix == ".tif":
        found = tifffile.imread(tmp_path / "b.tif")
        assert (found.dtype, found.ndim) == (np.uint16, 2)
        return
    with Image.open(tmp_path / f"b{suffix}") as result:
        if stored == "16 bit gray" and suffix == ".png":
            assert result.mode in ("I;16", "I")
            return
        pixels = np.asarray(result.convert("RGB")).astype(int)
    assert np.ptp(pixels, axis=2).max() == 0
    assert np.abs(pixels[..., 0] - values).max() > 20  # the network did something


def touched(values, value):
    """The same with another value in one sample."""
    values = values.copy()
    values[3, 4, 0] = 0 if values[3, 4, 0] == value else value
    return values


def test_a_worker_of_a_cluster_keeps_pictures_without_colour_so():
    gray = np.repeat(RNG.random((20, 24, 1), dtype=np.float32), 3, axis=2)
    pictures = [Picture(gray), Picture(touched(gray, 1.0))]
    for options in (RestoreOptions(), RestoreOptions(strength=0.3), RestoreOptions(luma=0.3, chroma=0.8)):
        neutral, coloured = restore_together(MODEL, pictures, options)
        np.testing.assert_array_equal(neutral.pixels, neutral.pixels[..., :1].repeat(3, 2))
        np.testing.assert_allclose(neutral.pixels, restore(MODEL, pictures[0], options=options).pixels, atol=1e-5)
        np.testing.assert_allclose(coloured.pixels, restore(MODEL, pictures[1], options=options).pixels, atol=1e-5)


def test_each_picture_of_a_batch_is_looked_at_alone():
    gray, colour = random_image(9, 9, 1).expand(3, -1, -1), random_image(9, 9)
    for strength in (1, 0.3):
        both = restore(MODEL, torch.stack([gray, colour]), strength=strength)
        assert torch.equal(both[0], restore(MODEL, gray, strength=strength))
        assert torch.equal(both[1], restore(MODEL, colour, strength=strength))
        assert torch.equal(both[0, 0], both[0, 1])
        assert not torch.equal(both[1, 0], both[1, 1])


BAD = {
    "last channels": torch.zeros(5, 5, 3),
    "5-D": torch.zeros(1, 1, 3, 5, 5),
    "empty tensor": torch.zeros(3, 0, 5),
    "empty batch": torch.zeros(0, 3, 5, 5),
    "integer tensor": torch.zeros(3, 5, 5, dtype=torch.int32),
    "boolean tensor": torch.zeros(3, 5, 5, dtype=torch.bool),
    "complex tensor": torch.zeros(3, 5, 5, dtype=torch.complex64),
    "first channels": np.zeros((3, 5, 5), np.float32),
    "five channels": np.zeros((5, 5, 5), np.uint8),
    "batch of arrays": np.zeros((2, 5, 5, 3), np.uint8),
    "empty array": np.zeros((0, 5, 3), np.uint8),
    "vector": np.zeros(5, np.uint8),
    "signed array": np.zeros((5, 5), np.int16),
    "object array": np.full((5, 5), None),
    "list": [[0.0]],
    "bytes": b"photo.png",
    "NaN": torch.full((3, 5, 5), float("nan")),
    "one infinity": torch.tensor([0.0] * 74 + [float("inf")]).reshape(3, 5, 5),
    "one NaN": np.pad(np.full((1, 1), np.nan), 2),
    "0-255 floats": torch.full((3, 5, 5), 200.0),
}


@pytest.mark.parametrize("name", BAD)
def test_what_is_no_image_is_refused_with_what_is_expected(name):
    with pytest.raises(InputError, match=r"^restore: .*(expected|holds|has pixels)"):
        restore(MODEL, BAD[name])


@pytest.mark.parametrize("first", ["denoise", np.zeros((8, 8, 3), np.uint8), torch.zeros(3, 8, 8)])
def test_what_is_no_model_is_named(first):
    with pytest.raises(InputError, match=rf"first argument is a model.*got {type(first).__name__}"):
        restore(first, MODEL)


def test_noise_beyond_the_range_is_taken_and_the_result_clamped():
    image = random_image(8, 8) * 3 - 1
    for strength in (0, 0.5, 1):
        notes = []
        result = restore(MODEL, image, strength=strength, note=notes.append)
        assert result.min() >= 0
        assert result.max() <= 1
        assert notes == ["the image holds values beyond [0, 1]: the result is clamped to them"]
    with pytest.warns(UserWarning, match=r"beyond \[0, 1\]"):
        restore(MODEL, image, strength=0)
    with pytest.raises(InputError, match="from -4.5 to 0; divide"):
        restore(MODEL, torch.tensor([[0.0, -4.5]]))


def test_strength_mixes():
    image = random_image(12, 10).double()
    full = restore(MODEL, image)
    with torch.no_grad():
        raw = MODEL(image.float()[None])[0].double()
    torch.testing.assert_close(restore(MODEL, image, strength=0.25), (image + 0.25 * (raw - image)).clamp(0, 1))
    assert torch.equal(restore(MODEL, image, strength=1), full)


@pytest.mark.parametrize(
    "image",
    [
        torch.rand(3, 7, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0)),
        torch.arange(255, -1, -1, dtype=torch.uint8).repeat(3).reshape(3, 16, 16),
        np.arange(65536, dtype=np.uint16).reshape(256, 256),
        np.linspace(0, 1, 99).reshape(33, 3),
    ],
    ids=["float64", "uint8", "uint16", "gray float64"],
)
def test_strength_0_gives_the_input_exactly(image):
    result = restore(MODEL, image, strength=0)
    assert (result == image).all()
    assert result is not image


def test_an_unchanging_network_gives_every_16_bit_value_back():
    image = np.arange(65536, dtype=np.uint16).reshape(256, 256)
    for strength in (1, 0.3):
        np.testing.assert_array_equal(restore(Local(lambda x: x), image, strength=strength, tile=64), image)


@pytest.mark.parametrize("strength", [-0.1, 1.1, float("nan"), "1", None, True])
def test_other_strengths_are_refused(strength):
    with pytest.raises(InputError, match="strength must be a number from 0"):
        restore(MODEL, random_image(4, 4), strength=strength)


@pytest.mark.parametrize("size", [(1, 1), (1, 300), (300, 1), (37, 501), (64, 64), (65, 64), (129, 200), (150, 150)])
@pytest.mark.parametrize("overlap", [0, 7, 32])
def test_tiles_of_a_pointwise_network_give_the_whole_exactly(size, overlap):
    image = random_image(*size)
    model = Local()
    tiled = restore(model, image, tile=64, overlap=overlap)
    assert len(set(model.sizes)) == 1
    if max(size) > 64:
        assert all(side % 16 == 0 and side <= 64 for side in model.sizes[0])
        assert len(model.sizes) > 1
    else:
        assert model.sizes == [size]
    whole = Local()
    assert torch.equal(tiled, restore(whole, image, tile="off"))
    assert whole.sizes == [size]


@given(
    length=st.integers(1, 3000),
    side=st.integers(64, 700),
    share=st.integers(0, 350),
    stride=st.sampled_from([1, 2, 8, 16, 32, 128]),
)
@settings(deadline=None, max_examples=300)
def test_cuts_cover_the_axis_with_equal_aligned_overlapping_tiles(length, side, share, stride):
    overlap = min(share, side // 2)
    size, starts = cuts(length, side, overlap, stride)
    assert starts[0] == 0
    assert starts[-1] < length <= starts[-1] + size < length + stride
    assert size % stride == 0
    assert size <= max(side, -(-overlap // stride) * stride + stride)
    gaps = np.diff(starts)
    assert all(start % stride == 0 for start in starts)
    assert (gaps > 0).all()
    assert (size - gaps >= overlap).all()
    if len(starts) > 1:
        assert gaps.max() - gaps.min() <= stride
        assert length > size


def test_tiles_blend_linearly():
    calls = []

    def number(image):
        calls.append(None)
        return torch.full_like(image, len(calls) / 8)

    result = restore(Local(number), torch.zeros(3, 64, 112), tile=64, overlap=16)
    assert len(calls) == 2
    row = result[0, 0]
    assert torch.equal(row[:48], torch.full((48,), 1 / 8))
    assert torch.equal(row[64:], torch.full((48,), 2 / 8))
    torch.testing.assert_close(row[48:64], 1 / 8 + (torch.arange(16) + 0.5) / 16 / 8)
    assert torch.equal(result, row.expand(3, 64, -1))


def test_one_pass_is_the_networks_output_exactly():
    image = random_image(37, 51)
    with torch.no_grad():
        want = MODEL(image[None])[0].clamp(0, 1)
    for tile in ("auto", "off", 64):
        assert torch.equal(restore(MODEL, image, tile=tile), want)


def test_auto_cuts_where_a_tile_of_the_cpu_ends():
    model = Local()
    restore(model, torch.zeros(3, 20, CPU_TILE))
    restore(model, torch.zeros(3, 20, CPU_TILE + 1))
    assert model.sizes == [(20, CPU_TILE)] + [(32, 416)] * 2


def test_tiles_of_the_network_come_near_the_whole():
    image, model = random_image(80, 150), load_model("denoise-gaussian-tiny")
    whole, tiled = restore(model, image, tile="off"), restore(model, image, tile=64)
    assert (whole - image).abs().mean() > 20 * (whole - tiled).abs().mean()


@pytest.mark.parametrize("tile", [63, 0, -64, 100.0, "512", "on", None, True])
def test_other_tiles_are_refused(tile):
    with pytest.raises(InputError, match="tile must be 'auto', 'off' or at least 64"):
        restore(MODEL, random_image(4, 4), tile=tile)


@pytest.mark.parametrize(
    ("tile", "overlap"), [(64, 33), ("auto", CPU_TILE // 2 + 1), (64, -1), ("off", 1.5), (64, True)]
)
def test_other_overlaps_are_refused(tile, overlap):
    with pytest.raises(InputError, match="overlap"):
        restore(MODEL, random_image(4, 4), tile=tile, overlap=overlap)


def test_progress_rises_to_one_over_the_whole_batch():
    seen = []
    restore(Local(), torch.zeros(2, 3, 100, 150), tile=64, progress=seen.append)
    assert seen == sorted(seen)
    assert seen[0] == 0
    assert seen[-1] == 1
    assert len(set(seen)) > 10


def test_the_same_bytes_alone_and_in_any_batch():
    images = [random_image(40, 70) for _ in range(3)]
    alone = [restore(MODEL, image, tile=64) for image in images]
    for order in ([0, 1, 2], [2, 0, 1]):
        batch = restore(MODEL, torch.stack([images[i] for i in order]), tile=64)
        for row, i in zip(batch, order, strict=True):
            assert torch.equal(row, alone[i])


def test_mode_and_random_state_stay():
    model = tiny()
    model.train()
    model.head.eval()
    state = torch.get_rng_state()
    restore(model, random_image(70, 70), tile=64)
    assert torch.equal(torch.get_rng_state(), state)
    assert model.training
    assert model.stem.training
    assert not model.head.training
    assert not model.head.conv1.training


def test_mode_stays_when_the_network_fails():
    model = Local(lambda x: x.nothing)
    model.train()
    with pytest.raises(AttributeError):
        restore(model, random_image(4, 4))
    assert model.training


def test_a_network_that_gives_nan_is_an_error():
    with pytest.raises(KithkinError, match="model gives NaN"):
        restore(Local(lambda x: x / 0 * 0), random_image(4, 4))


def test_too_little_memory_halves_the_tiles_and_says_so():
    image = random_image(100, 300)
    model, notes = Local(largest=100), []
    result = restore(model, image, note=notes.append)
    assert torch.equal(result, restore(Local(), image))
    assert notes == [
        "not enough memory on cpu for tiles of 300 pixels: started again with 150",
        "not enough memory on cpu for tiles of 150 pixels: started again with 75",
    ]
    assert max(model.sizes[-1]) <= 75


def test_too_little_memory_is_a_warning_where_nobody_listens():
    with pytest.warns(UserWarning, match="started again with 64"):
        restore(Local(largest=64), random_image(200, 200), tile=128, overlap=64)


@pytest.mark.parametrize("tile", ["auto", 64])
def test_too_little_memory_for_the_smallest_tiles_is_an_error(tile):
    with pytest.raises(KithkinError, match="not enough memory on cpu, even for tiles of 64 pixels"):
        restore(Local(largest=20), random_image(100, 100), tile=tile, note=lambda sentence: None)


def test_off_is_not_tiled_behind_the_back():
    with pytest.raises(KithkinError, match="not enough memory on cpu for 100 x 90 at once; use tile='auto'"):
        restore(Local(largest=80), random_image(90, 100), tile="off")


@pytest.mark.parametrize(
    "error", [MemoryError(), torch.OutOfMemoryError("CUDA out of memory."), RuntimeError("CUDA error: out of memory")]
)
def test_all_kinds_of_too_little_memory_are_known(error):
    assert out_of_memory(error)
    assert not out_of_memory(RuntimeError("shapes differ"))
    assert not out_of_memory(ValueError("out of memory"))


def test_other_errors_of_the_network_get_through():
    with pytest.raises(RuntimeError, match="shapes"):
        restore(Local(lambda x: x @ torch.zeros(3, 3)), random_image(5, 5))


def test_the_networks_memory_does_not_grow_with_the_picture():
    largest = []
    for length in (600, 1200):
        model = Local()
        restore(model, torch.zeros(3, 40, length), tile=128)
        largest.append(max(height * width for height, width in model.sizes))
    assert largest[1] <= largest[0] * 1.2


def test_no_warnings():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        restore(MODEL, RNG.integers(0, 256, (9, 9, 3), dtype=np.uint8))
        restore(MODEL, Image.new("RGB", (5, 5)))
        restore(MODEL, np.broadcast_to(np.float32(0.5), (6, 6)))


def save(path, size=(8, 6), seed=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    generator = np.random.default_rng(seed)
    Image.fromarray(generator.integers(0, 256, (*size, 3), dtype=np.uint8)).save(path)
    return path


def targets(plan, root):
    return [(str(job.source.relative_to(root)), str(job.target.relative_to(root))) for job in plan.jobs]


def test_files_go_beside_themselves_and_folders_beside_folders(tmp_path):
    save(tmp_path / "a.JPG")
    save(tmp_path / "trip/b.png")
    save(tmp_path / "trip/day/c.webp")
    (tmp_path / "trip/.hidden.png").touch()
    (tmp_path / "noend").touch()
    plan = plan_files([tmp_path / "a.JPG", tmp_path / "trip", tmp_path / "noend"])
    assert targets(plan, tmp_path) == [
        ("a.JPG", "a-restored.JPG"),
        ("trip/b.png", "trip-restored/b.png"),
        ("trip/day/c.webp", "trip-restored/day/c.webp"),
        ("noend", "noend-restored.png"),
    ]
    assert plan.settled == ()


def test_out_is_a_folder_or_a_file(tmp_path):
    a = save(tmp_path / "a.png")
    save(tmp_path / "trip/day/c.jpg")
    out = tmp_path / "out"
    plan = plan_files([a, tmp_path / "trip"], out=out, ending="tiff", compare=True)
    assert targets(plan, tmp_path) == [("a.png", "out/a-restored.tiff"), ("trip/day/c.jpg", "out/day/c.tiff")]
    assert [job.compare.relative_to(out).as_posix() for job in plan.jobs] == ["a-compare.png", "day/c-compare.png"]
    one = plan_files([a], out=tmp_path / "new/b.jpeg", ending="jpg", compare=True).jobs
    assert one == (Job(a, tmp_path / "new/b.jpeg", tmp_path / "new/b-compare.png"),)
    (tmp_path / "dir.png").mkdir()
    assert plan_files([a], out=tmp_path / "dir.png").jobs[0].target == tmp_path / "dir.png/a-restored.png"


def test_a_dot_is_a_folder_with_a_name(tmp_path, monkeypatch):
    save(tmp_path / "trip/a.png")
    monkeypatch.chdir(tmp_path / "trip")
    assert plan_files(["."]).jobs[0].target.resolve() == tmp_path / "trip-restored/a.png"


def test_results_inside_the_folder_are_not_inputs(tmp_path):
    save(tmp_path / "trip/a.png")
    save(tmp_path / "trip/out/a.png")
    save(tmp_path / "trip/out/a-compare.png")
    plan = plan_files([tmp_path / "trip"], out=tmp_path / "trip/out")
    assert targets(plan, tmp_path) == [("trip/a.png", "trip/out/a.png")]


def test_the_same_input_twice_counts_once(tmp_path):
    a = save(tmp_path / "a.png")
    (tmp_path / "x").mkdir()
    assert len(plan_files([a, str(a), tmp_path / "x/../a.png"]).jobs) == 1


@pytest.mark.parametrize(
    ("inputs", "options", "match"),
    [
        ([], {}, "nothing to restore"),
        (["a.png", "a.jpg"], {"ending": "png"}, "would both give"),
        (["a.png", "b/a.png"], {"out": "o"}, "would both give"),
        (["a.png", "a.jpg"], {"compare": True}, "would both give"),
        (["a.png"], {"out": "a.png"}, "would replace its own input"),
        (["b"], {"out": "b"}, "would replace its own input"),
        (["a.png", "a-restored.png"], {"overwrite": True}, "would replace the input"),
        (["a.png", "a.jpg"], {"out": "o.png"}, "is a file name, but"),
        (["b"], {"out": "o.png"}, "is a file name, but"),
        (["a.png"], {"out": "o.gif"}, "kithkin writes only"),
        (["a.png"], {"out": "file"}, "kithkin writes only"),
        (["a.png"], {"out": "o.png", "ending": "jpg"}, "does not end in .jpg"),
        (["a.png"], {"ending": "gif"}, "format must be one of"),
    ],
)
def test_impossible_plans_are_refused(tmp_path, monkeypatch, inputs, options, match):
    monkeypatch.chdir(tmp_path)
    for name in ("a.png", "a.jpg", "b/a.png", "a-restored.png", "file"):
        save(tmp_path / name) if "." in name else (tmp_path / name).touch()
    with pytest.raises(InputError, match=match):
        plan_files(inputs, **options)


def test_a_link_to_the_input_is_the_input(tmp_path):
    a = save(tmp_path / "a.png")
    (tmp_path / "a-restored.png").symlink_to(a)
    with pytest.raises(InputError, match="own input"):
        plan_files([a], overwrite=True)
    with pytest.raises(InputError, match="own input"):
        restore_file(MODEL, a, tmp_path / "a-restored.png", options=RestoreOptions(overwrite=True))


def test_a_wildcard_used_twice_does_not_restore_results(tmp_path):
    paths = [save(tmp_path / name) for name in ("a.png", "a-restored.png", "a-compare.png")]
    plan = plan_files(paths, compare=True)
    assert [job.source.name for job in plan.jobs] == ["a.png"]
    assert [(o.source.name, o.status) for o in plan.settled] == [
        ("a-restored.png", "skipped"),
        ("a-compare.png", "skipped"),
    ]


def test_a_folder_without_pictures_is_settled_as_failed(tmp_path):
    (tmp_path / "x.png").mkdir()
    a = save(tmp_path / "a.png")
    plan = plan_files([tmp_path / "x.png", a])
    assert [(o.status, "holds no picture" in o.reason) for o in plan.settled] == [("failed", True)]
    assert len(plan.jobs) == 1


def test_restore_file_writes_what_restore_gives(tmp_path):
    a = save(tmp_path / "a.png", (20, 30))
    assert restore_file(MODEL, a, tmp_path / "deep/er/b.png") == ()
    want = restore(MODEL, np.asarray(Image.open(a)))
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "deep/er/b.png")), want)


def test_restore_file_refuses_before_it_computes(tmp_path):
    a = save(tmp_path / "a.png")
    b = save(tmp_path / "b.png")
    model = Local()
    with pytest.raises(ImageError, match="exists already"):
        restore_file(model, a, b)
    with pytest.raises(ImageError, match="has the ending"):
        restore_file(model, a, tmp_path / "b.gif")
    assert model.sizes == []


def test_a_comparison_replaces_neither_input_nor_result(tmp_path):
    a, b, model = save(tmp_path / "a.png"), tmp_path / "b.png", Local()
    before = a.read_bytes()
    for compare, match in ((a, "own input"), (b, "replace the result")):
        with pytest.raises(InputError, match=match):
            restore_file(model, a, b, compare=compare, options=RestoreOptions(overwrite=True))
    assert a.read_bytes() == before
    assert model.sizes == []


@pytest.mark.parametrize(("name", "match"), [("c.gif", "has the ending"), ("c.jpg", "at most 65500 pixels a side")])
def test_a_comparison_that_no_file_can_hold_is_refused_before_the_work(tmp_path, name, match):
    a, model = save(tmp_path / "a.png", (1, 40_000)), Local()
    with pytest.raises(ImageError, match=match):
        restore_file(model, a, tmp_path / "b.png", compare=tmp_path / name)
    assert model.sizes == []
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.png"]


def test_a_run_that_was_stopped_while_it_wrote_makes_up_for_it(tmp_path, monkeypatch):
    folder, done = save(tmp_path / "trip/a.png").parent, tmp_path / "done"
    real = files.write_picture

    def stop(picture, path, **options):
        if written:
            raise KeyboardInterrupt
        written.append(path)
        real(picture, path, **options)

    written = []
    monkeypatch.setattr(files, "write_picture", stop)
    with pytest.raises(KeyboardInterrupt):
        list(restore_files(MODEL, plan_files([folder], out=done, compare=True).jobs))
    monkeypatch.undo()
    (outcome,) = restore_files(MODEL, plan_files([folder], out=done, compare=True).jobs)
    assert outcome.status == "written"
    assert sorted(path.name for path in done.iterdir()) == ["a-compare.png", "a.png"]


def test_restore_file_tells_what_was_lost(tmp_path):
    picture = Picture(RNG.random((5, 6, 3), dtype=np.float32), np.zeros((5, 6), np.float32), 16)
    write_picture(picture, tmp_path / "a.tif")
    notes = restore_file(Local(largest=64), tmp_path / "a.tif", tmp_path / "b.jpg")
    assert any("16 are reduced to 8" in note for note in notes)
    assert any("laid over white" in note for note in notes)


def test_notes_on_memory_reach_the_outcome(tmp_path):
    a = save(tmp_path / "a.png", (70, 100))
    (outcome,) = restore_files(Local(largest=64), [Job(a, tmp_path / "b.png")])
    assert outcome.status == "written"
    assert "started again with 64" in outcome.notes[0]


def test_too_little_memory_for_one_file_is_its_failure(tmp_path):
    a, b = save(tmp_path / "a.png", (70, 100)), save(tmp_path / "b.png", (8, 8))
    jobs = plan_files([a, b]).jobs
    outcomes = list(restore_files(Local(largest=10), jobs))
    assert [o.status for o in outcomes] == ["failed", "written"]
    assert outcomes[0].reason.startswith(f"{a}: restore: not enough memory")


def test_a_bug_is_not_a_files_failure(tmp_path):
    a = save(tmp_path / "a.png")
    with pytest.raises(RuntimeError, match="shapes"):
        list(restore_files(Local(lambda x: x @ torch.zeros(2, 2)), plan_files([a]).jobs))


def test_the_same_bytes_whatever_the_company_and_order(tmp_path):
    paths = [save(tmp_path / f"{i}.png", (20 + i, 90), seed=i) for i in range(3)]
    options = RestoreOptions(tile=64)
    results = []
    for i, order in enumerate(([0, 1, 2], [2, 0, 1], [1])):
        plan = plan_files([paths[j] for j in order], out=tmp_path / f"out{i}")
        list(restore_files(MODEL, plan.jobs, options=options))
        results.append({job.source: job.target.read_bytes() for job in plan.jobs})
    assert results[0] == results[1]
    assert results[2].items() <= results[0].items()


def test_before_and_after_stand_side_by_side(tmp_path):
    before = Picture(np.zeros((4, 5, 3), np.float32), np.zeros((4, 5), np.float32), 16, icc=b"x" * 20)
    after = Picture(np.full((4, 5, 3), 0.5, np.float32))
    both = side_by_side(before, after)
    assert both.pixels.shape == (4, 18, 3)
    assert (both.depth, both.alpha, both.icc) == (8, None, b"x" * 20)
    assert (both.pixels[:, :13] == 1).all()
    assert (both.pixels[:, 13:] == 0.5).all()


@pytest.mark.parametrize("values", [{"tile": 3}, {"overlap": -1}, {"strength": 2}, {"quality": 0}, {"quality": 95.0}])
def test_options_are_checked(values):
    with pytest.raises(InputError, match=next(iter(values))):
        RestoreOptions(**values)


def test_overlap_is_the_default():
    assert RestoreOptions().overlap == OVERLAP


def test_gray_files_stay_gray(tmp_path):
    Image.fromarray(RNG.integers(0, 256, (9, 9), dtype=np.uint8)).save(tmp_path / "a.png")
    restore_file(MODEL, tmp_path / "a.png", tmp_path / "b.png")
    assert Image.open(tmp_path / "b.png").mode == "L"
    assert read_picture(tmp_path / "b.png").gray
