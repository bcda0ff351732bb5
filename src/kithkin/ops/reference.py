"""Eqs. (8)-(10), literally: the ground truth for every other backend. Slow, and needs much memory."""

import math

import torch
from torch import Tensor

from kithkin.ops.backend import Backend, takes_dtypes
from kithkin.ops.grouping import PatchGroups

WEIGHTINGS = ("softmax", "paper")


def pairwise_attention(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Eq. (8): o_{p,q} = softmax(φ(x̃_p) θ(x̃_q)ᵀ / √C) ψ(x̃_q), from pixel to pixel of one pair of patches.

    Args:
        query, key, value: (…, P, C) with leading dimensions that broadcast.

    Returns:
        (…, P, C) in the dtype of ``value``; the softmax is computed in float32 at least.
    """
    logits = (query @ key.transpose(-1, -2)) / math.sqrt(query.shape[-1])
    return torch.softmax(_at_least_float32(logits), dim=-1).to(value.dtype) @ value


def pairwise_weights(query: Tensor, key: Tensor, valid: Tensor, *, weighting: str = "softmax") -> Tensor:
    """Eq. (10): how much each candidate patch counts, from the inner product of flattened patches.

    ``"paper"`` divides the inner products by their sum, as printed. The sum is signed, so weights are unbounded
    where it comes near zero (decision D4). ``"softmax"`` takes the softmax of the mean scaled inner product,
    <φ(x⃗_p), θ(x⃗_q)> / (P √C): positive, bounded, and uniform for a network at rest.

    Args:
        query: (…, P, C), one patch.
        key: (…, M, P, C), its M candidates.
        valid: (…, M) bool; a False candidate gets weight 0.

    Returns:
        (…, M) in float32 at least; sums to 1 over the valid candidates.
    """
    dots = torch.einsum("...pc,...mpc->...m", _at_least_float32(query), _at_least_float32(key))
    if weighting == "paper":
        dots = dots.masked_fill(~valid, 0.0)
        return dots / dots.sum(dim=-1, keepdim=True)
    mean = dots / (query.shape[-2] * math.sqrt(query.shape[-1]))
    return torch.softmax(mean.masked_fill(~valid, torch.finfo(mean.dtype).min), dim=-1)


def aggregate(weights: Tensor, outputs: Tensor) -> Tensor:
    """Eq. (9): o_p = Σ_j w_{p,j} · o_{p,j} over the candidates j.

    Args:
        weights: (…, M).
        outputs: (…, M, P, C).

    Returns:
        (…, P, C) in the dtype of ``outputs``; summed in the dtype of ``weights``.
    """
    return torch.einsum("...m,...mpc->...pc", weights, outputs.to(weights.dtype)).to(outputs.dtype)


def candidates_of_each_patch(groups: PatchGroups) -> Tensor:
    """N_p over all rounds, in patch order: (B, N, h·K) int64 indices, -1 where a place is empty."""
    chunks, candidates = groups.chunks(), groups.candidates()
    batch, rounds, _, size = chunks.shape
    # A chunk's patches share its candidates: listed by sorted place first, then by patch.
    wide = candidates.unsqueeze(3).expand(-1, -1, -1, size, -1).flatten(2, 3)
    inverse = groups.order.argsort(dim=-1)
    in_patch_order = wide.gather(2, inverse.unsqueeze(-1).expand(batch, rounds, inverse.shape[-1], wide.shape[-1]))
    return in_patch_order.transpose(1, 2).flatten(2)


def attention(query: Tensor, key: Tensor, value: Tensor, groups: PatchGroups, weighting: str, n_heads: int) -> Tensor:
    """k-NN local attention of all patches at once; arguments as in ``kithkin.ops.knn_local_attention``."""
    batch, count, pixels, channels = query.shape
    # Heads are problems of their own, side by side in the batch.
    split = [x.unflatten(-1, (n_heads, channels // n_heads)).movedim(-2, 1) for x in (query, key, value)]
    q, k, v = (x.reshape(batch * n_heads, count, pixels, channels // n_heads) for x in split)
    # The keys and values of N_p for each patch: (B·heads, N, M, P, C / heads).
    listed = candidates_of_each_patch(groups).repeat_interleave(n_heads, dim=0)
    valid = listed >= 0
    index = listed.clamp(min=0)
    image = torch.arange(batch * n_heads, device=q.device)[:, None, None]
    candidate_keys, candidate_values = k[image, index], v[image, index]
    outputs = pairwise_attention(q.unsqueeze(2), candidate_keys, candidate_values)  # Eq. (8)
    weights = pairwise_weights(q, candidate_keys, valid, weighting=weighting)  # Eq. (10)
    out = aggregate(weights, outputs)  # Eq. (9)
    return out.unflatten(0, (batch, n_heads)).movedim(1, -2).flatten(-2)


def _at_least_float32(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float64 else x.float()


BACKEND = Backend(
    "reference",
    takes_dtypes("reference", torch.float16, torch.bfloat16, torch.float32, torch.float64),
    plain=attention,
)
