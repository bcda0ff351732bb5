"""KiT, the k-NN Image Transformer: a U-shaped network that predicts a residual (Fig. 2)."""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kithkin.errors import InputError
from kithkin.layers import (
    AttentionBlock,
    ConvolutionBlock,
    Downsample,
    GatedBlock,
    KNNLocalAttention,
    KNNTransformerBlock,
    Pointwise,
    Upsample,
    shuffle_pixels,
)
from kithkin.model_config import KiTConfig
from kithkin.ops import in_float32
from kithkin.ops.library import exporting, statically_true

# Layers before a GELU or a ReLU, which halves the mean square.
_BEFORE_GELU = ("conv1", "stem.conv2", "head.conv2", "ffn.widen", "ffn.depthwise")
# What the attention of every block takes from the configuration as it is.
_OF_ATTENTION = (
    "patch_size",
    "n_hashes",
    "n_buckets",
    "n_heads",
    "weighting",
    "share_query_key",
    "hash_input",
    "hash_features",
)


class KiT(nn.Module):
    """The k-NN Image Transformer (Fig. 2).

    Three convolutions; encoder stages of k-NN transformer blocks, each followed by a downsampling; a bottleneck with
    k = 1; decoder stages, each an upsampling, the encoder's feature concatenated, and blocks; three convolutions that
    predict the residual I_r. The output is I = I_d + I_r. With ``config.blocks`` stem, head and stages are of another
    kind, and the decoder adds the encoder's feature (decision D20).

    Args:
        config: every choice; None takes the defaults.

    Shape:
        (B, 3, H, W) RGB in [0, 1] -> (B, 3, H, W), not clamped. Any H and W ≥ 1; the image is extended to a multiple of
        ``config.stride`` by reflection (by repeating its border where it is too small to reflect).
    """

    def __init__(self, config: KiTConfig | None = None) -> None:
        super().__init__()
        self.config = config = config or KiTConfig()
        widths = [config.width * 2**i for i in range(config.n_stages + 1)]  # of each level
        last = config.n_stages
        self.stem = _FullStem(config) if config.blocks else _Stem(config)
        self.encoder = nn.ModuleList(_stage(config, i, config.k) for i in range(last))
        self.down = nn.ModuleList(Downsample(c) for c in widths[:-1])
        self.bottleneck = _stage(config, last, config.k if config.blocks else 1)
        self.up = nn.ModuleList(Upsample(c) for c in widths[1:])
        self.merge = nn.ModuleList(Pointwise(2 * c, c) for c in widths[:-1] if not config.blocks)
        self.decoder = nn.ModuleList(_stage(config, last + 1 + i, config.k) for i in range(last))
        self.head = _FullHead(config) if config.blocks else _Head(config)
        self._initialize()

    def _initialize(self) -> None:
        """Variance 1 / fan-in, 2 / fan-in before a GELU; no offsets; every residual branch and the head start at zero,
        so an untrained network returns its input.

        Nothing normalises the sums that the branches add to, and a noisy picture differs from a clean one by little:
        with PyTorch's initial weights the offsets drown that difference and training never leaves the identity.
        """
        if self.head.conv3.weight.is_meta:  # as in checkpoint.outline: no numbers; drawing would import the compiler
            return
        for name, layer in self.named_modules():
            if isinstance(layer, nn.Linear | nn.Conv2d):
                before_gelu = name.endswith(_BEFORE_GELU) and not (self.config.blocks and name == "stem.conv2")
                gain = 2.0 if before_gelu else 1.0
                nn.init.normal_(layer.weight, std=math.sqrt(gain / layer.weight[0].numel()))
                nn.init.zeros_(layer.bias)  # type: ignore[arg-type]
        for block in self.modules():
            if isinstance(block, KNNLocalAttention):
                last = block.value_proj if self.config.n_heads == 1 else block.output_proj
                nn.init.zeros_(last.weight)  # type: ignore[arg-type]
            elif isinstance(block, KNNTransformerBlock):
                nn.init.zeros_(block.ffn.narrow.weight)
            elif isinstance(block, ConvolutionBlock):
                nn.init.zeros_(block.conv2.weight)
            elif isinstance(block, GatedBlock):
                nn.init.zeros_(block.narrow1.weight)
                nn.init.zeros_(block.narrow2.weight)
        nn.init.zeros_(self.head.conv3.weight)

    def forward(self, image: Tensor) -> Tensor:
        if image.ndim != 4 or image.shape[1] != 3 or 0 in image.shape:
            raise InputError(f"KiT: expected images (B, 3, H, W) with pixels, got shape {tuple(image.shape)}")
        height, width = image.shape[2:]
        # The paper's network computes in float32 around its blocks; with ``config.blocks`` the layers see to that.
        blocks = self.config.blocks
        run: Callable[..., Any] = _plainly if blocks else in_float32
        padded = _extend(image, self.config.stride)
        # From here on maps are (B, H, W, C); ``full`` are the stem's features at full resolution.
        x, *full = self.stem(padded) if blocks else (in_float32(self.stem, padded),)
        skips = []
        for stage, down in zip(self.encoder, self.down, strict=True):
            x = stage(x)
            skips.append(x)
            x = run(down, x)
        x = self.bottleneck(x)
        for i in reversed(range(self.config.n_stages)):
            x = run(self.up[i], x)
            # The encoder's feature of this level is added, or concatenated and mixed (D19).
            x = x + skips[i] if blocks else in_float32(self.merge[i], torch.cat([x, skips[i]], dim=-1))
            x = self.decoder[i](x)
        return image + run(self.head, x, *full)[:, :, :height, :width]  # I = I_d + I_r

    def redraw_rotations(self, generator: torch.Generator | None = None) -> None:
        """New hash rotations for every block from a private generator; None puts the fixed ones back."""
        for module in self.modules():
            if isinstance(module, KNNLocalAttention):
                module.redraw_rotations(generator)

    def set_backend(self, backend: str | None) -> "KiT":
        """Make every block use this backend of the operator; None takes the first that can serve."""
        for module in self.modules():
            if isinstance(module, KNNLocalAttention):
                module.backend = backend
        return self


