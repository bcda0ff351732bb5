"""How the kernels of ``kithkin.ops.triton`` are launched: sizes of blocks, room for the rounds, one call at a time."""

from collections.abc import Iterator
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor

from kithkin.ops import triton as kernels
from kithkin.ops.backend import pitched
from kithkin.ops.grouping import PatchGroups

MOST_LOGITS = 8192  # that a program holds at a time: 64 registers of each of 128 threads
# Images are worked on together as long as the results of their rounds stay below this many bytes: they are read again
# at once, best from the cache.
SCRATCH_BYTES = 64 << 20


class _Call:
    """One call: tensors as the kernels take them, and the constants of their code."""

    def __init__(
        self, query: Tensor, key: Tensor, value: Tensor, groups: PatchGroups, paper: bool, n_heads: int
    ) -> None:
        self.batch, self.count, self.pixels, self.channels = query.shape
        self.step, self.qkv = pitched(query, key, value)
        self.order, self.rounds, self.chunks = groups.order.contiguous(), groups.n_hashes, groups.n_chunks
        self.paper, self.heads = paper, n_heads
        width, precision = self.channels // n_heads, precision_of(query.dtype)
        on_cpu = query.device.type == "cpu"
        self.dtype, self.precision = query.dtype, precision
        self.tiles = tiles_of(self.pixels, groups.k, groups.look_back, width, query.dtype, precision)
        self.constants: dict[str, Any] = {**self.tiles, "P": self.pixels, "D": width, "HEADS": n_heads, "PAPER": paper}
        self.constants |= {"PRECISION": "interpreter" if on_cpu else precision, "SIGNED": paper and self.rounds > 1}
        self.sizes = {"n": self.count, "k": groups.k, "chunks": self.chunks, "rounds": self.rounds, "step": self.step}
        self.sizes |= {"scale": width**-0.5, "patches": self.batch * self.count}

    def spans(self) -> Iterator[slice]:
        """The images in parts: see ``SCRATCH_BYTES``."""
        image = self.rounds * self.count * self.pixels * self.channels * self.qkv[0].element_size()
        step = self.batch if self.rounds == 1 else max(1, SCRATCH_BYTES // image)
        for start in range(0, self.batch, step):
            yield slice(start, min(start + step, self.batch))

    def each_round(self, span: slice) -> Tensor:
        """Room for a result a round: (images, rounds, N, P, C)."""
        images = span.stop - span.start
        return self.qkv[0].new_empty((images, self.rounds, self.count, self.pixels, self.channels))

    def each_patch(self, images: int) -> Tensor:
        return self.qkv[0].new_empty((images * self.count, self.heads), dtype=torch.float32)

    def of(self, span: slice) -> dict[str, Tensor]:
        query, key, value = (x[span] for x in self.qkv)
        return {"query": query, "key": key, "value": value, "order": self.order[span]}

    def rows(self, span: slice) -> slice:
        """Of all patches, those of these images."""
        return slice(span.start * self.count, span.stop * self.count)

    def run(self, kernel: Any, programs: int, **more: Any) -> None:
        known = {**self.sizes, **self.constants, **more}
        taken = {name: known[name] for name in kernel.arg_names}
        with torch.cuda.device(self.order.device) if self.order.is_cuda else nullcontext():
            options = options_of(kernel, self.tiles, self.dtype, self.precision) if self.order.is_cuda else {}
            kernel[(programs * self.heads,)](**taken, **options)


def precision_of(dtype: torch.dtype) -> str:
    """How products are computed: float32 in TF32 only where PyTorch's own products on the GPU may be."""
    allowed = dtype == torch.float32 and torch.backends.cuda.matmul.fp32_precision == "tf32"
    return "tf32" if allowed else "ieee"


def tiles_of(pixels: int, k: int, look_back: bool, width: int, dtype: torch.dtype, precision: str) -> dict[str, int]:
    """Sizes of the blocks that a program works on, by what a call is like.

    KB patches of PB pixels make a chunk, which sees SEEN patches, CB at a time; channels come DK at a time in products
    over them and DO at a time in results.
    """
    pb = _power_of_2(pixels)
    kb = max(_power_of_2(k), 16 // pb)  # a product's sides are 16 at least
    seen = kb * (1 + look_back)
    exact = _without_tensor_cores(dtype, precision)
    cb = max(1, 16 // pb) if exact else seen
    while kb * pb * cb * pb > MOST_LOGITS and cb * pb > 16:
        cb //= 2
    do = _block(width)
    return {"PB": pb, "KB": kb, "SEEN": seen, "CB": cb, "DK": 16 if exact else do, "DO": do}


def options_of(kernel: Any, tiles: dict[str, int], dtype: torch.dtype, precision: str) -> dict[str, Any]:
    """Triton's options for a kernel. A warp of tensor cores takes 16 rows; with more warps than that, some would
    compute the same again."""
    own, seen = tiles["KB"] * tiles["PB"], tiles["CB"] * tiles["PB"]
    if _without_tensor_cores(dtype, precision):
        warps = own * max(seen, tiles["DO"]) // 512
    else:
        warps = (seen if kernel is kernels.backward_keys else own) // 16
    stages = 2 if dtype.itemsize == 2 else 1  # two of float32 would need more shared memory than many GPUs have
    return {"num_warps": min(max(warps, 1), 8), "num_stages": stages, "enable_fp_fusion": True}


def _without_tensor_cores(dtype: torch.dtype, precision: str) -> bool:
    return dtype == torch.float32 and precision == "ieee"


def _block(width: int) -> int:
    """Channels of a block: 32, or 16 where fewer places of the last block stay empty so."""
    return 16 if -(-width // 16) % 2 else 32


def _power_of_2(n: int) -> int:
    return 1 << (n - 1).bit_length()


def forward(
    query: Tensor, key: Tensor, value: Tensor, groups: PatchGroups, paper: bool, n_heads: int
) -> tuple[Tensor, Tensor]:
    """Output and, per patch and head, the logarithm to base 2 of the sum of weights (paper: the sum)."""
    call = _Call(query, key, value, groups, paper, n_heads)
    out, norm = query.new_empty(query.shape, dtype=torch.float32), call.each_patch(call.batch)
    for span in call.spans():
        rows = call.rows(span)
        part = out[span] if call.rounds == 1 else call.each_round(span)
        level = call.each_patch(call.rounds * (span.stop - span.start))
        total = torch.empty_like(level) if paper else level
        if call.rounds == 1:
            level, total = (level, norm[rows]) if paper else (norm[rows], level)
        more = {**call.of(span), "part": part, "level": level, "total": total}
        call.run(kernels.attend, part.shape[0] * call.rounds * call.chunks, **more)
        if call.rounds > 1:
            pixels = out[span].numel() // call.channels
            more = {"part": part, "level": level, "total": total, "out": out[span], "norm": norm[rows]}
            call.run(kernels.join, -(-pixels // 64), **more, pixels=pixels, RB=64, DB=call.tiles["DO"])
    return out, norm


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
    """Gradients of query, key and value; the logits are computed again."""
    call = _Call(query, key, value, groups, paper, n_heads)
    grad, out, delta = grad.contiguous(), out.contiguous(), call.each_patch(call.batch)
    rows_at_once = max(1, 64 // call.tiles["PB"])
    call.run(
        kernels.inner,
        -(-len(norm) // rows_at_once),
        grad=grad,
        out=out,
        delta=delta,
        RB=rows_at_once,
        DB=call.tiles["DO"],
    )
    gradients = [query.new_empty(query.shape) for _ in range(3)]
    for span in call.spans():
        rows = call.rows(span)
        parts = [x[span] if call.rounds == 1 else call.each_round(span) for x in gradients]
        programs = parts[0].shape[0] * call.rounds * call.chunks
        more = {**call.of(span), "grad": grad[span], "norm": norm[rows], "delta": delta[rows]}
        call.run(kernels.backward_queries, programs, **more, d_query=parts[0])
        call.run(kernels.backward_keys, programs, **more, d_key=parts[1], d_value=parts[2])
        if call.rounds > 1:
            for whole, part in zip(gradients, parts, strict=True):
                torch.sum(part, dim=1, out=whole[span])
    return gradients[0], gradients[1], gradients[2]
