"""How much of a restoration is applied: luminance, colour, and detail brought back."""

import numpy as np
import pytest
import torch

from kithkin.blending import LUMA, blended, luma_of, structure
from kithkin.errors import InputError
from kithkin.images import Picture
from kithkin.restoration import restore
from kithkin.restore_options import PRESETS, RestoreOptions
from kithkin.restorers import Blend, Unchanged
from kithkin.tasks import derain

WEIGHTS = torch.tensor(LUMA, dtype=torch.float64)[:, None, None]


def noise(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


class Smooth:
    """Restores to the mean of 5 x 5 pixels."""

    stride, reach, device = 1, 2, torch.device("cpu")

    def __call__(self, image, progress=None):
        padded = torch.nn.functional.pad(image[None], (2, 2, 2, 2), mode="reflect")
        return torch.nn.functional.avg_pool2d(padded, 5, 1)[0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("luma", "chroma"), [(1, 0), (0, 1), (0.5, 1), (0.3, 0.8), (0, 0), (1, 1), (0.4, 0.4)])
def test_luminance_and_colour_are_blended_each_by_its_share(luma, chroma, dtype):
    image, restored = (0.5 + 0.1 * noise(3, 30, 40, seed=seed).to(dtype) for seed in (0, 1))
    found = blended(image, restored.clone(), luma, chroma, 0.0)
    assert found.dtype == dtype
    change, wanted = (found - image).double(), (restored - image).double()
    in_luma, wanted_luma = (WEIGHTS * change).sum(0), (WEIGHTS * wanted).sum(0)
    torch.testing.assert_close(in_luma, luma * wanted_luma, atol=1e-6, rtol=0)
    torch.testing.assert_close(change - in_luma, chroma * (wanted - wanted_luma), atol=1e-6, rtol=0)


def test_nothing_is_rounded_where_all_or_nothing_is_applied():
    image, restored = noise(3, 8, 8), noise(3, 8, 8, seed=1)
    assert torch.equal(blended(image, restored.clone(), 1, 1, 0), restored)
    assert torch.equal(blended(image, restored.clone(), 0, 0, 0), image)


def test_a_picture_without_colour_gets_none():
    gray, smooth = noise(1, 80, 80).abs(), noise(1, 80, 80, seed=1).abs()
    found = blended(gray.expand(3, -1, -1), smooth.repeat(3, 1, 1), 0.3, 0.8, 0.5)
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])
    torch.testing.assert_close(found[:1], blended(gray, smooth.clone(), 0.3, 0.8, 0.5), atol=1e-5, rtol=0)


def stripes(height, width):
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    return torch.sin((2 * x + y) * 0.9)


def test_structure_is_told_from_noise():
    """Fine stripes in a corner, under noise that is stronger where the picture is brighter."""
    height, width = 203, 266
    brightness = torch.linspace(0, 1, width).expand(height, -1).contiguous()
    grain = (0.02 + 0.04 * brightness) * noise(height, width)
    fur = torch.zeros(height, width)
    fur[:90, :90] = 0.06 * stripes(90, 90)
    found = structure(grain + fur, brightness)
    inside = np.s_[8:82, 8:82]
    assert (found - fur)[inside].square().mean() < 0.3 * fur[inside].square().mean()
    elsewhere = found[110:, 110:]
    assert elsewhere.square().mean() < 0.05 * grain[110:, 110:].square().mean()


def test_structure_does_not_depend_on_how_many_rows_are_in_memory(monkeypatch):
    residual, brightness = noise(300, 90), noise(300, 90, seed=1)
    whole = structure(residual, brightness)
    monkeypatch.setattr("kithkin.blending._ROWS", 5)
    torch.testing.assert_close(structure(residual, brightness), whole, atol=1e-6, rtol=0)


def test_the_blocks_add_up_to_the_picture(monkeypatch):
    monkeypatch.setattr("kithkin.blending._ABOVE", 0.0)
    residual = 0.5 * stripes(203, 266)  # without a mean in any block, about: that alone is left out
    found = structure(residual, torch.zeros_like(residual))
    assert (found - residual).abs().mean() < 0.02 * residual.abs().mean()


