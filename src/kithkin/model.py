"""KiT, the k-NN Image Transformer: a U-shaped network that predicts a residual (Fig. 2)."""

import math
import reprlib
from dataclasses import asdict, dataclass, fields
from difflib import get_close_matches
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kithkin.errors import InputError
from kithkin.layers import HASH_INPUTS, Downsample, KNNTransformerBlock, Pointwise, Upsample, shuffle_pixels
from kithkin.ops import WEIGHTINGS, in_float32
from kithkin.ops.grouping import FEATURES, MAX_BUCKETS

SIZES: dict[str, dict[str, Any]] = {
    "tiny": {"width": 24, "ffn_ratio": 3.0},
    "small": {"width": 32, "depth": 1, "ffn_ratio": 2.0, "stem_stride": 1, "n_hashes": 1},
    "base": {"width": 96, "ffn_ratio": 3.0},
}


# What no network that is meant needs more of. A checkpoint's header is read before its tensors, and a recipe before any
# picture: neither may ask for gigabytes with a few bytes.
LARGEST: dict[str, int] = {
    "width": 8192,
    "n_stages": 8,
    "depth": 256,
    "ffn_ratio": 64,
    "patch_size": 128,
    "k": 2**20,
    "n_hashes": 256,
    "n_buckets": 2**14,
    "n_heads": 8192,
    "n_pairs": 2**20,
    "rotation_seed": 2**63,
}
MOST_WEIGHTS = 2**32
MOST_ROTATIONS = 2**26

_BEFORE_GELU = ("stem.conv1", "stem.conv2", "head.conv1", "head.conv2", "ffn.widen", "ffn.depthwise")


