"""The two attentions that the paper starts from: global (Eq. 1) and local (Eq. 2)."""

import math

import torch
from torch import Tensor

from kithkin.ops.reference import pairwise_attention


def global_attention(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Eq. (1): O = softmax(φ(X_p) θ(X_p)ᵀ / √C) ψ(X_p), from whole patch to whole patch. O(N²).

    Args:
        query, key, value: (B, N, P, C); each patch is flattened to one token of P·C numbers.

    Returns:
        (B, N, P, C).
    """
    q, k, v = (x.flatten(2) for x in (query, key, value))
    logits = (q @ k.transpose(-1, -2)) / math.sqrt(query.shape[-1])
    return (torch.softmax(logits, dim=-1) @ v).unflatten(-1, value.shape[2:])


def local_attention(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Eq. (2): o_i = softmax(φ(x_i) θ(x_i)ᵀ / √C) ψ(x_i), each patch within itself.

    This is Eq. 8 with a patch as its own and only partner.

    Args:
        query, key, value: (B, N, P, C).

    Returns:
        (B, N, P, C).
    """
    return pairwise_attention(query, key, value)
