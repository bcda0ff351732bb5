"""Blur, made as a camera makes it: light that moves during an exposure is added up, linearly, and clipped afterwards.

The picture is brought to linear light and its clipped highlights are made brighter again. Then it moves along a path,
turning and growing a little, so that the kernel changes over the picture; a part of it may move on a path of its own,
or the lens be out of focus. Noise, clipping, the tone curve and 8 bits follow.

Sources: the paths are those of `kithkin.data.degrade.kernels`; averaging frames follows GoPro (Nah et al., "Deep
multi-scale convolutional neural network for dynamic scene deblurring", 2017), whose usual half averages 7 to 13 of them
as they are stored, its other half with a gamma of 2.2 (its targets are the middle ones, ours lie at the mean place);
saturation and noise follow RSBlur (Rim et al., "Realistic blur synthesis for learning image deblurring", 2022).
"""

import torch
from torch import Tensor

from kithkin.data.degrade.exposure import NODES, BlurSettings, Exposure, Kernels, plan_blur
from kithkin.data.degrade.fields import Source, as_draws, normal_field, smooth_field
from kithkin.data.degrade.kernels import disc_kernels, spectrum
from kithkin.data.transfer import moved
from kithkin.errors import InputError

__all__ = ["BlurSettings", "add_blur", "apply_blur", "blurred", "cut"]

_HIGHLIGHT = 0.98
"""Stored value from which a channel counts as clipped; the others of a pixel stay as they are."""
_CELLS = 3
"""Numbers along each side of the grid from which the mask of a moving part is drawn."""


def add_blur(clean: Tensor, source: Source, settings: BlurSettings) -> tuple[Tensor, Tensor]:
    """Blur photographs.

    Args:
        clean: (B, 3, H + 2 margin, W + 2 margin) floats in [0, 1].
        source: of all random numbers, see ``degrade_photos``.
        settings: the kinds of blur and their shares.

    Returns:
        degraded and target, both (B, 3, H, W) in [0, 1], of the dtype of ``clean``; the target is its middle.

    Raises:
        InputError: ``clean`` is something else, or no larger than its margins.
    """
    margin = settings.margin
    if clean.ndim != 4 or clean.shape[1] != 3 or not clean.is_floating_point() or min(clean.shape[2:]) <= 2 * margin:
        raise InputError(
            f"add_blur: pictures are (B, 3, H, W) floats in [0, 1], larger than two margins of {margin}; "
            f"got {clean.dtype} {tuple(clean.shape)}"
        )
    draws, size = as_draws(source, len(clean)), (clean.shape[2], clean.shape[3])
    return apply_blur(clean, moved(plan_blur(draws, size, settings), clean.device), settings)


def apply_blur(clean: Tensor, exposure: Exposure, settings: BlurSettings) -> tuple[Tensor, Tensor]:
    """(degraded, target) of pictures (B, 3, H, W), by numbers that have been moved to their device."""
    target = cut(clean, settings.margin)
    if not len(exposure.exposed):
        return target, target
    stored = clean.index_select(0, exposure.exposed).to(torch.promote_types(clean.dtype, torch.float32))
    mask = foreground_mask(exposure.masks, (clean.shape[2], clean.shape[3])).to(stored)
    moved_light = blurred(_light_of(stored, exposure), exposure.kernels, settings.margin, mask)
    noise = normal_field(exposure.noise, tuple(moved_light.shape[1:])).to(moved_light)
    shot, read = (x.view(-1, 1, 1, 1).to(moved_light) for x in (exposure.shot, exposure.read))
    spread = torch.addcmul(read.square(), shot, moved_light.clamp(min=0)).sqrt_()
    seen = moved_light.addcmul_(noise, spread).clamp_(0, 1)
    for places, back in ((exposure.srgb, srgb_from_light), (exposure.gamma, gamma_from_light)):
        if len(places):
            seen.index_copy_(0, places, back(seen.index_select(0, places)))
    if settings.quantised:
        seen = seen.mul_(255).round_().div_(255)
    degraded = seen.clamp_(0, 1).to(clean.dtype)
    if not len(exposure.sharp):
        return degraded, target
    return torch.cat([degraded, target.index_select(0, exposure.sharp)]).index_select(0, exposure.order), target


def _light_of(stored: Tensor, exposure: Exposure) -> Tensor:
    """Linear light, with brighter highlights, of stored values, which are overwritten."""
    for places, to_light, bright in (
        (exposure.srgb, srgb_to_light, exposure.bright[0]),
        (exposure.gamma, gamma_to_light, exposure.bright[1]),
    ):
        if len(places):
            values = stored.index_select(0, places)
            factor = torch.where(values >= _HIGHLIGHT, 1 + bright.view(-1, 1, 1, 1).to(values), 1.0)
            stored.index_copy_(0, places, to_light(values) * factor)
    return stored


