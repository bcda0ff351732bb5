"""The networks that ``network_variants.py`` compares: a U of convolutions and k-NN attention, written as one letter a
block, and the ways in which its patches may be grouped.

A network's plan is five words, ``encoder 1/2, encoder 1/4, bottleneck 1/8, decoder 1/4, decoder 1/2``; each letter is a
block: ``c`` two dense 3×3 convolutions, ``n`` the same after a LayerNorm, ``g`` a gated depth-wise block (NAFNet),
``a`` k-NN local attention, ``f`` the feed-forward network of KiT.
"""

import math
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kithkin.errors import InputError
from kithkin.layers import FeedForward, KNNLocalAttention, LayerNorm, Pointwise
from kithkin.model import KiT
from kithkin.model_config import KiTConfig
from kithkin.ops import PatchGroups, group_patches, knn_local_attention, partition, sort_by_hash, unpartition
from kithkin.ops.grouping import default_n_buckets
from kithkin.ops.reference import aggregate, candidates_of_each_patch, pairwise_attention

DIRECTIONS = 8  # that a tree looks along


@dataclass(frozen=True)
class Plan:
    """A network.

    Attributes:
        blocks: the five words above; empty for today's KiT of one block a stage and a stem of stride 1.
        width: channels at the first resolution; they double with every halving.
        k, n_hashes: of the attention.
        grouping: ``hash`` (the normalised patch, as the paper), ``centered`` (less the mean of the image's patches),
            ``cells`` (centred, the means of the patch's four quarters), ``random``, ``windows`` (2×2 patches, shifted
            every second round or block), ``tree`` (the leaves of a k-d tree in place of buckets), ``clean`` (such a
            tree of the picture *without* noise, which no method can see: what the best grouping would be worth),
            ``mixed`` and ``mixed-tree`` (windows in the first round, ``cells`` or trees in the others), ``scales``
            (``cells``, in one row with the patches of the map at half its size, which others attend to and which
            attend to none), ``random-scales`` (the same row in an order of chance), or ``self`` (k = 1).
        descriptor: channels of a learned descriptor of the patch, which is hashed in place of the patch and adds a
            scaled cosine to Eq. 10's logit; 0 has none.
        temperature: Eq. 10's logit is the cosine of query and key, flattened patches, times a factor that each layer
            learns; a candidate that several rounds find counts once.
        heads: of the attention; with more than one, a layer mixes their results.
        stencils: a 3×3 depth-wise convolution of query, key and value before they are cut into patches.
        meter: the noise level, measured in windows of 32 pixels, scales the features of every stage.
        full: channels of two convolutions at the picture's own resolution, before and after the U; 0 has none, and
            the picture is folded to half its sides (pixel unshuffle).
    """

    blocks: str = ""
    width: int = 48
    k: int = 4
    n_hashes: int = 1
    grouping: str = "hash"
    descriptor: int = 0
    temperature: bool = False
    heads: int = 1
    stencils: bool = False
    meter: bool = False
    full: int = 0