@pytest.mark.parametrize("shape", [(64, 64), (65, 67), (64, 1000), (63, 500), (1, 1)])
def test_structure_of_any_size(shape):
    found = structure(noise(*shape), noise(*shape, seed=1))
    assert found.shape == shape
    assert found.isfinite().all()
    assert found.any() == (min(shape) >= 64)


@pytest.mark.parametrize("residual", [torch.zeros(80, 80), torch.eye(80)])
def test_where_nothing_was_removed_nothing_comes_back(residual):
    found = structure(residual, torch.zeros(80, 80))
    assert found.isfinite().all()
    assert found.abs().max() <= 1
    assert residual.any() or not found.any()


def test_detail_is_added_to_all_channels_alike():
    image = (0.5 + 0.05 * noise(3, 100, 120) + 0.1 * stripes(100, 120)).clamp(0, 1)
    smooth = Smooth()(image)
    found = blended(image, smooth.clone(), 1, 1, 0.5)
    wanted = 0.5 * structure(luma_of(image - smooth), luma_of(smooth))
    assert wanted.abs().max() > 0.02
    torch.testing.assert_close(found - smooth, wanted.expand(3, -1, -1), atol=1e-6, rtol=0)


def test_presets_give_what_is_not_given():
    assert RestoreOptions().amounts == (1, 1, 0)
    assert RestoreOptions(preset="keep-grain").amounts == PRESETS["keep-grain"]
    assert RestoreOptions(preset="natural", luma=0.25).amounts == (0.25, *PRESETS["natural"][1:])
    assert RestoreOptions(preset="natural", detail=0, strength=0.5).amounts == (0.5 * 0.85, 0.5, 0)


def test_without_a_preset_photographs_keep_some_texture_and_all_else_is_restored_fully():
    for task in ("derain", "deblur", "denoise-gaussian"):
        assert RestoreOptions().for_model("a-model", task).amounts == (1, 1, 0)
    natural = RestoreOptions().for_model("denoise-tiny", "denoise")
    assert natural.amounts == PRESETS["natural"]
    assert RestoreOptions(preset="strong").for_model("denoise-tiny", "denoise").amounts == (1, 1, 0)


def test_options_compose_a_blend_only_where_they_ask_for_it():
    assert not isinstance(RestoreOptions(preset="strong", luma=1).compose(Smooth()), Blend)
    found = RestoreOptions(luma=0.5, detail=0.25, strength=0.5).compose(Smooth())
    assert (found.luma, found.chroma, found.detail) == (0.25, 0.5, 0.25)
    assert RestoreOptions(luma=0, chroma=0, detail=1).compose(Smooth()) == Unchanged()


def test_speckle_goes_and_grain_stays():
    image = (0.5 + 0.05 * noise(3, 64, 64)).permute(1, 2, 0).numpy()
    found = restore(Smooth(), image, luma=0, chroma=1)
    weights = np.float32(LUMA)
    np.testing.assert_allclose(found @ weights, image @ weights, atol=1e-6)
    colour = found - (found @ weights)[..., None]
    assert colour.std() < 0.3 * (image - (image @ weights)[..., None]).std()


def test_results_are_told_apart_by_their_amounts():
    seen = {str(RestoreOptions(**given).identity("float32")) for given in ({}, {"luma": 0.5}, {"detail": 0.5})}
    assert len(seen) == 3
    assert RestoreOptions(preset="strong", luma=1).identity("float32") == RestoreOptions().identity("float32")


@pytest.mark.parametrize("name", ["luma", "chroma", "detail"])
@pytest.mark.parametrize("value", [-0.1, 1.1, float("nan"), "1", True])
def test_other_amounts_are_refused(name, value):
    with pytest.raises(InputError, match=f"{name} must be a number from 0 to 1"):
        RestoreOptions(**{name: value})


def test_other_presets_are_refused():
    with pytest.raises(InputError, match="preset must be one of strong, natural, keep-grain, got 'soft'"):
        RestoreOptions(preset="soft")


def test_detail_is_for_noise():
    picture = Picture(np.full((8, 8, 3), 0.5, np.float32))
    with pytest.raises(InputError, match="derain is for derain, and detail can be told from noise alone"):
        derain(picture, preset="natural")
    with pytest.raises(InputError, match="leave out `detail` or `uniform_blur`"):
        RestoreOptions(detail=0.5, uniform_blur="light")
    assert RestoreOptions(preset="natural", uniform_blur="light").amounts[2] == 0
