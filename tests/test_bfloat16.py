"""bfloat16 costs the shipped networks nothing that could be seen."""

import numpy as np
import pytest
import torch

from kithkin import list_models, load_model
from kithkin.config import load_config
from kithkin.metrics import psnr
from kithkin.ops import in_float32
from kithkin.training.validation import _conditions


def scene(seed, size=224):
    """Waves, discs with hard edges and fine texture: uint8 (H, W, 3)."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[0:size, 0:size] / size
    picture = np.stack([0.5 + 0.3 * np.sin(rng.normal(0, 6) * x + rng.normal(0, 6) * y + c) for c in range(3)], -1)
    for _ in range(8):
        disc = (x - rng.uniform()) ** 2 + (y - rng.uniform()) ** 2 < rng.uniform(0.05, 0.3) ** 2
        picture[disc] = rng.uniform(0, 1, 3)
    picture += 0.03 * np.sin(60 * x * (1 + y))[..., None]
    return np.rint(picture.clip(0, 1) * 255).astype(np.uint8)


@pytest.mark.parametrize("name", list_models())
def test_a_shipped_network_loses_at_most_a_twentieth_of_a_decibel(name):
    """Under the degradation that its recipe validates; all in bfloat16, `denoise-gaussian-tiny` loses a decibel."""
    model = load_model(name)
    config = load_config(name, {"data.folders": ["none"], "validation.folder": "none", "validation.crop": 96})
    condition, degraded, target = list(_conditions((scene(0),), 0, config))[-1]
    picture = torch.from_numpy(degraded).permute(2, 0, 1)[None]
    found = []
    for half in (False, True):
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=half):
            restored = model(picture)
        assert restored.dtype == torch.float32
        found.append(psnr(restored[0].permute(1, 2, 0).numpy(), target, protocol="rgb"))
    assert found[1] != found[0]
    assert found[1] >= found[0] - 0.05, f"{condition}: {found}"


def test_in_float32_is_a_plain_call_without_autocast():
    x = torch.randn(2, 3, dtype=torch.float64)
    assert in_float32(lambda y: y, x) is x
    with torch.autocast("cpu", torch.bfloat16):
        assert in_float32(lambda y: y @ y.T, x.bfloat16()).dtype == torch.float32
        assert torch.is_autocast_enabled("cpu")
