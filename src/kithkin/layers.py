"""The layers of KiT. Maps are (B, H, W, C), channels last, all the way through a stage."""

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kithkin.errors import InputError
from kithkin.ops import (
    PatchGroups,
    best_neighbors,
    feed_forward,
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


class KNNLocalAttention(nn.Module):
    """KLA: group similar patches by hashing, then attend from pixel to pixel within each group (Sec. 3.3).

    There is no projection after the attention: with one head it would be absorbed by ψ. With more heads
    ``output_proj`` mixes them.

    Args:
        channels: C of the map.
        patch_size: side r of a patch, in pixels.
        k: patches in a chunk; 1 lets each patch see itself alone (Eq. 2, no hashing is run).
        n_hashes: hash rounds h.
        n_buckets: hash buckets m, even; None follows the number of patches (decision D2).
        n_heads: attention heads.
        weighting: how Eq. 10 is normalised, ``"softmax"`` or ``"paper"`` (decision D4).
        share_query_key: one projection for query and key, φ = θ (the paper's KiT_S).
        hash_input: hash the ``"feature"`` that comes in, or the ``"query"`` (decision D15).
        hash_features: hash the flattened ``"patch"`` or its ``"pooled"`` mean pixel (decision D1), or the flattened
            patch ``"centered"``, less the mean over the patches (decision D17).
        n_pairs: attend to this many candidates of largest pair weight alone, each once; None takes all (decision D16).
        seed: of the fixed rotations, which are used until ``redraw_rotations`` draws others: ``kithkin.train`` lets it
            before every step, and puts the fixed ones back to evaluate.
        backend: of ``kithkin.ops.knn_local_attention``; None takes the first that can serve.

    Shape:
        (B, H, W, C) -> (B, H, W, C), any H and W: the map is extended to whole patches by repeating its border.

    Raises:
        InputError: settings that can't be meant, or a map of another shape.
    """

    rotations: Tensor

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
        n_pairs: int | None = None,
        seed: int = 0,
        backend: str | None = None,
    ) -> None:
        super().__init__()
        _one_of("weighting", weighting, WEIGHTINGS)
        _one_of("hash_input", hash_input, HASH_INPUTS)
        _one_of("hash_features", hash_features, FEATURES)
        if min(patch_size, k, n_hashes, n_heads, 1 if n_pairs is None else n_pairs) < 1:
            raise InputError(
                "KNNLocalAttention: patch_size, k, n_hashes, n_heads and n_pairs must be at least 1, "
                f"got {patch_size}, {k}, {n_hashes}, {n_heads} and {n_pairs}"
            )
        if channels % n_heads:
            raise InputError(f"KNNLocalAttention: {channels} channels can't be split into {n_heads} heads")
        self.channels = channels
        self.patch_size, self.k, self.n_hashes, self.n_buckets = patch_size, k, n_hashes, n_buckets
        self.n_heads, self.weighting, self.n_pairs, self.backend = n_heads, weighting, n_pairs, backend
        self.hash_input, self.hash_features, self.seed = hash_input, hash_features, seed
        self.query_proj = Pointwise(channels, channels)
        self.key_proj = self.query_proj if share_query_key else Pointwise(channels, channels)
        self.value_proj = Pointwise(channels, channels)
        self.output_proj = Pointwise(channels, channels) if n_heads > 1 else nn.Identity()
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
        """Query, key and value: one product where they are three projections."""
        layers = [self.query_proj, self.value_proj]
        if self.key_proj is not self.query_proj:
            layers.insert(1, self.key_proj)
        weight, bias = (torch.cat([getattr(layer, name) for layer in layers]) for name in ("weight", "bias"))
        found = pointwise(patches, weight, bias).chunk(len(layers), dim=-1)
        return found[0], found[-2], found[-1]

    def group(self, hashed: Tensor) -> PatchGroups:
        """The groups in which patches (B, N, P, C) meet: of the incoming feature, or of the query (``hash_input``)."""
        return group_patches(
            hashed,
            k=self.k,
            n_hashes=self.n_hashes,
            n_buckets=self.n_buckets,
            rotations=self.rotations,
            features=self.hash_features,
        )

    def forward(self, x: Tensor) -> Tensor:
        if x.ndim != 4 or x.shape[-1] != self.channels:
            raise InputError(
                f"KNNLocalAttention: expected a map (B, H, W, {self.channels}), got {tuple(x.shape)}; channels come "
                "last, so a map (B, C, H, W) is passed as x.permute(0, 2, 3, 1)"
            )
        height, width = x.shape[1:3]
        right, below = -width % self.patch_size, -height % self.patch_size
        if right or below:
            x = F.pad(x.permute(0, 3, 1, 2), (0, right, 0, below), mode="replicate").permute(0, 2, 3, 1)
        patches = partition(x, self.patch_size)
        query, key, value = self._project(patches)
        groups = self.group(query if self.hash_input == "query" else patches)
        if self.n_pairs is not None and groups.n_hashes * groups.candidates_per_patch > self.n_pairs:
            groups = best_neighbors(query, key, groups, self.n_pairs)
        out = knn_local_attention(
            query,
            key,
            value,
            groups,
            weighting=self.weighting,
            n_heads=self.n_heads,
            backend=self.backend,
        )
        whole = unpartition(in_float32(self.output_proj, out), self.patch_size, (height + below, width + right))
        return whole[:, :height, :width]

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


class KNNTransformerBlock(nn.Module):
    """KTB: X̂ = KLA(LN(X)) + X (Eq. 3), then FFN(LN(X̂)) + X̂ (Eq. 4).

    Args:
        channels: C of the map.
        ffn_ratio: hidden channels of the feed-forward network over C.
        attention: as the keyword arguments of ``KNNLocalAttention``.

    Shape:
        (B, H, W, C) -> (B, H, W, C).
    """

    def __init__(self, channels: int, *, ffn_ratio: float = 2.0, **attention: object) -> None:
        super().__init__()
        self.attention_norm = LayerNorm(channels)
        self.attention = KNNLocalAttention(channels, **attention)  # type: ignore[arg-type]
        self.ffn_norm = LayerNorm(channels)
        self.ffn = FeedForward(channels, ffn_ratio)

    def forward(self, x: Tensor) -> Tensor:
        x = self.attend(x)
        return self.feed_forward(x)

    def attend(self, x: Tensor) -> Tensor:
        """Eq. (3): X̂ = KLA(LN(X)) + X."""
        return self.attention(self.attention_norm(x)) + x

    def feed_forward(self, x: Tensor) -> Tensor:
        """Eq. (4): X = FFN(LN(X̂)) + X̂."""
        norm, ffn = self.ffn_norm, self.ffn
        parameters = [*norm.parameters(), *(p for x in (ffn.widen, ffn.depthwise, ffn.narrow) for p in x.parameters())]
        return feed_forward(x, parameters, norm.eps)


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
