"""Eqs. (8)-(10) by PyTorch's FlexAttention: an oracle that shares no line with the backends. Forward pass, softmax.

The softmax of Eq. (8) runs over the pixels of one candidate, and Eq. (10) weighs candidates by the exponential of their
pair's logit. So one softmax over all pixels of all candidates does, if each score gets its pair's logit and loses the
logarithm of its own group's sum. Rounds are joined by the logarithms of the sums that FlexAttention returns.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import flex_attention as flex

from kithkin.ops import PatchGroups


def compiled(device: str) -> Callable[..., Any]:
    """FlexAttention: fused on a GPU, as plain PyTorch elsewhere, which is slow."""
    return torch.compile(flex.flex_attention) if torch.device(device).type == "cuda" else flex.flex_attention


@dataclass(frozen=True)
class Round:
    """One round's chunks as a batch: queries (B·G, heads, kP, D), keys and values (B·G, heads, K·P, D), what each
    score gets, (B·G, heads, kP, K) float32, and the patches of the queries, (B·G, k), -1 where there is none."""

    query: Tensor
    key: Tensor
    value: Tensor
    bias: Tensor
    places: Tensor


def rounds_of(query: Tensor, key: Tensor, value: Tensor, groups: PatchGroups, n_heads: int = 1) -> list[Round]:
    """Everything that FlexAttention is given: gathered patches, and the bias, which takes all logits to compute."""
    made = []
    for own, seen in zip(groups.chunks().unbind(1), groups.candidates().unbind(1), strict=True):
        q = _taken(query, own, n_heads)
        k, v = (_taken(x, seen, n_heads) for x in (key, value))
        pixels, scale = query.shape[2], q.shape[-1] ** -0.5
        logits = (q.float() @ k.float().mT * scale).unflatten(-1, (-1, pixels)).unflatten(2, (-1, pixels))
        pair = logits.diagonal(dim1=3, dim2=5).mean(-1)  # (B·G, heads, k, K)
        pair = pair.masked_fill((seen < 0).flatten(0, 1)[:, None, None, :], float("-inf"))
        bias = pair[:, :, :, None, :] - logits.logsumexp(-1)
        made.append(Round(q, k, v, bias.flatten(2, 3).contiguous(), own.flatten(0, 1)))
    return made


def _taken(x: Tensor, index: Tensor, n_heads: int) -> Tensor:
    """(B, N, P, C) and (B, G, m) -> (B·G, heads, m·P, D); a place that is empty repeats the first patch."""
    first = torch.arange(len(x), device=x.device)[:, None, None]
    found = x[first, index.clamp(min=0)].flatten(0, 1)
    return found.flatten(1, 2).unflatten(-1, (n_heads, -1)).transpose(1, 2).contiguous()


def attend(made: Round, pixels: int, attention: Callable[..., Any] = flex.flex_attention) -> tuple[Tensor, Tensor]:
    """Of one round: the output (B·G, heads, kP, D), and the logarithm of each row's sum of weights."""
    bias = made.bias

    def score(s: Tensor, b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
        return s + bias[b, h, i, j // pixels]

    wanted = flex.AuxRequest(lse=True)
    out, more = attention(made.query, made.key, made.value, score_mod=score, return_aux=wanted)
    return out, more.lse


def knn_local_attention(query: Tensor, key: Tensor, value: Tensor, groups: PatchGroups, n_heads: int = 1) -> Tensor:
    """As ``kithkin.ops.knn_local_attention`` with the weighting ``softmax``: (B, N, P, C)."""
    batch, count, pixels, channels = query.shape
    attention = compiled(query.device.type)
    outs, levels = [], []
    for made in rounds_of(query, key, value, groups, n_heads):
        found, lse = attend(made, pixels, attention)
        rows = torch.cat([found.float(), lse[..., None].float()], dim=-1).transpose(1, 2)  # (B·G, kP, heads, D + 1)
        rows = rows.unflatten(1, (-1, pixels)).unflatten(0, (batch, -1)).flatten(1, 2)  # by place in the sorted order
        places = made.places.view(batch, -1)
        back = torch.stack([row[row >= 0].argsort() for row in places])
        laid = torch.stack([x[i] for x, i in zip(rows, back, strict=True)])
        outs.append(laid[..., :-1])
        levels.append(laid[..., -1:])
    shares = torch.stack(levels).softmax(0)
    joined = (torch.stack(outs) * shares).sum(0)
    return joined.reshape(batch, count, pixels, channels).to(query.dtype)
