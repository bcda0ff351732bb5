"""Pictures of equal size through the network at once."""

from collections.abc import Sequence

import torch

from kithkin.blending import blended
from kithkin.containers import check_values, open_image
from kithkin.images import Picture
from kithkin.model import KiT
from kithkin.precision import settled_precision
from kithkin.restore_options import RestoreOptions
from kithkin.restorers import finished, is_neutral


def restore_together(model: KiT, pictures: Sequence[Picture], options: RestoreOptions) -> list[Picture]:
    """Restore pictures of one size, all gray or all in colour, in one pass of the network, or of an
    ensemble; what the options say of tiles and of uniform blur is not looked at.

    The values are those of ``kithkin.restoration.restore`` but for float rounding: matrix products
    of other sizes add in another order. So a few samples of small pictures may differ by one level;
    in bfloat16, more of them.

    Raises:
        KithkinError: the model gives NaN or infinite values.
    """
    opened = [open_image(picture) for picture in pictures]
    planes = torch.cat([plane for plane, _ in opened])
    check_values(planes)
    restorer = options.passes(model, settled_precision(options.precision, model))
    result = restorer(planes.expand(-1, 3, -1, -1))
    result = result.mean(1, keepdim=True) if planes.shape[1] == 1 else result
    for i, picture in enumerate(planes):
        if is_neutral(picture):
            result[i] = result[i].mean(0)
    result = torch.stack([blended(*pair, *options.amounts) for pair in zip(planes, result, strict=True)])
    finished(result)
    return [rebuild(result[i : i + 1]) for i, (_, rebuild) in enumerate(opened)]
