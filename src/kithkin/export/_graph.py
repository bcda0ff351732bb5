"""KiT once more, as a graph for other runtimes: plain operations, no branch on a size, a few tensors per stage.

It differs from ``kithkin.model.KiT`` in form alone. With at most 2k patches the network lets every patch see
every patch once; here it hashes them all the same. Each patch then finds all others, each equally often, and the
weights of Eq. (10), which are normalised over all that was found, come out equal.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kithkin.layers import Downsample, KNNLocalAttention, KNNTransformerBlock, Pointwise, Upsample
from kithkin.model import KiT
from kithkin.ops.grouping import MAX_BUCKETS


class Graph(nn.Module):
    """What ``kithkin.model.KiT`` computes, one picture at a time.

    Args:
        model: the network; its parameters are shared.

    Shape:
        (1, 3, H, W) RGB in [0, 1] -> (1, 3, H, W), not clamped; any H and W.
    """

    def __init__(self, model: KiT) -> None:
        super().__init__()
        self.model = model

    def forward(self, image: Tensor) -> Tensor:
        model, config = self.model, self.model.config
        height, width = image.shape[2:]
        units = (_ceil(height, config.stride), _ceil(width, config.stride))
        scales = [2 ** (config.n_stages - i) for i in range(config.n_stages + 1)]
        stages = [_Stage.of(units, scale, config.patch_size, config.k, image.device) for scale in scales]
        stem = model.stem
        x = _extend(image, units[0] * config.stride, units[1] * config.stride)
        x = F.gelu(_stride(F.gelu(stem.conv1(x)), stem.conv2))
        x = stem.conv3(x).permute(0, 2, 3, 1)
        skips = []
        for i in range(config.n_stages):
            x = _blocks(model.encoder[i], x, stages[i])
            skips.append(x)
            x = _halve(x, model.down[i], stages[i + 1])
        x = _blocks(model.bottleneck, x, stages[-1])
        for i in reversed(range(config.n_stages)):
            x = _double(x, model.up[i], stages[i + 1])
            x = _linear(torch.cat([x, skips[i]], dim=-1), model.merge[i])
            x = _blocks(model.decoder[i], x, stages[i])
        head = model.head
        x = F.gelu(head.conv1(x.permute(0, 3, 1, 2)))
        x = F.gelu(F.pixel_shuffle(head.conv2(x), head.stride))
        return image + _crop(head.conv3(x), 2, height, width)


@dataclass(frozen=True)
class _Stage:
    """What the blocks of a stage share: the map's size, the patches on it, and who is where in the chunks.

    Attributes:
        height, width: of the map.
        rows, columns: patches down and across.
        down, right: (rows·r,) and (columns·r,) pixels of the map, its last one repeated; None where patches fill it.
        index: (N,) 0 to N - 1.
        places: (G·k,) the same, its last one repeated.
        valid: (G, 1, 2k) whether a candidate's place is filled.
    """

    height: int
    width: int
    rows: int
    columns: int
    down: Tensor | None
    right: Tensor | None
    index: Tensor
    places: Tensor
    valid: Tensor

    @classmethod
    def of(cls, units: tuple[int, int], scale: int, side: int, k: int, device: torch.device) -> "_Stage":
        height, width = units[0] * scale, units[1] * scale
        down = right = None
        if scale % side == 0:
            rows, columns = (unit * (scale // side) for unit in units)
        else:
            rows, columns = _ceil(height, side), _ceil(width, side)
            down = torch.arange(rows * side, device=device).clamp(max=height - 1)
            right = torch.arange(columns * side, device=device).clamp(max=width - 1)
        count = rows * columns
        places = torch.arange(_ceil(count, k) * k, device=device)
        own = (places < count).reshape(-1, k)
        valid = torch.cat([own, own.roll(1, 0)], dim=1)[:, None]
        index = torch.arange(count, device=device)
        return cls(height, width, rows, columns, down, right, index, places.clamp(max=count - 1), valid)

    @property
    def count(self) -> int:
        return self.rows * self.columns

    @property
    def n_chunks(self) -> int:
        return self.valid.shape[0]


def _extend(image: Tensor, height: int, width: int) -> Tensor:
    """To a multiple of the stride, by reflection, or by the border where one side is too small to reflect."""
    sides = ((2, height, image[0, 0, :, 0]), (3, width, image[0, 0, 0]))
    places = [torch.arange(length, device=image.device) for _, length, _ in sides]
    lasts = [torch.ones_like(line, dtype=torch.int64).sum() - 1 for *_, line in sides]
    reflects = (places[0][-1] <= 2 * lasts[0]) & (places[1][-1] <= 2 * lasts[1])
    for dim in (0, 1):
        place, last = places[dim], lasts[dim]
        found = torch.where(reflects, last - (place - last).abs(), torch.minimum(place, last))
        image = image.index_select(dim + 2, found)
    return image


def _crop(x: Tensor, dim: int, height: int, width: int) -> Tensor:
    """The upper left of a map whose rows are at ``dim``. A copy: a view's layout would depend on the size."""
    for length in (height, width):
        x = x.index_select(dim, torch.arange(length, device=x.device))
        dim += 1
    return x


