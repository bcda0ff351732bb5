"""A network that starts as a smaller one: with more channels, a wider feed-forward network or more blocks it computes
nearly the same, and goes on learning from there.

The idea is Net2Net's (Chen, Goodfellow, Shlens 2016). There new units are copies of old ones; here new channels of the
maps start at zero, and new units between two layers are not read yet. Both get gradients from the first step on. Only
LayerNorm, whose mean and variance now run over the zeros as well, changes what is computed.
"""

import math
import re

import torch
from torch import Tensor, nn

from kithkin.errors import InputError
from kithkin.model import KiT
from kithkin.model_config import KiTConfig

_SAME = ("n_stages", "stem_stride", "n_heads", "share_query_key")
_SIZES = ("width", "full_width", "ffn_ratio", "depth")

# Layers whose new outputs start at zero, and layers that do not read new inputs yet, by name.
_BLOCK = r"(encoder|bottleneck|decoder)\..*"
_ZERO_OUTPUTS = rf"stem\.conv3|down\..*|up\..*|merge\..*|{_BLOCK}\.(narrow|key_proj|output_proj)"
_ZERO_INPUTS = rf"stem\.conv[23]|head\.conv[23]|{_BLOCK}\.(narrow|output_proj)"
# The same for a network with ``config.blocks``.
_ZERO_OUTPUTS_FOLDED = (
    rf"stem\.(conv2|down)|down\..*|up\..*|head\.up|{_BLOCK}\.(conv2|narrow[12]?|key_proj|output_proj)"
)
_ZERO_INPUTS_FOLDED = rf"stem\.conv2|head\.conv3|{_BLOCK}\.(conv2|narrow[12]?|output_proj)"


@torch.no_grad()
def grow(smaller: KiT, larger: KiT) -> None:
    """Write the weights of a network into a freshly initialised larger one, so that it computes nearly the same.

    Args:
        smaller: left as it is.
        larger: the same kind of network (stages, stride of the stem, heads, shared projections), nowhere narrower or
            less deep. New weights keep their initial values as far as the function allows.

    Raises:
        InputError: the networks are of other kinds, or ``larger`` is smaller somewhere.
    """
    _check(smaller, larger)
    old, layers = dict(smaller.named_modules()), dict(larger.named_modules())
    for name, layer in old.items():
        if isinstance(layer, nn.LayerNorm):
            _grow_norm(layer, layers[name])
        elif isinstance(layer, nn.Linear | nn.Conv2d):
            _grow_layer(name, layer, layers[name], smaller.config)


def _check(smaller: KiT, larger: KiT) -> None:
    old, new = smaller.config.to_dict(), larger.config.to_dict()
    differ = [f"{key} = {old[key]}, not {new[key]}" for key in _SAME if old[key] != new[key]]
    differ += [f"{key} = {old[key]}, more than {new[key]}" for key in _SIZES if old[key] > new[key]]
    words = zip(old["blocks"].split(), new["blocks"].split(), strict=False)
    if bool(old["blocks"]) != bool(new["blocks"]) or not all(longer.startswith(word) for word, longer in words):
        differ += [f"blocks = {old['blocks']!r}, no beginning of the stages of {new['blocks']!r}"]
    if differ:
        raise InputError(f"grow: the weights to start from are of another network: {', '.join(differ)}")
    if old["share_query_key"] and old["width"] != new["width"]:
        raise InputError(
            "grow: with share_query_key a network can't get more channels: new ones would change the pairs"
        )


def _grow_norm(old: nn.Module, new: nn.Module) -> None:
    (old_weight, old_bias), (weight, bias) = old.parameters(), new.parameters()
    channels = len(old_weight)
    # Zeros beside them lower the deviation of channels without a mean by this; less a mean, a zero is none any more.
    weight[:channels] = old_weight * math.sqrt(channels / len(weight))
    weight[channels:] = 0
    bias[:channels] = old_bias


def _grow_layer(name: str, old: nn.Module, new: nn.Module, config: KiTConfig) -> None:
    n_heads = config.n_heads
    zero_outputs, zero_inputs = (
        (_ZERO_OUTPUTS_FOLDED, _ZERO_INPUTS_FOLDED) if config.blocks else (_ZERO_OUTPUTS, _ZERO_INPUTS)
    )
    rows, columns = _parts(name, n_heads)
    (old_weight, old_bias), (weight, bias) = old.parameters(), new.parameters()
    known, inner = _cut(old_weight, rows, columns), _cut(weight, rows, columns)
    outputs, inputs = known.shape[1], known.shape[3]
    if re.fullmatch(zero_outputs, name) or (name.endswith("value_proj") and n_heads == 1):
        inner[:, outputs:] = 0
    if re.fullmatch(zero_inputs, name):
        inner[:, :outputs, :, inputs:] = 0
    # The dot products are divided by the root of the channels.
    scale = math.sqrt(inner.shape[1] / outputs) if name.endswith("query_proj") else 1.0
    inner[:, :outputs, :, :inputs] = known * scale
    bias.view(rows, -1)[:, :outputs] = old_bias.view(rows, -1) * scale


def _parts(name: str, n_heads: int) -> tuple[int, int]:
    """Of how many equal parts a layer's outputs and inputs consist: pixels to shuffle, maps put together, heads."""
    if name.startswith(("up.", "head.up")):
        return 4, 1
    if name.startswith("merge."):
        return 1, 2
    if name.endswith("output_proj"):
        return 1, n_heads
    if name.endswith(("widen1", "widen2", "depthwise")) and ".ffn." not in name:
        return 2, 1  # halves that gate each other
    return (n_heads, 1) if name.endswith(("query_proj", "key_proj", "value_proj")) else (1, 1)


def _cut(weight: Tensor, rows: int, columns: int) -> Tensor:
    """(outputs, inputs, ...) -> a view (rows, outputs / rows, columns, inputs / columns, ...)."""
    return weight.view(rows, weight.shape[0] // rows, columns, weight.shape[1] // columns, *weight.shape[2:])