class Attention(KNNLocalAttention):
    """k-NN local attention whose patches are grouped in one of several ways. (B, H, W, C) -> (B, H, W, C).

    Attributes:
        clean: (B, 3, H, W) the picture without noise, for the grouping of that name; None while times are taken.
    """

    clean: Tensor | None = None

    def __init__(self, channels: int, plan: Plan, seed: int) -> None:
        scales, several = plan.grouping.endswith("scales"), plan.heads > 1
        if plan.descriptor and (several or plan.stencils):
            raise InputError("variant_networks: a descriptor goes with neither heads nor stencils")
        if ((plan.descriptor or several) and (plan.temperature or scales)) or (plan.stencils and scales):
            raise InputError("variant_networks: a temperature or two scales go with no descriptor, heads or stencils")
        k = 1 if plan.grouping == "self" else plan.k
        super().__init__(channels, k=k, n_hashes=plan.n_hashes, n_heads=plan.heads, seed=seed)
        self.sorted_by, self.descriptor = plan.grouping, plan.descriptor
        if plan.descriptor:
            inner = channels - plan.descriptor
            self.query_proj, self.key_proj = Pointwise(channels, inner), Pointwise(channels, inner)
            self.describe = nn.Linear(self.patch_size**2 * channels, plan.descriptor)
            self.scale = nn.Parameter(torch.tensor(2.0))
            if self.k > 1:
                self.rotations = torch.empty(plan.n_hashes, plan.descriptor, self.rotations.shape[-1])
                self.redraw_rotations()
        self.log_temperature = nn.Parameter(torch.tensor(10.0).log()) if plan.temperature else None
        self.coarse_bias = nn.Parameter(torch.zeros(channels)) if scales else None
        wide = 3 * channels
        self.stencils = nn.Conv2d(wide, wide, 3, padding=1, groups=wide) if plan.stencils else None

    def group(self, hashed: Tensor) -> PatchGroups:
        count = hashed.shape[1]
        if self.k == 1 or count <= 2 * self.k:
            return group_patches(hashed, k=self.k)
        if self.sorted_by.startswith("random"):
            return PatchGroups(self._random(hashed), k=self.k)
        if self.sorted_by == "windows":
            shifts = [(self.seed + j) % 2 for j in range(self.n_hashes)]
            order = torch.stack([window_order(self.shape, shift) for shift in shifts])
            return PatchGroups(order.expand(len(hashed), -1, -1).contiguous(), k=self.k)
        if self.sorted_by == "clean" and self.clean is not None:
            return PatchGroups(self._clean_trees(self.clean), k=self.k)
        tree = self.sorted_by in ("tree", "mixed-tree", "clean")
        order = self._trees(hashed) if tree else sort_by_hash(self._hashes(hashed))
        if self.sorted_by in ("mixed", "mixed-tree"):
            order[:, 0] = window_order(self.shape, self.seed % 2)
        return PatchGroups(order, k=self.k)

    def _random(self, patches: Tensor) -> Tensor:
        generator = torch.Generator().manual_seed(0 if not self.training else int(torch.randint(2**31, ())))
        keys = torch.rand(len(patches), self.n_hashes, patches.shape[1], generator=generator)
        return keys.argsort(dim=-1)

    @torch.no_grad()
    def _hashes(self, patches: Tensor) -> Tensor:
        x = patches.float()
        if self.sorted_by != "hash" or self.descriptor:
            x = x - x.mean(dim=1, keepdim=True)
        if self.sorted_by in ("cells", "mixed", "scales") and not self.descriptor:
            x = _quarters(x, self.patch_size)
        half = default_n_buckets(patches.shape[1], self.k) // 2
        projected = torch.einsum("bnf,hfm->bhnm", x.flatten(2), self.rotations[:, : x[0, 0].numel(), :half])
        return torch.cat([projected, -projected], dim=-1).argmax(dim=-1)

    @torch.no_grad()
    def _trees(self, patches: Tensor) -> Tensor:
        x = main_directions(_quarters(patches.float(), self.patch_size))
        turned = [x, *(x @ rotation[:DIRECTIONS, :DIRECTIONS] for rotation in self.rotations[1 : self.n_hashes])]
        return torch.stack([tree_order(vectors, self.k) for vectors in turned], dim=1)

    @torch.no_grad()
    def _clean_trees(self, clean: Tensor) -> Tensor:
        """The trees of the clean picture, at the scale of this map."""
        rows, columns = (side * self.patch_size for side in self.shape)
        height, width = clean.shape[2:]
        scale = round(width / columns)
        padded = F.pad(clean, (0, columns * scale - width, 0, rows * scale - height), mode="replicate")
        x = main_directions(partition(F.avg_pool2d(padded, scale).permute(0, 2, 3, 1), self.patch_size).flatten(2))
        return torch.stack([tree_order(x, self.k)] * self.n_hashes, dim=1)

    def forward(self, x: Tensor) -> Tensor:
        height, width = x.shape[1:3]
        size = self.patch_size
        x = F.pad(x.permute(0, 3, 1, 2), (0, -width % size, 0, -height % size), mode="replicate").permute(0, 2, 3, 1)
        self.shape = (x.shape[1] // size, x.shape[2] // size)
        patches = partition(x, size)
        if self.descriptor:
            out = self._described(patches)
        else:
            hashed = projected = patches
            if self.coarse_bias is not None:
                coarse = self._coarse(x)
                hashed, projected = (torch.cat([patches, y], dim=1) for y in (coarse, coarse + self.coarse_bias))
            attend = partial(knn_local_attention, n_heads=self.n_heads)
            if self.log_temperature is not None:
                attend = self._tempered
            out = self.output_proj(attend(*self._seen(projected), self.group(hashed))[:, : patches.shape[1]])
        return unpartition(out, size, (x.shape[1], x.shape[2]))[:, :height, :width]

    def _seen(self, patches: Tensor) -> tuple[Tensor, ...]:
        """Query, key and value of (B, N, P, C)."""
        projected = self._project(patches)
        if self.stencils is None:
            return projected
        sides = (self.shape[0] * self.patch_size, self.shape[1] * self.patch_size)
        wide = unpartition(torch.cat(projected, dim=-1), self.patch_size, sides).permute(0, 3, 1, 2)
        return partition(self.stencils(wide).permute(0, 2, 3, 1), self.patch_size).chunk(3, dim=-1)

    def _coarse(self, x: Tensor) -> Tensor:
        """The patches of a map (B, H, W, C) at half its size, which is extended to whole ones: (B, N', P, C)."""
        pooled = F.avg_pool2d(x.permute(0, 3, 1, 2), 2)
        more = (0, -pooled.shape[3] % self.patch_size, 0, -pooled.shape[2] % self.patch_size)
        return partition(F.pad(pooled, more, mode="replicate").permute(0, 2, 3, 1), self.patch_size)

    def _tempered(self, query: Tensor, key: Tensor, value: Tensor, groups: PatchGroups) -> Tensor:
        """Eqs. 8 to 10, the last with cosines. Every patch's candidates lie in memory: for small maps."""
        listed = candidates_of_each_patch(groups)
        seen = (listed.unsqueeze(-1) == listed.unsqueeze(-2)).tril(-1).any(dim=-1)
        image, index = torch.arange(len(listed))[:, None, None], listed.clamp(min=0)
        key, value = key[image, index], value[image, index]
        one, many = (F.normalize(x.flatten(-2), dim=-1) for x in (query, key))
        logits = self.log_temperature.exp() * torch.einsum("bnf,bnmf->bnm", one, many)
        weights = torch.softmax(logits.masked_fill((listed < 0) | seen, -torch.inf), dim=-1)
        return aggregate(weights, pairwise_attention(query.unsqueeze(2), key, value))

    def _described(self, patches: Tensor) -> Tensor:
        """A vector that is the same for all pixels of a patch adds a constant to the logits of its pixels, which their
        softmax ignores, and its inner product with the other patch's to the pair's logit."""
        described = self.describe(patches.flatten(2))
        described = F.normalize(described - described.mean(dim=1, keepdim=True), dim=-1)
        root = patches.shape[-1] ** 0.25  # the logit is divided by √C, the two factors share it
        value = self.value_proj(patches)
        wide = (described * (root * self.scale)).to(value.dtype).unsqueeze(2).expand(-1, -1, patches.shape[2], -1)
        query, key = (torch.cat([proj(patches), wide], dim=-1) for proj in (self.query_proj, self.key_proj))
        return knn_local_attention(query, key, value, self.group(described.unsqueeze(2)))


def _quarters(patches: Tensor, side: int) -> Tensor:
    """The mean pixels of a patch's four quarters: (B, N, P, C) -> (B, N, 4·C)."""
    half = side // 2
    return patches.unflatten(2, (2, half, 2, half)).mean(dim=(3, 5)).flatten(2)


def main_directions(x: Tensor) -> Tensor:
    """Vectors (B, N, F) by the few directions in which those of an image vary most: (B, N, DIRECTIONS)."""
    x = x - x.mean(dim=1, keepdim=True)
    return x @ torch.linalg.eigh(x.mT @ x).eigenvectors.flip(-1)[..., :DIRECTIONS]


def tree_order(features: Tensor, leaf: int) -> Tensor:
    """Vectors (B, N, F) in the order of the leaves of a k-d tree: halved at the median, each half along the coordinate
    in which it varies most, until at most ``leaf`` are left. (B, N) int64. Places that fill the tree up come last.
    """
    batch, count = features.shape[:2]
    leaves = 1 << max(0, math.ceil(math.log2(count / leaf)))
    filled = F.pad(features, (0, 0, 0, leaves * leaf - count), value=torch.inf)
    order = torch.arange(leaves * leaf).expand(batch, 1, -1)
    image = torch.arange(batch)[:, None, None]
    while order.shape[2] > leaf:
        x = filled[image, order]
        real = x.isfinite()
        known = x.masked_fill(~real, 0)
        number = real.sum(dim=2).clamp(min=1)
        spread = known.square().sum(dim=2) / number - (known.sum(dim=2) / number).square()
        along = x.gather(3, spread.argmax(dim=-1)[..., None, None].expand(-1, -1, x.shape[2], 1)).squeeze(3)
        order = order.gather(2, along.argsort(dim=-1, stable=True)).unflatten(2, (2, -1)).flatten(1, 2)
    order = order.flatten(1)
    return order[order < count].view(batch, count)


def window_order(shape: tuple[int, int], shift: int) -> Tensor:
    """Patches of a grid (rows, columns) block after block of 2×2, blocks moved by ``shift``."""
    rows, columns = ((torch.arange(side) + shift) // 2 for side in shape)
    return (rows[:, None] * (shape[1] + 2) + columns).flatten().argsort(stable=True)


class _Residual(nn.Module):
    """x + branch(LN(x)), the branch on (B, H, W, C)."""

    def __init__(self, channels: int, branch: nn.Module) -> None:
        super().__init__()
        self.norm, self.branch = LayerNorm(channels), branch

    def forward(self, x: Tensor) -> Tensor:
        return x + self.branch(self.norm(x.permute(0, 2, 3, 1))).permute(0, 3, 1, 2)


class _Convolutions(nn.Module):
    """x + conv(ReLU(conv(x))), dense 3×3; where ``normed``, of LN(x)."""

    def __init__(self, channels: int, normed: bool) -> None:
        super().__init__()
        self.norm = LayerNorm(channels) if normed else None
        self.first = nn.Conv2d(channels, channels, 3, padding=1)
        self.last = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        inner = x if self.norm is None else _normed(self.norm, x)
        return x + self.last(F.relu(self.first(inner), inplace=True))


class _Gated(nn.Module):
    """NAFNet's block without its channel attention: depth-wise and point-wise, gated; then a gated point-wise one."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = LayerNorm(channels), LayerNorm(channels)
        self.widen1, self.widen2 = nn.Conv2d(channels, 2 * channels, 1), nn.Conv2d(channels, 2 * channels, 1)
        self.depthwise = nn.Conv2d(2 * channels, 2 * channels, 3, padding=1, groups=2 * channels)
        self.last1, self.last2 = nn.Conv2d(channels, channels, 1), nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        a, b = self.depthwise(self.widen1(_normed(self.norm1, x))).chunk(2, dim=1)
        x = x + self.last1(a * b)
        a, b = self.widen2(_normed(self.norm2, x)).chunk(2, dim=1)
        return x + self.last2(a * b)


def _normed(norm: nn.Module, x: Tensor) -> Tensor:
    return norm(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class Net(nn.Module):
    """The U of a plan: pixel unshuffle, three resolutions, pixel shuffle; predicts the residual. (B, 3, H, W)."""

    def __init__(self, plan: Plan) -> None:
        super().__init__()
        self.plan = plan
        widths = [plan.width, 2 * plan.width, 4 * plan.width]
        self.first = nn.Conv2d(*((3, plan.full) if plan.full else (12, widths[0])), 3, padding=1)
        words = plan.blocks.split()
        self.stages = nn.ModuleList(
            nn.Sequential(*(_block(letter, widths[level], plan, 100 * i + j) for j, letter in enumerate(word)))
            for i, (word, level) in enumerate(zip(words, (0, 1, 2, 1, 0), strict=True))
        )
        self.down = nn.ModuleList(nn.Conv2d(c, 2 * c, 2, stride=2) for c in widths[:2])
        self.up = nn.ModuleList(nn.Conv2d(2 * c, 4 * c, 1) for c in widths[:2])
        self.last = nn.Conv2d(*((plan.full, 3) if plan.full else (widths[0], 12)), 3, padding=1)
        if plan.full:
            self.halve = nn.Conv2d(plan.full, widths[0], 2, stride=2)
            self.enlarge = nn.Conv2d(widths[0], 4 * plan.full, 1)
            self.before, self.after = (nn.Conv2d(plan.full, plan.full, 3, padding=1) for _ in range(2))
        self.meter = _Meter(widths) if plan.meter else None
        self._initialize()
        self.to(memory_format=torch.channels_last)

    def _initialize(self) -> None:
        for name, layer in self.named_modules():
            if isinstance(layer, nn.Linear | nn.Conv2d):
                gain = 2.0 if name.endswith((".first", "widen", "depthwise")) else 1.0
                nn.init.normal_(layer.weight, std=(gain / layer.weight[0].numel()) ** 0.5)
                nn.init.zeros_(layer.bias)
        for name, layer in self.named_modules():
            if name.endswith(("last", "last1", "last2", "value_proj", "narrow", "meter.out")):
                nn.init.zeros_(layer.weight)

    def edges(self) -> list[nn.Module]:
        """The layers that read the picture and write it: not Muon's."""
        return [self.first, self.last]

    def forward(self, image: Tensor) -> Tensor:
        height, width = image.shape[2:]
        padded = F.pad(image, (0, -width % 8, 0, -height % 8), mode="reflect")
        pixels = F.pixel_unshuffle(padded, 2).contiguous(memory_format=torch.channels_last)
        scales = self.meter(pixels) if self.meter else [None] * 3
        if self.plan.full:
            skip = self.before(F.relu(self.first(padded.contiguous(memory_format=torch.channels_last))))
            x = F.pixel_shuffle(self.enlarge(self._u(self.halve(skip), scales)), 2) + skip
            residual = self.last(F.relu(self.after(x.contiguous(memory_format=torch.channels_last))))
        else:
            residual = F.pixel_shuffle(self.last(self._u(self.first(pixels), scales)), 2)
        return image + residual[:, :, :height, :width]

    def _u(self, x: Tensor, scales: list[Tensor | None]) -> Tensor:
        skips = []
        for level in range(2):
            x = self.stages[level](_scaled(x, scales[level]))
            skips.append(x)
            x = self.down[level](x)
        x = self.stages[2](_scaled(x, scales[2]))
        for level in (1, 0):
            x = F.pixel_shuffle(self.up[level](x), 2) + skips[level]
            x = self.stages[4 - level](x.contiguous(memory_format=torch.channels_last))
        return x


class _Meter(nn.Module):
    """The noise level where it is: second differences of the picture, their mean over windows of 32 pixels and over
    the whole, through a small network to a factor for every feature of the three resolutions."""

    def __init__(self, widths: list[int]) -> None:
        super().__init__()
        self.widths = widths
        self.hidden = nn.Conv2d(24, 32, 1)
        self.out = nn.Conv2d(32, sum(widths), 1)

    def forward(self, pixels: Tensor) -> list[Tensor]:
        rough = F.avg_pool2d((pixels - F.avg_pool2d(pixels, 3, 1, 1)).abs(), 4)
        near = F.avg_pool2d(rough, 5, 1, 2, count_include_pad=False)
        whole = rough.mean(dim=(2, 3), keepdim=True).expand_as(near)
        found = self.out(F.relu(self.hidden(torch.cat([near, whole], dim=1) * 8)))
        sizes = [(pixels.shape[2] >> level, pixels.shape[3] >> level) for level in range(3)]
        return [
            F.interpolate(x, size=s, mode="nearest") for x, s in zip(found.split(self.widths, 1), sizes, strict=True)
        ]


def _scaled(x: Tensor, scale: Tensor | None) -> Tensor:
    return x if scale is None else x * (1 + scale)


def _block(letter: str, channels: int, plan: Plan, seed: int) -> nn.Module:
    if letter in "cn":
        return _Convolutions(channels, normed=letter == "n")
    if letter == "g":
        return _Gated(channels)
    if letter == "f":
        return _Residual(channels, FeedForward(channels, 2.0))
    return _Residual(channels, Attention(channels, plan, seed))


class Today(KiT):
    """The paper's network with one block a stage at the picture's own resolution, its patches grouped by a plan."""

    def __init__(self, plan: Plan) -> None:
        super().__init__(KiTConfig(width=plan.width, depth=1, ffn_ratio=2.0, stem_stride=1, n_hashes=1))
        for block in [block for stage in (*self.encoder, *self.decoder) for block in stage]:
            block.attention = Attention(block.attention.channels, plan, block.attention.seed)
        self._initialize()

    def edges(self) -> list[nn.Module]:
        """The layers that read the picture and write it: not Muon's."""
        return [self.stem.conv1, self.head.conv3]


def build(plan: Plan) -> nn.Module:
    """The network of a plan, in training mode."""
    return Net(plan) if plan.blocks else Today(plan)