def _stride(x: Tensor, conv: nn.Conv2d) -> Tensor:
    """A 3×3 convolution. With a stride of 2 an even map needs no zeros below and on the right, and a side of exactly
    half its length is easier to reason about for a compiler."""
    if conv.stride == (1, 1):
        return conv(x)
    return F.conv2d(F.pad(x, (1, 0, 1, 0)), conv.weight, conv.bias, stride=conv.stride)


def _linear(x: Tensor, layer: nn.Module) -> Tensor:
    assert isinstance(layer, nn.Linear)
    return F.linear(x, layer.weight, layer.bias)


def _halve(x: Tensor, layer: nn.Module, after: _Stage) -> Tensor:
    """A 2×2 convolution of stride 2, as a product of patches. (1, H, W, C) -> (1, H/2, W/2, 2C)."""
    assert isinstance(layer, Downsample)
    channels = x.shape[-1]
    cut = x.reshape(after.height, 2, after.width, 2 * channels).transpose(1, 2)
    weight = layer.conv.weight.permute(0, 2, 3, 1).flatten(1)
    return F.linear(cut.reshape(1, after.height, after.width, 4 * channels), weight, layer.conv.bias)


def _double(x: Tensor, layer: nn.Module, before: _Stage) -> Tensor:
    """Twice the channels, laid out as four pixels. (1, H, W, C) -> (1, 2H, 2W, C/2)."""
    assert isinstance(layer, Upsample)
    x = _linear(x, layer.expand)
    channels = x.shape[-1] // 4
    laid = x.reshape(before.height, before.width, 2, 2 * channels).transpose(1, 2)
    return laid.reshape(1, 2 * before.height, 2 * before.width, channels)


def _blocks(blocks: nn.Module, x: Tensor, stage: _Stage) -> Tensor:
    for block in blocks.children():
        assert isinstance(block, KNNTransformerBlock)
        x = _attend(block.attention, block.attention_norm(x), stage) + x
        ffn = block.ffn
        hidden = F.gelu(_linear(block.ffn_norm(x), ffn.widen))
        hidden = F.gelu(ffn.depthwise(hidden.permute(0, 3, 1, 2)).permute(0, 2, 3, 1))
        x = _linear(hidden, ffn.narrow) + x
    return x


def _attend(layer: KNNLocalAttention, x: Tensor, stage: _Stage) -> Tensor:
    """(1, H, W, C) -> (1, H, W, C)."""
    side, channels = layer.patch_size, x.shape[-1]
    if stage.down is not None and stage.right is not None:
        x = x.index_select(1, stage.down).index_select(2, stage.right)
    cut = x.reshape(stage.rows, side, stage.columns, side * channels).transpose(1, 2)
    patches = cut.reshape(stage.count, side**2, channels)
    projections = (layer.query_proj, layer.key_proj, layer.value_proj)
    query, key, value = (_linear(patches, projection) for projection in projections)
    meetings = None
    if layer.k > 1:
        hashed = query if layer.hash_input == "query" else patches
        meetings = _Meetings.of(_sort(layer, hashed, stage), layer.k, stage)
    heads = [
        _attend_alone(q, k, v) if meetings is None else _attend_in_chunks(q, k, v, meetings, layer.weighting)
        for q, k, v in zip(*(t.chunk(layer.n_heads, dim=-1) for t in (query, key, value)), strict=True)
    ]
    out = heads[0] if len(heads) == 1 else torch.cat(heads, dim=-1)
    if isinstance(layer.output_proj, Pointwise):
        out = _linear(out, layer.output_proj)
    laid = out.reshape(stage.rows, stage.columns, side, side * channels).transpose(1, 2)
    laid = laid.reshape(1, stage.rows * side, stage.columns * side, channels)
    return laid if stage.down is None else _crop(laid, 1, stage.height, stage.width)


