"""Muon: steps of orthogonal matrices (Jordan et al. 2024, "Muon: an optimizer for hidden layers in neural networks").

``torch.optim.Muon`` takes matrices alone, one at a time; this one takes the kernels of convolutions as well, and all
weights of one shape together, which is what makes it cheap for the many small weights of KiT.
"""

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor

_COEFFICIENTS = (3.4445, -4.7750, 2.0315)
"""Of the quintic a x + b x³ + c x⁵ that brings every singular value near 1 in five steps (Jordan et al. 2024)."""
_STEPS = 5


def orthogonalised(matrices: Tensor) -> Tensor:
    """The nearest matrices with orthonormal rows or columns, roughly: singular values end between 0.6 and 1.3.

    Args:
        matrices: (N, rows, columns) floats.

    Returns:
        The same shape: U Vᵀ of each matrix U S Vᵀ, by the Newton-Schulz iteration; zeros where a matrix is zero.
    """
    a, b, c = _COEFFICIENTS
    tall = matrices.shape[-2] > matrices.shape[-1]
    x = matrices.mT if tall else matrices
    x = x / (torch.linalg.matrix_norm(x, keepdim=True) + 1e-7)
    for _ in range(_STEPS):
        gram = x @ x.mT
        polynomial = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
        x = torch.baddbmm(x, polynomial, x, beta=a)
    return x.mT if tall else x


def hidden_weights(model: nn.Module) -> list[Tensor]:
    """What Muon takes of a network: weights of linear layers and convolutions that map many features to many. Those
    that read a picture or write one are left out, and depth-wise convolutions, which are no matrices."""
    return [
        layer.weight
        for layer in model.modules()
        if isinstance(layer, nn.Linear | nn.Conv2d) and min(len(layer.weight), layer.weight.shape[1]) > 3
    ]


class Muon(torch.optim.Optimizer):
    """Momentum whose step is orthogonalised, with decoupled weight decay.

    Args:
        params: weights of at least two dimensions; all but the first are taken as the columns.
        lr: learning rate.
        momentum: of Nesterov's momentum.
        weight_decay: as AdamW's.
        update_rms: root mean square of the numbers of a step, in units of ``lr`` (roughly; the iteration is not exact).
            0.2 is that of AdamW (Liu et al. 2025, "Muon is scalable for LLM training"). Kernels of side k move by a
            k-th of it: their convolution adds up k² products where a point-wise layer has one.
        dtype: in which steps are orthogonalised. In bfloat16 it takes half as long where matrix products do, and the
            result, rough in any case, differs by a few hundredths.

    A parameter that FSDP shards is orthogonalised whole, by every process.
    """

    def __init__(
        self,
        params: Iterable[Tensor],
        lr: float,
        *,
        momentum: float = 0.95,
        weight_decay: float = 0.0,
        update_rms: float = 0.5,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        self.dtype = dtype
        defaults = {"lr": lr, "momentum": momentum, "weight_decay": weight_decay, "update_rms": update_rms}
        super().__init__(params, defaults)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> None:  # type: ignore[override]
        """One step on the gradients at hand; parameters without one stay as they are."""
        for group in self.param_groups:
            alike: dict[tuple[int, ...], list[tuple[Tensor, Tensor]]] = {}
            for parameter in group["params"]:
                if parameter.grad is not None:
                    update = self._momentum(parameter, group["momentum"])
                    alike.setdefault(tuple(parameter.shape), []).append((parameter, update))
            for updates in alike.values():
                self._move(updates, group)

    def _momentum(self, parameter: Tensor, momentum: float) -> Tensor:
        state = self.state[parameter]
        if not state:
            state["step"] = torch.tensor(0.0)
            state["exp_avg"] = torch.zeros_like(parameter)
        state["step"] += 1
        average, gradient = state["exp_avg"], parameter.grad
        average.lerp_(gradient, 1 - momentum)
        return gradient.lerp(average, momentum)  # type: ignore[union-attr]

    def _move(self, updates: list[tuple[Tensor, Tensor]], group: dict[str, Any]) -> None:
        matrices = torch.stack([_whole(update).flatten(1) for _, update in updates])
        shape = updates[0][0].shape
        side = shape[-1] if len(shape) == 4 else 1
        scale = group["lr"] * group["update_rms"] * math.sqrt(max(matrices.shape[1:])) / side
        steps = orthogonalised(matrices.to(self.dtype)).to(matrices.dtype) * scale
        for (parameter, update), step in zip(updates, steps, strict=True):
            parameter.mul_(1 - group["lr"] * group["weight_decay"])
            parameter.sub_(_like(step.unflatten(1, update.shape[1:]), update))


def _whole(tensor: Tensor) -> Tensor:
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def _like(whole: Tensor, other: Tensor) -> Tensor:
    """A tensor that every process has, spread as another is."""
    if isinstance(other, DTensor):
        return distribute_tensor(whole, other.device_mesh, other.placements, src_data_rank=None)
    return whole
