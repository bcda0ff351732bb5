"""Geometric self-ensemble (Timofte, Rothe, Van Gool 2016): a picture goes through the network turned and mirrored as
well, and the mean of what comes out, turned back, has fewer errors than one pass."""

from collections.abc import Callable

from torch import Tensor

_MIRRORED: tuple[tuple[int, ...], ...] = ((), (2, 3), (2,), (3,))
"""Axes that each pass turns round: as it is, upside down, and in a mirror; four more passes transpose before."""


def run_ensemble(model: Callable[[Tensor], Tensor], batch: Tensor, ensemble: int) -> Tensor:
    """The mean of ``ensemble`` passes over (B, 3, H, W): as it is, then turned by 180°, then mirrored, then all that
    transposed. Returns (B, 3, H, W) float32; one pass is the model's output itself."""

    def seen(index: int) -> Tensor:
        axes, transposed = _MIRRORED[index % 4], index >= 4
        view = batch.transpose(2, 3) if transposed else batch
        result = model(view.flip(axes).contiguous()).float().flip(axes)
        return result.transpose(2, 3) if transposed else result

    total = seen(0)
    for index in range(1, ensemble):
        total = total + seen(index)
    return total / ensemble