def _sort(layer: KNNLocalAttention, patches: Tensor, stage: _Stage) -> Tensor:
    """Eqs. (5) and (6): the permutations (h, N) that sort the patches by hash, ties by index.

    All columns of the rotations are multiplied; those that this many patches leave out never win (decision D2).
    """
    features = patches.mean(1) if layer.hash_features == "pooled" else patches.flatten(1)
    projected = features @ layer.rotations
    if layer.hash_features == "centered":
        projected = projected - projected.mean(dim=1, keepdim=True)
    both = torch.cat([projected, -projected], dim=-1)
    if layer.n_buckets is None:
        needed = 2 * layer.k * torch.arange(1, MAX_BUCKETS // 2 + 1, device=patches.device) - 1
        needed[0] = 0
        used = (stage.index[-1] >= needed).repeat(2)
        both = torch.where(used, both, torch.finfo(both.dtype).min)
    # A bucket's number does not matter for the order of buckets, so those left out may keep theirs.
    count = stage.index[-1] + 1
    keys = both.argmax(dim=-1) * count + stage.index
    return keys.sort(dim=-1).values % count


@dataclass(frozen=True)
class _Meetings:
    """Eq. (7) over all rounds, as rows of the patches.

    Attributes:
        own: (h, G·k) the queries of every chunk.
        candidates: (h, G·2k) the patches that they see.
        inverse: (h, N) where each patch's query stands in ``own``.
        valid: (G, 1, 2k) whether a candidate's place is filled.
        k: patches in a chunk.
    """

    own: Tensor
    candidates: Tensor
    inverse: Tensor
    valid: Tensor
    k: int

    @classmethod
    def of(cls, order: Tensor, k: int, stage: _Stage) -> "_Meetings":
        inverse = torch.zeros_like(order).scatter(1, order, stage.index.expand_as(order))
        own = order.index_select(1, stage.places).reshape(order.shape[0], stage.n_chunks, k)
        candidates = torch.cat([own, own.roll(1, 1)], dim=2)
        return cls(own.flatten(1), candidates.flatten(1), inverse, stage.valid, k)


def _attend_alone(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Eq. (2), for k = 1. (N, P, C) -> (N, P, C)."""
    return torch.softmax(query @ key.transpose(1, 2) / math.sqrt(query.shape[-1]), dim=-1) @ value


def _attend_in_chunks(query: Tensor, key: Tensor, value: Tensor, meetings: _Meetings, weighting: str) -> Tensor:
    """Eqs. (8)-(10) of one head, (N, P, C) -> (N, P, C).

    The weights of all rounds come first, from products of whole patches. So the softmaxes of a round are weighted,
    multiplied and summed before those of the next exist: one round's logits are the largest tensor.
    """
    pixels, channels, k = query.shape[1], query.shape[2], meetings.k
    query, key, value = (x.flatten(1) for x in (query / math.sqrt(channels), key, value))
    weights = _weights(query, key, meetings, weighting, pixels)
    out = torch.zeros_like(value)
    for own, candidates, inverse, weight in zip(
        meetings.own, meetings.candidates, meetings.inverse, weights, strict=True
    ):
        q = query.index_select(0, own).reshape(-1, k * pixels, channels)
        k_, v = (x.index_select(0, candidates).reshape(-1, 2 * k * pixels, channels) for x in (key, value))
        logits = (q @ k_.transpose(1, 2)).reshape(-1, k, pixels, 2 * k, pixels)
        attend = torch.softmax(logits, dim=-1) * weight.reshape(-1, k, 1, 2 * k, 1)
        found = attend.reshape(-1, k * pixels, 2 * k * pixels) @ v
        out = out + found.reshape(-1, pixels * channels).index_select(0, inverse)
    return out.reshape(-1, pixels, channels)


def _weights(query: Tensor, key: Tensor, meetings: _Meetings, weighting: str, pixels: int) -> Tensor:
    """Eq. (10), for the queries of every chunk: (h, G·k, 2k), normalised over the candidates of all rounds."""
    rounds, k = meetings.own.shape[0], meetings.k
    q = query.index_select(0, meetings.own.flatten()).reshape(-1, k, query.shape[1])
    seen = key.index_select(0, meetings.candidates.flatten()).reshape(-1, 2 * k, query.shape[1])
    dots = (q @ seen.transpose(1, 2)).reshape(rounds, -1, k, 2 * k)
    paper = weighting == "paper"
    dots = torch.where(meetings.valid, dots, 0.0 if paper else torch.finfo(dots.dtype).min)
    wide = meetings.inverse[..., None].expand(-1, -1, 2 * k)
    found = dots.flatten(1, 2).gather(1, wide).transpose(0, 1).flatten(1)
    shares = found / found.sum(dim=-1, keepdim=True) if paper else torch.softmax(found / pixels, dim=-1)
    by_round = shares.reshape(-1, rounds, 2 * k).transpose(0, 1)
    return by_round.gather(1, meetings.own[..., None].expand(-1, -1, 2 * k))


def _ceil(length: int, side: int) -> int:
    """length / side, rounded up; by a division of positive numbers, which every runtime rounds down."""
    return (length + side - 1) // side
