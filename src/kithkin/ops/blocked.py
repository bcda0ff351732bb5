"""Eqs. (8)-(10) in plain PyTorch, a block of chunks at a time.

A chunk is a small dense attention: its kP query pixels against the 2kP pixels of its candidates, with a softmax over
each group of P keys. The pair weight of Eq. 10 is the trace of a pair's P×P logits, so it comes with them for free.
A block's logits stay in the cache, and no tensor of all logits ever exists: the backward pass computes them again.

Rounds are combined with a running maximum, numerator and denominator a patch, as in online softmax.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from kithkin.ops.backend import Backend, takes_dtypes
from kithkin.ops.grouping import PatchGroups
from kithkin.ops.library import exporting, statically_true

# Logits of a block: 2 MiB in float32, near a core's second-level cache.
BLOCK_ELEMENTS = 1 << 19


@dataclass(frozen=True)
class _Table:
    """The groups as rows of chunks over the flattened batch: what the block loop reads.

    Attributes:
        queries: (h, G, kq) rows of the flattened (B·N) patches; empty places repeat row 0.
        candidates: (h, G, kc) likewise.
        pair_valid: (h, G, kq, kc) bool, or None where no place is empty.
        place: (h, B·N) where each patch's query stands in the flattened (G·kq) row of a round.
    """

    queries: Tensor
    candidates: Tensor
    pair_valid: Tensor | None
    place: Tensor

    @classmethod
    def of(cls, groups: PatchGroups) -> "_Table":
        chunks, candidates = groups.chunks(), groups.candidates()
        batch, _, n_chunks, size = chunks.shape
        count = groups.n_patches
        pair_valid = None
        if groups.neighbors is not None or not statically_true(n_chunks * size == count):
            pair_valid = _rows((chunks >= 0).unsqueeze(-1) & (candidates >= 0).unsqueeze(-2))
        first = torch.arange(batch, device=chunks.device)[:, None, None, None]
        shift = torch.arange(batch, device=chunks.device)[:, None, None] * n_chunks * size
        return cls(
            queries=_rows(chunks.clamp(min=0) + first * count),
            candidates=_rows(candidates.clamp(min=0) + first * count),
            pair_valid=pair_valid,
            place=(groups.order.argsort(dim=-1) + shift).transpose(0, 1).flatten(1),
        )


def _rows(x: Tensor) -> Tensor:
    """(B, h, G, …) -> (h, B·G, …)."""
    return x.transpose(0, 1).flatten(1, 2)


class _Call:
    """One call: the flattened tensors and how to walk them in blocks."""

    def __init__(
        self, query: Tensor, key: Tensor, value: Tensor, groups: PatchGroups, paper: bool, n_heads: int
    ) -> None:
        self.shape = query.shape
        batch, count, self.pixels, channels = query.shape
        self.n_rows = batch * count
        self.q, self.k, self.v = (x.reshape(self.n_rows, -1) for x in (query, key, value))
        self.table, self.paper, self.heads = _Table.of(groups), paper, n_heads
        self.width = channels // n_heads
        self.scale = 1 / math.sqrt(self.width)
        self.exact = torch.float64 if query.dtype == torch.float64 else torch.float32
        self.n_hashes, self.n_chunks, self.kq = self.table.queries.shape
        self.kc = self.table.candidates.shape[-1]
        # Eq. 10 as printed weighs by the raw inner product, the stable form by its scaled mean.
        self.trace_scale = 1 / self.scale if paper else 1 / self.pixels

    def blocks(self) -> Iterator[slice]:
        if exporting():  # a trace holds no loop over an open number of blocks
            yield slice(0, self.n_chunks)
            return
        logits = self.kq * self.kc * self.pixels**2 * self.heads
        step = max(1, BLOCK_ELEMENTS // logits)
        for start in range(0, self.n_chunks, step):
            yield slice(start, min(start + step, self.n_chunks))

    def take(self, rows: Tensor, index: Tensor) -> Tensor:
        """Rows of patches as (chunks·heads, patches·P, width)."""
        chunks, size = index.shape
        taken = rows.index_select(0, index.flatten())
        if self.heads == 1:
            return taken.view(chunks, size * self.pixels, self.width)
        split = taken.view(chunks, size * self.pixels, self.heads, self.width)
        return split.transpose(1, 2).reshape(chunks * self.heads, size * self.pixels, self.width)

    def put(self, blocks: Tensor) -> Tensor:
        """The inverse of the reshaping in ``take``: (patches, P·C)."""
        if self.heads > 1:
            blocks = blocks.unflatten(0, (-1, self.heads)).transpose(1, 2)
        return blocks.reshape(-1, self.pixels * self.heads * self.width)

    def logits(self, q: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
        """Softmax of each pair, (g, kq, P, kc, P), and the pair logits of Eq. 10, (g, kq, kc)."""
        unused = q.new_empty((1, 1, 1))  # beta = 0: never read
        raw = torch.baddbmm(unused, q, k.transpose(1, 2), beta=0, alpha=self.scale).to(self.exact)
        pairs = raw.view(-1, self.kq, self.pixels, self.kc, self.pixels)
        traces = pairs.diagonal(dim1=2, dim2=4).sum(-1).mul_(self.trace_scale)
        return torch.softmax(pairs, dim=-1), traces

    def pair_valid(self, hash_round: int, block: slice) -> Tensor | None:
        """(chunks·heads, kq, kc) bool, or None where every place is filled."""
        if self.table.pair_valid is None:
            return None
        return self.table.pair_valid[hash_round, block].repeat_interleave(self.heads, dim=0)

    def patch_rows(self, per_patch: Tensor) -> Tensor:
        """(B·N, heads) -> (B·N, P, heads, 1), to scale rows of (B·N, P·C) head by head."""
        return per_patch[:, None, :, None]

    def by_head(self, rows: Tensor) -> Tensor:
        return rows.view(-1, self.pixels, self.heads, self.width)


def forward(
    query: Tensor, key: Tensor, value: Tensor, groups: PatchGroups, paper: bool, n_heads: int
) -> tuple[Tensor, Tensor]:
    """The output (B, N, P, C) and, per patch and head, the logarithm of the sum of weights (paper: the sum)."""
    p = _Call(query, key, value, groups, paper, n_heads)
    sorted_out = p.q.new_empty((p.n_chunks * p.kq, p.q.shape[1]), dtype=p.exact)
    sorted_sum = p.q.new_empty((p.n_chunks, p.heads, p.kq), dtype=p.exact)
    sorted_top = torch.empty_like(sorted_sum)
    out = total = top = None
    for j in range(p.n_hashes):
        for block in p.blocks():
            q = p.take(p.q, p.table.queries[j, block])
            k, v = (p.take(x, p.table.candidates[j, block]) for x in (p.k, p.v))
            attend, pair_logits = p.logits(q, k)  # softmaxes of Eq. (8), products of Eq. (10)
            weights, block_top = _unnormalised_weights(p, pair_logits, p.pair_valid(j, block))
            # Eqs. (8) and (9) in one: Σ_j w_j A_j ψ_j = [w_1 A_1, w_2 A_2, …] [ψ_1; ψ_2; …].
            weighted = attend.mul_(weights[:, :, None, :, None]).flatten(3).flatten(1, 2).to(v.dtype)
            sorted_out[block.start * p.kq : block.stop * p.kq] = p.put(torch.bmm(weighted, v))
            sorted_sum[block] = weights.sum(-1).view(-1, p.heads, p.kq)
            sorted_top[block] = block_top.view(-1, p.heads, p.kq)
        # Back to the order of patches, and added to earlier rounds by the shares of their weights.
        place = p.table.place[j]
        new_out = sorted_out.index_select(0, place)
        new_sum, new_top = (x.transpose(1, 2).reshape(-1, p.heads)[place] for x in (sorted_sum, sorted_top))
        if out is None or total is None or top is None:
            out, total, top = new_out, new_sum, new_top
        else:
            highest = torch.maximum(top, new_top)
            old_share, new_share = (x / highest if p.paper else (x - highest).exp_() for x in (top, new_top))
            p.by_head(out).mul_(p.patch_rows(old_share)).addcmul_(p.by_head(new_out), p.patch_rows(new_share))
            total = total.mul_(old_share).addcmul_(new_sum, new_share)
            top = highest
    assert out is not None
    assert total is not None
    assert top is not None
    p.by_head(out).div_(p.patch_rows(total))
    return out.view(p.shape), total.mul_(top) if p.paper else total.log_().add_(top)


def _unnormalised_weights(p: _Call, pair_logits: Tensor, valid: Tensor | None) -> tuple[Tensor, Tensor]:
    """Weights of one round before the division by their sum, none above 1 (float16 would overflow), and what was taken
    out of them: the maximum of the exponent, or (paper) the largest magnitude."""
    if p.paper:
        if valid is not None:
            pair_logits.masked_fill_(~valid, 0.0)
        largest = pair_logits.abs().amax(-1).clamp_(min=torch.finfo(p.exact).tiny)
        return pair_logits.div_(largest.unsqueeze(-1)), largest
    if valid is not None:
        pair_logits.masked_fill_(~valid, torch.finfo(p.exact).min)
    top = pair_logits.amax(-1)
    weights = (pair_logits - top.unsqueeze(-1)).exp_()
    return (weights if valid is None else weights.masked_fill_(~valid, 0.0)), top


def backward(
    grad: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    out: Tensor,
    norm: Tensor,
    groups: PatchGroups,
    paper: bool,
    n_heads: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of query, key and value; the logits are computed again.

    With w the pair weights, A the softmaxes, G = ∂o ψᵀ and δ_p = <∂o_p, o_p>: a pair's logits get
    w A∘(G - rowsum(A∘G)), and its weight's logit gets (<A, G> - δ_p) times w (softmax) or 1/Σ (paper),
    which lands on the diagonal.
    """
    p = _Call(query, key, value, groups, paper, n_heads)
    grad = grad.reshape(p.n_rows, -1)
    delta = (p.by_head(grad.to(p.exact)) * p.by_head(out.reshape(p.n_rows, -1).to(p.exact))).sum(dim=(1, 3))
    totals = tuple(torch.zeros_like(x, dtype=p.exact) for x in (p.q, p.k, p.v))
    for j in range(p.n_hashes):
        for block in p.blocks():
            queries, candidates = p.table.queries[j, block], p.table.candidates[j, block]
            q, g = p.take(p.q, queries), p.take(grad, queries)
            k, v = p.take(p.k, candidates), p.take(p.v, candidates)
            row_norm, row_delta = (x[queries].transpose(1, 2).reshape(-1, p.kq, 1) for x in (norm, delta))
            valid = p.pair_valid(j, block)
            d_logits, weighted = _block_gradients(p, q, k, v, g, row_norm, row_delta, valid)
            rows_q, rows_c = queries.flatten(), candidates.flatten()
            totals[0].index_add_(0, rows_q, p.put(torch.bmm(d_logits, k)).to(p.exact), alpha=p.scale)
            totals[1].index_add_(0, rows_c, p.put(torch.bmm(d_logits.transpose(1, 2), q)).to(p.exact), alpha=p.scale)
            totals[2].index_add_(0, rows_c, p.put(torch.bmm(weighted.transpose(1, 2), g)).to(p.exact))
    return tuple(x.view(p.shape).to(p.q.dtype) for x in totals)  # type: ignore[return-value]


