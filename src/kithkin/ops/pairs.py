"""Fewer pairs for the same picture: of the candidates that hashing found, attend to the best alone."""

import torch
from torch import Tensor

from kithkin.errors import InputError
from kithkin.ops.grouping import PatchGroups


@torch.no_grad()
def best_neighbors(query: Tensor, key: Tensor, groups: PatchGroups, n_pairs: int) -> PatchGroups:
    """Keep the candidates of largest pair weight, each once.

    The candidates of all rounds are ranked by the inner products of Eq. (10), summed over the heads, which costs 1/P of
    the products of Eq. (8). Those found in several rounds then count once, unlike in the chunks themselves (D3).

    Args:
        query, key: (B, N, P, C) floats.
        groups: chunks, from ``kithkin.ops.group_patches``.
        n_pairs: neighbours that each patch keeps, at least 1.

    Returns:
        Groups with ``neighbors`` (B, N, min(n_pairs, h·K)), the best first; -1 where a patch has fewer candidates.

    Raises:
        InputError: the groups are lists already, or n_pairs < 1.
    """
    if groups.neighbors is not None or n_pairs < 1:
        raise InputError(f"best_neighbors: expected chunks and n_pairs ≥ 1, got n_pairs={n_pairs}, groups={groups}")
    batch, count = query.shape[:2]
    chunks, candidates = groups.chunks(), groups.candidates()
    q, k = (x.detach().flatten(2) for x in (query, key))
    image = torch.arange(batch, device=q.device)[:, None, None]
    found, logits = [], []
    for j in range(groups.n_hashes):
        own, seen = chunks[:, j], candidates[:, j]
        dots = q[image, own.clamp(min=0)] @ k[image, seen.clamp(min=0)].transpose(-1, -2)
        dots = dots.float().masked_fill(seen.lt(0).unsqueeze(-2), -torch.inf)
        place = groups.order[:, j].argsort(dim=-1)[..., None].expand(-1, -1, seen.shape[-1])
        logits.append(dots.flatten(1, 2).gather(1, place))
        found.append(seen.unsqueeze(2).expand(-1, -1, own.shape[-1], -1).flatten(1, 2).gather(1, place))
    index, by_index = torch.cat(found, dim=-1).sort(dim=-1)
    weight = torch.cat(logits, dim=-1).gather(-1, by_index)
    again = torch.zeros_like(index, dtype=torch.bool)
    again[..., 1:] = index[..., 1:] == index[..., :-1]
    top = weight.masked_fill(again | (index < 0), -torch.inf).topk(min(n_pairs, index.shape[-1]), dim=-1)
    neighbors = index.gather(-1, top.indices).masked_fill(top.values == -torch.inf, -1)
    identity = torch.arange(count, device=q.device).expand(batch, 1, count)
    return PatchGroups(identity, k=1, look_back=False, neighbors=neighbors)
