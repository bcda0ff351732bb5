"""A network that starts as a smaller one: with more channels, a wider feed-forward network or more blocks it computes
nearly the same, and goes on learning from there.

The idea is Net2Net's (Chen, Goodfellow, Shlens 2016). There new units are copies of old ones; here new channels of the
maps start at zero, and new units between two layers are not read yet. Both get gradients from the first step on. Only
LayerNorm, whose mean and variance now run over the zeros as well, changes what is computed.
"""

import math

import torch
from torch import Tensor, nn

from kithkin.errors import InputError
from kithkin.model import KiT

_SAME = ("n_stages", "stem_stride", "n_heads", "share_query_key")

# Layers whose new outputs start at zero, and layers that do not read new inputs yet.
_SILENT = ("stem.conv3", "down", "up", "merge", "ffn.narrow", "key_proj", "output_proj")
_DEAF = ("stem.conv2", "stem.conv3", "ffn.narrow", "head.conv2", "head.conv3", "output_proj")


@torch.no_grad()
def grow(smaller: KiT, larger: KiT) -> None:
    """Write the weights of a network into a freshly initialised larger one, so that it computes nearly the same.

    Args:
        smaller: left as it is.
        larger: the same kind of network (stages, stride of the stem, heads, shared projections), nowhere narrower or
            less deep. What is new in it keeps its initial values as far as the function allows.

    Raises:
        InputError: the networks are of other kinds, or ``larger`` is smaller somewhere.
    """
    _check(smaller, larger)
    old, layers = dict(smaller.named_modules()), dict(larger.named_modules())
    for name, layer in old.items():
        if isinstance(layer, nn.LayerNorm):
            _grow_norm(layer, layers[name])
        elif isinstance(layer, nn.Linear | nn.Conv2d):
            _grow_layer(name, layer, layers[name], smaller.config.n_heads)


def _check(smaller: KiT, larger: KiT) -> None:
    old, new = smaller.config.to_dict(), larger.config.to_dict()
    differ = [f"{key} = {old[key]}, not {new[key]}" for key in _SAME if old[key] != new[key]]
    differ += [
        f"{key} = {old[key]}, more than {new[key]}" for key in ("width", "ffn_ratio", "depth") if old[key] > new[key]
    ]
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


def _grow_layer(name: str, old: nn.Module, new: nn.Module, n_heads: int) -> None:
    rows, columns = _parts(name, n_heads)
    (old_weight, old_bias), (weight, bias) = old.parameters(), new.parameters()
    known, inner = _cut(old_weight, rows, columns), _cut(weight, rows, columns)
    outputs, inputs = known.shape[1], known.shape[3]
    if _is(name, _SILENT) or (name.endswith("value_proj") and n_heads == 1):
        inner[:, outputs:] = 0
    if _is(name, _DEAF):
        inner[:, :outputs, :, inputs:] = 0
    # The dot products are divided by the root of the channels.
    scale = math.sqrt(inner.shape[1] / outputs) if name.endswith("query_proj") else 1.0
    inner[:, :outputs, :, :inputs] = known * scale
    bias.view(rows, -1)[:, :outputs] = old_bias.view(rows, -1) * scale


def _parts(name: str, n_heads: int) -> tuple[int, int]:
    """Of how many equal parts a layer's outputs and inputs consist: pixels to shuffle, maps put together, heads."""
    if name.startswith("up."):
        return 4, 1
    if name.startswith("merge."):
        return 1, 2
    if name.endswith("output_proj"):
        return 1, n_heads
    return (n_heads, 1) if name.endswith(("query_proj", "key_proj", "value_proj")) else (1, 1)


def _cut(weight: Tensor, rows: int, columns: int) -> Tensor:
    """(outputs, inputs, ...) -> a view (rows, outputs / rows, columns, inputs / columns, ...)."""
    return weight.view(rows, weight.shape[0] // rows, columns, weight.shape[1] // columns, *weight.shape[2:])


def _is(name: str, kinds: tuple[str, ...]) -> bool:
    return any(name.startswith(f"{kind}.") or name.endswith(kind) for kind in kinds)