def blurred(light: Tensor, kernels: Kernels, margin: int, mask: Tensor) -> Tensor:
    """Blur pictures of linear light.

    A picture that moves, turns and grows is that of 3×3 kernels, at its corners, between them and in its middle, whose
    results are blended linearly. A moving part is laid over it: what its mask covers is blurred by its own kernel, and
    so is the mask.

    Args:
        light: (B, 3, H + 2 margin, W + 2 margin), not negative.
        kernels: rendered, and moved to the device.
        margin: the reach of all kernels.
        mask: (n, 1, H + 2 margin, W + 2 margin) of the moving parts of those pictures that have one.

    Returns:
        (B, 3, H, W).
    """
    size = (light.shape[2], light.shape[3])
    waves = torch.fft.rfft2(light)
    if len(kernels.soft):
        discs = spectrum(disc_kernels(kernels.disc, margin), size).unsqueeze(1)
        waves.index_copy_(0, kernels.soft, waves.index_select(0, kernels.soft) * discs)
    result = light.new_empty(*light.shape[:2], *(side - 2 * margin for side in size))
    if len(kernels.even):
        transfer = _waves_of(kernels.one, size).unsqueeze(1)
        result.index_copy_(0, kernels.even, _back(waves.index_select(0, kernels.even) * transfer, size[1], margin))
    if len(kernels.varying):
        transfers = _waves_of(kernels.many, size).unflatten(1, (NODES, NODES))
        result.index_copy_(
            0, kernels.varying, _blended(waves.index_select(0, kernels.varying), transfers, size[1], margin)
        )
    if len(kernels.front):
        part = torch.cat([mask, mask * light.index_select(0, kernels.front)], 1)
        parts = _waves_of(kernels.parts, size).unsqueeze(1)
        cover = _back(torch.fft.rfft2(part) * parts, size[1], margin)
        behind = result.index_select(0, kernels.front)
        result.index_copy_(0, kernels.front, behind * (1 - cover[:, :1]) + cover[:, 1:])
    return result


def _blended(waves: Tensor, kernels: Tensor, width: int, margin: int) -> Tensor:
    """Pictures (B, 3, …) of ``waves``, by kernels (B, down, across, …) that change over them."""
    down, right = (_hats(side - 2 * margin, waves.device).to(waves.real) for side in (waves.shape[2], width))
    columns = torch.zeros((), dtype=waves.dtype, device=waves.device)
    for i in range(NODES):
        # Each axis is blended as soon as it is back in space, which spares the second one most of its work.
        columns = columns + _down(waves.unsqueeze(1) * kernels[:, i].unsqueeze(2), margin) * down[i].view(-1, 1)
    return (_across(columns, width, margin) * right.view(-1, 1, 1, right.shape[1])).sum(1)


def _waves_of(kernels: Tensor, size: tuple[int, int]) -> Tensor:
    """``torch.fft.rfft2`` of kernels at the top left of a field of this size; their empty rows are left out."""
    return torch.fft.fft(torch.fft.rfft(kernels, n=size[1]), n=size[0], dim=-2)


def _down(waves: Tensor, margin: int) -> Tensor:
    """Take the first axis of ``torch.fft.rfft2`` back to space. The middle of a kernel lies one margin from its
    corner, so a blurred picture comes out that much farther down: after two margins, and up to the border."""
    return torch.fft.ifft(waves, dim=-2)[..., 2 * margin :, :]


def _across(rows: Tensor, width: int, margin: int) -> Tensor:
    """Take the second axis back, likewise."""
    return torch.fft.irfft(rows, n=width)[..., 2 * margin :]


def _back(waves: Tensor, width: int, margin: int) -> Tensor:
    """Take both axes back."""
    return _across(_down(waves, margin), width, margin)


def _hats(side: int, device: torch.device) -> Tensor:
    """(NODES, side): how much the kernels along an axis count at each pixel; they sum to one."""
    place = torch.linspace(0, NODES - 1, side, device=device)
    return (1 - (place - torch.arange(NODES, device=device).view(-1, 1)).abs()).clamp(min=0)


def foreground_mask(keys: Tensor, size: tuple[int, int]) -> Tensor:
    """(N, 1, H, W) smooth masks of moving parts, in [0, 1], by keys (N, 2): about half of a picture."""
    # An edge a few pixels wide, so that it looks cut out of the scene and not faded into it.
    edge = 4 * _CELLS / max(size)
    return smooth_field(keys, size, _CELLS).sub_(0.5).div_(edge).add_(0.5).clamp_(0, 1)


def cut(pictures: Tensor, margin: int) -> Tensor:
    """The pictures (…, H, W) without their margins."""
    return pictures[..., margin : pictures.shape[-2] - margin, margin : pictures.shape[-1] - margin]


def srgb_to_light(stored: Tensor) -> Tensor:
    """Linear light of stored values in [0, 1], by the sRGB curve (IEC 61966-2-1)."""
    return torch.where(stored <= 0.04045, stored / 12.92, ((stored + 0.055) / 1.055) ** 2.4)


def srgb_from_light(light: Tensor) -> Tensor:
    """The inverse of ``srgb_to_light``."""
    return torch.where(light <= 0.0031308, light * 12.92, 1.055 * light.clamp(min=1e-9) ** (1 / 2.4) - 0.055)


def gamma_to_light(stored: Tensor) -> Tensor:
    """Linear light of stored values in [0, 1], by a gamma of 2.2."""
    return stored**2.2


def gamma_from_light(light: Tensor) -> Tensor:
    """The inverse of ``gamma_to_light``."""
    return light ** (1 / 2.2)