def _plainly(function: Callable[..., Any], *tensors: Tensor) -> Any:
    return function(*tensors)


class _Stem(nn.Module):
    """Three convolutions at the input; the second has the stem's stride. (B, 3, H, W) -> (B, H/s, W/s, width)."""

    def __init__(self, config: KiTConfig) -> None:
        super().__init__()
        self.stride = config.stem_stride
        self.conv1 = nn.Conv2d(3, config.width, 3, padding=1)
        self.conv2 = nn.Conv2d(config.width, config.width, 3, padding=1, stride=self.stride)
        self.conv3 = nn.Conv2d(config.width, config.width, 3, padding=1)

    def forward(self, image: Tensor) -> Tensor:
        x = F.gelu(self.conv1(_in_fastest_layout(image, self.stride)))
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
        x = F.gelu(self.conv1(_in_fastest_layout(x.permute(0, 3, 1, 2), self.stride)))
        weight, bias = (
            parameter.unflatten(0, (-1, self.stride**2)).transpose(0, 1).flatten(0, 1)
            for parameter in self.conv2.parameters()
        )
        x = F.gelu(F.conv2d(x, weight, bias, padding=1)).permute(0, 2, 3, 1)
        return self.conv3(_in_fastest_layout(shuffle_pixels(x, self.stride).permute(0, 3, 1, 2), self.stride))


def _in_fastest_layout(x: Tensor, stride: int) -> Tensor:
    """A map (B, C, H, W) in the layout in which the 3×3 convolutions of stem and head take least time.

    That is channels last, but for gradients on CPUs channels first: with AVX2, oneDNN then takes half as long for the
    gradient of a weight (``docs/research/speed.md``). A stem with a stride gains nothing by it.
    """
    if exporting():  # what runs the file lays its maps out as it likes
        return x
    first = stride == 1 and x.device.type == "cpu" and torch.is_grad_enabled()
    return x.contiguous(memory_format=torch.contiguous_format if first else torch.channels_last)


class _FullStem(nn.Module):
    """Two convolutions at the picture's own resolution, whose features the head takes too, and their map at half the
    sides. (B, 3, H, W) -> (B, H/2, W/2, width) and (B, full_width, H, W).

    The first one reads the picture in float32: bfloat16 has as many levels near white as 8 bits.
    """

    def __init__(self, config: KiTConfig) -> None:
        super().__init__()
        full = config.full_width
        self.conv1 = nn.Conv2d(3, full, 3, padding=1)
        self.conv2 = nn.Conv2d(full, full, 3, padding=1)
        self.down = nn.Conv2d(full, config.width, 2, stride=2)

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        x = in_float32(self.conv1, image.contiguous(memory_format=torch.channels_last))
        full = self.conv2(F.relu(x, inplace=True))
        return self.down(full).permute(0, 2, 3, 1), full


class _FullHead(nn.Module):
    """Back to the picture's own resolution, where the stem's features are added, and two convolutions.
    (B, H/2, W/2, width) and (B, full_width, H, W) -> (B, 3, H, W) in float32."""

    def __init__(self, config: KiTConfig) -> None:
        super().__init__()
        full = config.full_width
        self.up = Pointwise(config.width, 4 * full)
        self.conv2 = nn.Conv2d(full, full, 3, padding=1)
        self.conv3 = nn.Conv2d(full, 3, 3, padding=1)

    def forward(self, x: Tensor, full: Tensor) -> Tensor:
        x = shuffle_pixels(self.up(x), 2).permute(0, 3, 1, 2) + full
        return self.conv3(F.relu(self.conv2(x), inplace=True)).float()


def _stage(config: KiTConfig, index: int, k: int) -> nn.Sequential:
    """The blocks of a stage, counted in the order of ``KiT``'s attributes: encoder, bottleneck, decoder, each from the
    highest resolution down. (The words of ``config.blocks`` are in the order in which stages run.)"""
    last = config.n_stages
    level = index if index <= last else index - last - 1
    word = config.words[index if index <= last else 2 * last - level]
    channels = config.width * 2**level
    blocks: list[nn.Module] = []
    for i, letter in enumerate(word):
        attention = {name: getattr(config, name) for name in _OF_ATTENTION}
        attention |= {"k": k, "seed": (config.rotation_seed + 1000 * index + i) % 2**32}
        if letter == "c":
            blocks.append(ConvolutionBlock(channels))
        elif letter == "g":
            blocks.append(GatedBlock(channels))
        elif letter == "a":
            blocks.append(AttentionBlock(channels, **attention))
        else:
            blocks.append(KNNTransformerBlock(channels, ffn_ratio=config.ffn_ratio, **attention))
    return nn.Sequential(*blocks)


def _extend(image: Tensor, multiple: int) -> Tensor:
    height, width = image.shape[2:]
    below, right = -height % multiple, -width % multiple
    if exporting() and statically_true(below + right == 0):  # else the copy stays: its layout decides the last bits
        return image
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
