"""The layers of KiT. Maps are (B, H, W, C), channels last, all the way through a stage."""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kithkin.errors import InputError
from kithkin.ops import (
    PatchGroups,
    feed_forward,
    gated_block,
    gelu_depthwise_gelu,
    group_patches,
    in_float32,
    knn_local_attention,
    layer_norm,
    partition,
    pointwise,
    unpartition,
)
from kithkin.ops.grouping import FEATURES, MAX_BUCKETS
from kithkin.ops.library import ceil_div, statically_true
from kithkin.ops.reference import WEIGHTINGS

HASH_INPUTS = ("feature", "query")


class Pointwise(nn.Linear):
    """A linear layer from pixel to pixel. (B, H, W, C) -> (B, H, W, C')."""

    def forward(self, x: Tensor) -> Tensor:
        return pointwise(x, self.weight, self.bias)


class LayerNorm(nn.LayerNorm):
    """LayerNorm over the channels of a pixel. (…, C) -> (…, C)."""

    def forward(self, x: Tensor) -> Tensor:
        return layer_norm(x, self.weight, self.bias, self.eps)


class Recording(NamedTuple):
    """What an attention layer made of a map: what it hashed, who met whom, queries and keys, each (B, N, P, C)."""

    hashed: Tensor
    groups: PatchGroups
    query: Tensor
    key: Tensor


