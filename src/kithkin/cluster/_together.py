"""Pictures of equal size through the network at once."""

from collections.abc import Sequence

import torch

from kithkin.containers import check_values, open_image
from kithkin.ensemble import run_ensemble
from kithkin.errors import KithkinError
from kithkin.images import Picture
from kithkin.model import KiT
from kithkin.restoration import _evaluating, _home, is_neutral
from kithkin.restore_options import CPU_TILE, check_strength


def room_for(height: int, width: int, most: int, tile: str | int = "auto") -> int:
    """How many pictures of this size to restore at once: together they have no more pixels than one tile, each fits
    into one, and they are at most `most`."""
    side = tile if isinstance(tile, int) else CPU_TILE
    return max(1, min(most, side**2 // (height * width))) if max(height, width) <= side else 1


def restore_together(
    model: KiT, pictures: Sequence[Picture], *, strength: float = 1.0, ensemble: int = 1
) -> list[Picture]:
    """Restore pictures of one size, all gray or all in colour, in one pass of the network (or ``ensemble`` passes).

    The values are those of ``kithkin.restoration.restore`` but for float rounding: matrix products of other
    sizes add in another order. So a few samples of small pictures may differ by one level.

    Raises:
        KithkinError: the model gives NaN or infinite values.
    """
    check_strength(strength)
    opened = [open_image(picture) for picture in pictures]
    planes = torch.cat([plane for plane, _ in opened])
    check_values(planes)
    device, dtype = _home(model)
    with _evaluating(model), torch.inference_mode():
        result = run_ensemble(model, planes.expand(-1, 3, -1, -1).to(device, dtype).contiguous(), ensemble)
        result = (result.mean(1, keepdim=True) if planes.shape[1] == 1 else result).cpu()
    if not all(torch.isfinite(v) for v in result.aminmax()):
        raise KithkinError("restore: the model gives NaN or infinite values; its weights are damaged, take others")
    result = result.clone()  # Out of inference mode, as the pictures are written into.
    for i, picture in enumerate(planes):
        if is_neutral(picture):
            result[i] = result[i].mean(0)
    if strength != 1:
        torch.lerp(planes, result, strength, out=result)
    result.clamp_(0, 1)
    return [rebuild(result[i : i + 1]) for i, (_, rebuild) in enumerate(opened)]