def _block_gradients(
    p: _Call, q: Tensor, k: Tensor, v: Tensor, g: Tensor, norm: Tensor, delta: Tensor, valid: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Of one block: the gradient of q kᵀ / √C, and the weighted softmaxes; both (g, kq·P, kc·P) in the dtype of q."""
    attend, pair_logits = p.logits(q, k)
    inner = torch.bmm(g, v.transpose(1, 2)).to(p.exact).view_as(attend)  # G
    pair_grads = (attend * inner).sum(-1)
    # A∘(G - rowsum(A∘G)), of which the weights are still to be taken.
    d_attend = torch.ops.aten._softmax_backward_data(inner, attend, -1, inner.dtype)
    slope = 1 / norm if p.paper else None
    weights = pair_logits / norm if p.paper else (pair_logits - norm).exp_()
    if valid is not None:
        weights = weights.masked_fill(~valid, 0.0)
    d_pair = (pair_grads.sum(2) - delta) * (weights if slope is None else slope)
    if valid is not None:
        d_pair = d_pair.masked_fill(~valid, 0.0)
    # Eq. (10)'s product is the trace of a pair's logits: its gradient lands on the diagonal.
    wide = weights[:, :, None, :, None]
    d_logits = d_attend.mul_(wide)
    d_logits.diagonal(dim1=2, dim2=4).add_(d_pair.unsqueeze(-1), alpha=p.trace_scale)
    weighted = attend.mul_(wide)
    return tuple(x.flatten(3).flatten(1, 2).to(q.dtype) for x in (d_logits, weighted))  # type: ignore[return-value]


BACKEND = Backend(
    "blocked",
    takes_dtypes("blocked", torch.float16, torch.bfloat16, torch.float32, torch.float64),
    forward=forward,
    backward=backward,
)