class KNNLocalAttention(nn.Module):
    """KLA: group similar patches by hashing, then attend from pixel to pixel within each group (Sec. 3.3).

    There is no projection after the attention: with one head it would be absorbed by ψ. With more heads
    ``output_proj`` mixes them.

    Args:
        channels: C of the map.
        patch_size: side r of a patch, in pixels.
        k: patches in a chunk; 1 lets each patch see only itself (Eq. 2; nothing is hashed).
        n_hashes: hash rounds h.
        n_buckets: hash buckets m, even; None follows the number of patches (decision D2).
        n_heads: attention heads.
        weighting: how Eq. 10 is normalised, ``"softmax"`` or ``"paper"`` (decision D4).
        share_query_key: one projection for query and key, φ = θ (the paper's KiT_S).
        hash_input: hash the ``"feature"`` that comes in, or the ``"query"`` (decision D15).
        hash_features: hash the flattened ``"patch"`` or its ``"pooled"`` mean pixel (decision D1), or the flattened
            patch ``"centered"``, less the mean over the patches (decision D17).
        seed: of the fixed rotations. They are used until ``redraw_rotations`` draws others, as ``kithkin.train`` does
            before every step. It puts the fixed ones back to evaluate.
        backend: of ``kithkin.ops.knn_local_attention``; None takes the first that can serve.

    Attributes:
        recorder: called with a ``Recording`` at every pass, or None. It changes no result.

    Shape:
        (B, H, W, C) -> (B, H, W, C), any H and W: the map is extended to whole patches by repeating its border.

    Raises:
        InputError: invalid settings, or a map of another shape.
    """

    rotations: Tensor
    recorder: Callable[[Recording], None] | None = None

    def __init__(
        self,
        channels: int,
        *,
        patch_size: int = 4,
        k: int = 4,
        n_hashes: int = 4,
        n_buckets: int | None = None,
        n_heads: int = 1,
        weighting: str = "softmax",
        share_query_key: bool = False,
        hash_input: str = "feature",
        hash_features: str = "patch",
        seed: int = 0,
        backend: str | None = None,
    ) -> None:
        super().__init__()
        _one_of("weighting", weighting, WEIGHTINGS)
        _one_of("hash_input", hash_input, HASH_INPUTS)
        _one_of("hash_features", hash_features, FEATURES)
        if min(patch_size, k, n_hashes, n_heads) < 1:
            raise InputError(
                "KNNLocalAttention: patch_size, k, n_hashes and n_heads must be at least 1, "
                f"got {patch_size}, {k}, {n_hashes} and {n_heads}"
            )
        if channels % n_heads:
            raise InputError(f"KNNLocalAttention: {channels} channels can't be split into {n_heads} heads")
        self.channels = channels
        self.patch_size, self.k, self.n_hashes, self.n_buckets = patch_size, k, n_hashes, n_buckets
        self.n_heads, self.weighting, self.backend = n_heads, weighting, backend
        self.hash_input, self.hash_features, self.seed = hash_input, hash_features, seed
        self.query_proj = Pointwise(channels, channels)
        self.key_proj = self.query_proj if share_query_key else Pointwise(channels, channels)
        self.value_proj = Pointwise(channels, channels)
        self.output_proj = Pointwise(channels, channels) if n_heads > 1 else nn.Identity()
        # R of Eq. (5), for h rounds: m/2 columns make m buckets, as x meets both R and -R.
        n_features = channels * (1 if hash_features == "pooled" else patch_size**2)
        columns = (n_buckets or MAX_BUCKETS) // 2
        shape = (n_hashes, n_features, columns) if k > 1 else (0, n_features, columns)
        self.register_buffer("rotations", torch.empty(shape), persistent=False)
        self.redraw_rotations()

    def redraw_rotations(self, generator: torch.Generator | None = None) -> None:
        """Draw new rotations from a private generator, or put back the fixed ones that ``seed`` stands for.

        The fixed ones come from NumPy's legacy generator, whose stream is frozen: a checkpoint restores a picture
        to the same bytes under every version of the libraries, without storing them (decision D12).

        Args:
            generator: on the device of the buffer; None puts the fixed rotations back.
        """
        if generator is not None:
            self.rotations.normal_(generator=generator)
        elif not self.rotations.is_meta:  # a network without numbers: its shapes are looked at
            random = np.random.RandomState(self.seed)
            for one_round in self.rotations:
                one_round.copy_(torch.from_numpy(random.standard_normal(tuple(one_round.shape))))

    def _project(self, patches: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """φ(x), θ(x) and ψ(x), that is query, key and value, by one product."""
        layers = [self.query_proj, self.value_proj]
        if self.key_proj is not self.query_proj:
            layers.insert(1, self.key_proj)
        weight, bias = (torch.cat([getattr(layer, name) for layer in layers]) for name in ("weight", "bias"))
        projected = pointwise(patches, weight, bias).chunk(len(layers), dim=-1)
        # Where φ = θ there are two, and the first serves twice.
        return projected[0], projected[-2], projected[-1]

    def group(self, hashed: Tensor) -> PatchGroups:
        """The groups in which patches (B, N, P, C) meet: of the incoming feature, or of the query (``hash_input``)."""
        return group_patches(hashed, **self.grouping)

    @property
    def grouping(self) -> dict[str, Any]:
        """The keyword arguments of ``group_patches`` and ``hash_patches``."""
        return {
            "k": self.k,
            "n_hashes": self.n_hashes,
            "n_buckets": self.n_buckets,
            "rotations": self.rotations,
            "features": self.hash_features,
        }

    def forward(self, x: Tensor) -> Tensor:
        if x.ndim != 4 or x.shape[-1] != self.channels:
            raise InputError(
                f"KNNLocalAttention: expected a map (B, H, W, {self.channels}), got {tuple(x.shape)}; channels come "
                "last, so a map (B, C, H, W) is passed as x.permute(0, 2, 3, 1)"
            )
        height, width = x.shape[1:3]
        side = self.patch_size
        tall, wide = height, width
        fits = statically_true(height % side + width % side == 0)
        if not fits:
            tall, wide = ceil_div(height, side) * side, ceil_div(width, side) * side
            border = (0, wide - width, 0, tall - height)
            x = F.pad(x.permute(0, 3, 1, 2), border, mode="replicate").permute(0, 2, 3, 1)
        patches = partition(x, side)  # Sec. 3.2: (B, N, P, C)
        query, key, value = self._project(patches)
        hashed = query if self.hash_input == "query" else patches
        groups = self.group(hashed)  # Eqs. (5)-(7): which patches meet
        if self.recorder is not None:
            self.recorder(Recording(hashed, groups, query, key))
        out = knn_local_attention(  # Eqs. (8)-(10): what they make of each other
            query,
            key,
            value,
            groups,
            weighting=self.weighting,
            n_heads=self.n_heads,
            backend=self.backend,
        )
        whole = unpartition(in_float32(self.output_proj, out), side, (tall, wide))
        return whole if fits else whole[:, :height, :width]

    def extra_repr(self) -> str:
        return f"patch_size={self.patch_size}, k={self.k}, n_hashes={self.n_hashes}, n_heads={self.n_heads}"


class FeedForward(nn.Module):
    """FFN(X) = MLP(DW(MLP(X))): widen, a 3×3 depth-wise convolution, narrow; a GELU after the first two.

    Args:
        channels: C of the map.
        ratio: hidden channels over C.

    Shape:
        (B, H, W, C) -> (B, H, W, C).
    """

    def __init__(self, channels: int, ratio: float) -> None:
        super().__init__()
        hidden = round(channels * ratio)
        self.widen = Pointwise(channels, hidden)
        self.depthwise = nn.Conv2d(hidden, hidden, 3, padding=1, groups=hidden)
        self.narrow = Pointwise(hidden, channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.narrow(gelu_depthwise_gelu(self.widen(x), *self.depthwise.parameters()))


class AttentionBlock(nn.Module):
    """Eq. (3) alone: KLA(LN(X)) + X. Convolutions beside it take the place of the feed-forward network.

    Args:
        channels: C of the map.
        attention: as the keyword arguments of ``KNNLocalAttention``.

    Shape:
        (B, H, W, C) -> (B, H, W, C).
    """

    def __init__(self, channels: int, **attention: object) -> None:
        super().__init__()
        self.attention_norm = LayerNorm(channels)
        self.attention = KNNLocalAttention(channels, **attention)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        return self.attend(x)

    def attend(self, x: Tensor) -> Tensor:
        """Eq. (3): X̂ = KLA(LN(X)) + X."""
        return self.attention(self.attention_norm(x)) + x


class KNNTransformerBlock(AttentionBlock):
    """KTB: X̂ = KLA(LN(X)) + X (Eq. 3), then FFN(LN(X̂)) + X̂ (Eq. 4).

    Args:
        channels: C of the map.
        ffn_ratio: hidden channels of the feed-forward network over C.
        attention: as the keyword arguments of ``KNNLocalAttention``.

    Shape:
        (B, H, W, C) -> (B, H, W, C).
    """

    def __init__(self, channels: int, *, ffn_ratio: float = 2.0, **attention: object) -> None:
        super().__init__(channels, **attention)
        self.ffn_norm = LayerNorm(channels)
        self.ffn = FeedForward(channels, ffn_ratio)

    def forward(self, x: Tensor) -> Tensor:
        return self.feed_forward(self.attend(x))

    def feed_forward(self, x: Tensor) -> Tensor:
        """Eq. (4): X = FFN(LN(X̂)) + X̂."""
        norm, ffn = self.ffn_norm, self.ffn
        parameters = [*norm.parameters(), *(p for x in (ffn.widen, ffn.depthwise, ffn.narrow) for p in x.parameters())]
        return feed_forward(x, parameters, norm.eps)


class ConvolutionBlock(nn.Module):
    """X + conv(ReLU(conv(X))): two dense 3×3 convolutions.

    They take nine times the products of a point-wise layer, but run close to the full rate of a CPU
    (``docs/research/network.md``).

    Args:
        channels: C of the map.

    Shape:
        (B, H, W, C) -> (B, H, W, C).
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        inner = F.relu(self.conv1(x.permute(0, 3, 1, 2)), inplace=True)
        return x + self.conv2(inner).permute(0, 2, 3, 1)


class GatedBlock(nn.Module):
    """X̂ = X + W(DW(V(LN(X)))), then X̂ + W'(V'(LN(X̂))), where each half of the channels that V and V' make gates the
    other by a product: NAFNet's block (Chen et al. 2022, "Simple Baselines for Image Restoration") without its channel
    attention, which would look at the whole picture.

    Args:
        channels: C of the map.

    Shape:
        (B, H, W, C) -> (B, H, W, C).
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = LayerNorm(channels), LayerNorm(channels)
        self.widen1, self.widen2 = Pointwise(channels, 2 * channels), Pointwise(channels, 2 * channels)
        self.depthwise = nn.Conv2d(2 * channels, 2 * channels, 3, padding=1, groups=2 * channels)
        self.narrow1, self.narrow2 = Pointwise(channels, channels), Pointwise(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        layers = (self.norm1, self.widen1, self.depthwise, self.narrow1, self.norm2, self.widen2, self.narrow2)
        return gated_block(x, [p for layer in layers for p in layer.parameters()], self.norm1.eps)


BLOCKS = (KNNTransformerBlock, AttentionBlock, ConvolutionBlock, GatedBlock)
"""What the stages of ``kithkin.model.KiT`` consist of."""


class Downsample(nn.Module):
    """Halve both sides and double the channels: a 2×2 convolution of stride 2. (B, H, W, C) -> (B, H/2, W/2, 2C)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, 2 * channels, 2, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)


class Upsample(nn.Module):
    """Double both sides, halve the channels: a linear layer and a pixel shuffle. (B, H, W, C) -> (B, 2H, 2W, C/2)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.expand = Pointwise(channels, 2 * channels)

    def forward(self, x: Tensor) -> Tensor:
        return shuffle_pixels(self.expand(x), 2)


def shuffle_pixels(x: Tensor, factor: int) -> Tensor:
    """Lay the channels of a pixel out as ``factor``² pixels. (B, H, W, f²·C) -> (B, f·H, f·W, C)."""
    batch, height, width, channels = x.shape
    wide = x.reshape(batch, height, width, factor, factor, channels // factor**2)
    return wide.transpose(2, 3).reshape(batch, factor * height, factor * width, channels // factor**2)


def _one_of(name: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise InputError(f"KNNLocalAttention: {name} must be one of {', '.join(allowed)}, got {value!r}")