@dataclass(frozen=True)
class KiTConfig:
    """Every choice of the network. It travels in the checkpoint's header.

    Attributes:
        width: channels of the first stage; stage i has width·2^i.
        n_stages: encoder stages, and as many decoder stages.
        depth: k-NN transformer blocks in a stage, the paper's b.
        ffn_ratio: hidden channels of a feed-forward network over its channels.
        stem_stride: 2 halves the map once more before the first stage, 1 does not (decision D7).
        patch_size: side r of a patch, in pixels of the stage's map.
        k: patches in a chunk; the bottleneck has k = 1.
        n_hashes: hash rounds h.
        n_buckets: hash buckets m, even; None follows the number of patches (decision D2).
        n_heads: attention heads (decision D14).
        weighting: ``"softmax"`` or ``"paper"`` (decision D4).
        share_query_key: φ = θ, the paper's KiT_S.
        hash_input: ``"feature"`` or ``"query"`` (decision D15).
        hash_features: ``"patch"``, ``"pooled"`` (decision D1) or ``"centered"`` (decision D17).
        n_pairs: candidates that a patch attends to, the best of those found; None takes all (decision D16).
        rotation_seed: of the fixed hash rotations (decision D12).

    Raises:
        InputError: a value is out of range (``LARGEST``), or the network would hold more than ``MOST_WEIGHTS`` weights
            or ``MOST_ROTATIONS`` numbers of hash rotations.
    """

    width: int = 32
    n_stages: int = 3
    depth: int = 2
    ffn_ratio: float = 2.0
    stem_stride: int = 2
    patch_size: int = 4
    k: int = 4
    n_hashes: int = 4
    n_buckets: int | None = None
    n_heads: int = 1
    weighting: str = "softmax"
    share_query_key: bool = False
    hash_input: str = "feature"
    hash_features: str = "patch"
    n_pairs: int | None = None
    rotation_seed: int = 0

    def __post_init__(self) -> None:
        self._check_types()
        for name in ("width", "n_stages", "depth", "patch_size", "k", "n_hashes", "n_heads"):
            if getattr(self, name) < 1:
                raise InputError(f"KiTConfig: {name} must be at least 1, got {getattr(self, name)}")
        if self.stem_stride not in (1, 2):
            raise InputError(f"KiTConfig: stem_stride must be 1 or 2, got {self.stem_stride}")
        if self.n_pairs is not None and self.n_pairs < 1:
            raise InputError(f"KiTConfig: n_pairs must be at least 1, got {self.n_pairs}")
        if self.n_buckets is not None and (self.n_buckets < 2 or self.n_buckets % 2):
            raise InputError(f"KiTConfig: n_buckets must be even and at least 2, got {self.n_buckets}")
        if not self.ffn_ratio > 0:
            raise InputError(f"KiTConfig: ffn_ratio must be positive, got {self.ffn_ratio}")
        if round(self.width * self.ffn_ratio) < 1:
            raise InputError(f"KiTConfig: ffn_ratio {self.ffn_ratio} leaves no hidden channel of {self.width}")
        if self.width % self.n_heads:
            raise InputError(f"KiTConfig: n_heads must divide width, got {self.n_heads} and {self.width}")
        for name, allowed in (("weighting", WEIGHTINGS), ("hash_input", HASH_INPUTS), ("hash_features", FEATURES)):
            if getattr(self, name) not in allowed:
                raise InputError(f"KiTConfig: {name} must be one of {', '.join(allowed)}, got {getattr(self, name)!r}")
        self._check_size()

    def _check_size(self) -> None:
        """Refuse what would need more memory than any network that is meant; the weights are those of the blocks."""
        weights = rotations = 0
        for stage in range(self.n_stages + 1):
            channels = self.width * 2**stage
            blocks = self.depth * (1 if stage == self.n_stages else 2)
            weights += blocks * channels**2 * (3 + 2 * self.ffn_ratio)
            features = channels * (1 if self.hash_features == "pooled" else self.patch_size**2)
            if self.k > 1 and stage < self.n_stages:
                rotations += blocks * self.n_hashes * features * ((self.n_buckets or MAX_BUCKETS) // 2)
        if weights > MOST_WEIGHTS:
            raise InputError(
                f"KiTConfig: the network would have {weights:.2g} weights, at most {MOST_WEIGHTS:.2g} are taken; lower "
                "width, n_stages, depth or ffn_ratio"
            )
        if rotations > MOST_ROTATIONS:
            raise InputError(
                f"KiTConfig: the hash rotations would be {rotations:.2g} numbers, at most {MOST_ROTATIONS:.2g} are "
                "taken; lower n_hashes, n_buckets or patch_size"
            )

    def _check_types(self) -> None:
        for field in fields(self):
            value, kind = getattr(self, field.name), type(field.default)
            if field.name in ("n_buckets", "n_pairs"):
                kind = type(None) if value is None else int
            right = isinstance(value, int | float if kind is float else kind)
            if not right or (isinstance(value, bool) and kind is not bool):
                raise InputError(f"KiTConfig: {field.name} must be {kind.__name__}, got {reprlib.repr(value)}")
            if field.name in LARGEST and value is not None and value > LARGEST[field.name]:
                raise InputError(f"KiTConfig: {field.name} must be at most {LARGEST[field.name]}, got {value!r}")

    @classmethod
    def named(cls, size: str, **changes: Any) -> "KiTConfig":
        """The configuration of a named size (tiny, small, base), with changes on top."""
        if size not in SIZES:
            raise InputError(f"KiTConfig: no size is called {size!r}; there are {', '.join(SIZES)}")
        return cls.from_dict({**SIZES[size], **changes})

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "KiTConfig":
        """Build from plain values; an unknown key is refused with the nearest name."""
        known = [field.name for field in fields(cls)]
        for name in values:
            if name not in known:
                near = get_close_matches(name, known, n=1)
                hint = f"; did you mean {near[0]!r}?" if near else f"; known: {', '.join(known)}"
                raise InputError(f"KiTConfig: unknown key {name!r}{hint}")
        return cls(**values)

    def to_dict(self) -> dict[str, Any]:
        """Plain values that ``from_dict`` takes back."""
        return asdict(self)

    @property
    def stride(self) -> int:
        """Input pixels a pixel of the bottleneck stands for; the input is extended to a multiple of it."""
        return self.stem_stride * 2**self.n_stages


class KiT(nn.Module):
    """The k-NN Image Transformer (Fig. 2).

    Three convolutions; encoder stages of k-NN transformer blocks, each followed by a downsampling; a bottleneck with
    k = 1; decoder stages, each an upsampling, the encoder's feature concatenated, and blocks; three convolutions that
    predict the residual I_r. The output is I = I_d + I_r.

    Args:
        config: every choice; None takes the defaults.

    Shape:
        (B, 3, H, W) RGB in [0, 1] -> (B, 3, H, W), not clamped. Any H and W ≥ 1; the image is extended to a multiple of
        ``config.stride`` by reflection (by repeating its border where it is too small to reflect).
    """

    def __init__(self, config: KiTConfig | None = None) -> None:
        super().__init__()
        self.config = config = config or KiTConfig()
        widths = [config.width * 2**i for i in range(config.n_stages + 1)]
        self.stem = _Stem(config)
        self.encoder = nn.ModuleList(_stage(config, i, widths[i], config.k) for i in range(config.n_stages))
        self.down = nn.ModuleList(Downsample(c) for c in widths[:-1])
        self.bottleneck = _stage(config, config.n_stages, widths[-1], 1)
        self.up = nn.ModuleList(Upsample(c) for c in widths[1:])
        self.merge = nn.ModuleList(Pointwise(2 * c, c) for c in widths[:-1])
        self.decoder = nn.ModuleList(
            _stage(config, config.n_stages + 1 + i, widths[i], config.k) for i in range(config.n_stages)
        )
        self.head = _Head(config)
        self._initialize()

    def _initialize(self) -> None:
        """Variance 1 / fan-in, 2 / fan-in before a GELU; no offsets; every residual branch and the head start at zero,
        so an untrained network returns its input.

        Nothing normalises the sums that the branches add to, and a noisy picture differs from a clean one by little:
        with PyTorch's initial weights the offsets drown that difference and training never leaves the identity.
        """
        for name, layer in self.named_modules():
            if isinstance(layer, nn.Linear | nn.Conv2d):
                gain = 2.0 if name.endswith(_BEFORE_GELU) else 1.0
                nn.init.normal_(layer.weight, std=math.sqrt(gain / layer.weight[0].numel()))
                nn.init.zeros_(layer.bias)  # type: ignore[arg-type]
        for block in self.modules():
            if isinstance(block, KNNTransformerBlock):
                attention = block.attention
                last = attention.value_proj if self.config.n_heads == 1 else attention.output_proj
                nn.init.zeros_(last.weight)  # type: ignore[arg-type]
                nn.init.zeros_(block.ffn.narrow.weight)
        nn.init.zeros_(self.head.conv3.weight)

    def forward(self, image: Tensor) -> Tensor:
        if image.ndim != 4 or image.shape[1] != 3 or 0 in image.shape:
            raise InputError(f"KiT: expected images (B, 3, H, W) with pixels, got shape {tuple(image.shape)}")
        height, width = image.shape[2:]
        padded = _extend(image, self.config.stride)
        x = in_float32(self.stem, padded)
        skips = []
        for stage, down in zip(self.encoder, self.down, strict=True):
            x = stage(x)
            skips.append(x)
            x = in_float32(down, x)
        x = self.bottleneck(x)
        for i in reversed(range(self.config.n_stages)):
            x = in_float32(self.merge[i], torch.cat([in_float32(self.up[i], x), skips[i]], dim=-1))
            x = self.decoder[i](x)
        residual = in_float32(self.head, x)[:, :, :height, :width]
        return image + residual

    def redraw_rotations(self, generator: torch.Generator | None = None) -> None:
        """New hash rotations for every block from a private generator; None puts the fixed ones back."""
        for module in self.modules():
            if isinstance(module, KNNTransformerBlock):
                module.attention.redraw_rotations(generator)

    def set_backend(self, backend: str | None) -> "KiT":
        """Make every block use this backend of the operator; None takes the first that can serve."""
        for module in self.modules():
            if isinstance(module, KNNTransformerBlock):
                module.attention.backend = backend
        return self


class _Stem(nn.Module):
    """Three convolutions at the input; the second has the stem's stride. (B, 3, H, W) -> (B, H/s, W/s, width)."""

    def __init__(self, config: KiTConfig) -> None:
        super().__init__()
        self.stride = config.stem_stride
        self.conv1 = nn.Conv2d(3, config.width, 3, padding=1)
        self.conv2 = nn.Conv2d(config.width, config.width, 3, padding=1, stride=self.stride)
        self.conv3 = nn.Conv2d(config.width, config.width, 3, padding=1)

    def forward(self, image: Tensor) -> Tensor:
        x = F.gelu(self.conv1(_laid_out(image, self.stride)))
        x = F.gelu(self.conv2(x))
        return self.conv3(x).permute(0, 2, 3, 1).contiguous()


class _Head(nn.Module):
    """Three convolutions at the output, with a pixel shuffle that undoes the stem's stride.
    (B, H/s, W/s, width) -> (B, 3, H, W).

    The second convolution's channels are put in the order in which the shuffle moves whole pixels: it is then a copy of
    runs of ``width`` numbers, where PyTorch's moves them one by one.
    """

    def __init__(self, config: KiTConfig) -> None:
        super().__init__()
        self.stride = config.stem_stride
        self.conv1 = nn.Conv2d(config.width, config.width, 3, padding=1)
        self.conv2 = nn.Conv2d(config.width, config.width * self.stride**2, 3, padding=1)
        self.conv3 = nn.Conv2d(config.width, 3, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.gelu(self.conv1(_laid_out(x.permute(0, 3, 1, 2), self.stride)))
        weight, bias = (
            parameter.unflatten(0, (-1, self.stride**2)).transpose(0, 1).flatten(0, 1)
            for parameter in self.conv2.parameters()
        )
        x = F.gelu(F.conv2d(x, weight, bias, padding=1)).permute(0, 2, 3, 1)
        return self.conv3(_laid_out(shuffle_pixels(x, self.stride).permute(0, 3, 1, 2), self.stride))


def _laid_out(x: Tensor, stride: int) -> Tensor:
    """A map (B, C, H, W) in the layout in which the 3×3 convolutions of stem and head take least time.

    That is channels last, but for gradients on CPUs channels first: with AVX2, oneDNN then takes half as long for the
    gradient of a weight (``docs/benchmarks.md``). A stem with a stride gains nothing by it.
    """
    first = stride == 1 and x.device.type == "cpu" and torch.is_grad_enabled()
    return x.contiguous(memory_format=torch.contiguous_format if first else torch.channels_last)


def _stage(config: KiTConfig, index: int, channels: int, k: int) -> nn.Sequential:
    return nn.Sequential(
        *(
            KNNTransformerBlock(
                channels,
                ffn_ratio=config.ffn_ratio,
                patch_size=config.patch_size,
                k=k,
                n_hashes=config.n_hashes,
                n_buckets=config.n_buckets,
                n_heads=config.n_heads,
                weighting=config.weighting,
                share_query_key=config.share_query_key,
                hash_input=config.hash_input,
                hash_features=config.hash_features,
                n_pairs=config.n_pairs,
                seed=(config.rotation_seed + 1000 * index + block) % 2**32,
            )
            for block in range(config.depth)
        )
    )


def _extend(image: Tensor, multiple: int) -> Tensor:
    height, width = image.shape[2:]
    below, right = -height % multiple, -width % multiple
    mode = "reflect" if below < height and right < width else "replicate"
    return F.pad(image, (0, right, 0, below), mode=mode)


def count_parameters(model: nn.Module) -> int:
    """Trainable numbers of a module, shared ones once."""
    return sum(p.numel() for p in model.parameters() if p.requires_grad)


@torch.no_grad()
def count_macs(config: KiTConfig, size: tuple[int, int] = (256, 256)) -> int:
    """Multiply-accumulates of one forward pass, hashing included, counted on the operations that really run.

    Args:
        config: the network.
        size: (H, W) of the image, in pixels.

    Returns:
        MACs of matrix products and convolutions; elementwise operations are not counted.
    """
    from torch.utils.flop_counter import FlopCounterMode

    with torch.random.fork_rng(devices=[]):
        model = KiT(config).eval()
    with FlopCounterMode(display=False) as counter:
        model(torch.rand(1, 3, *size, generator=torch.Generator().manual_seed(0)))
    return math.ceil(counter.get_total_flops() / 2)
