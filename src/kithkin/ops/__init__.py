"""The operator of KiT: tensors in, tensors out.

``group_patches`` decides which patches meet (Eqs. 5-7, integers, no gradient);
``knn_local_attention`` lets them meet (Eqs. 8-10, floats, differentiable).

A call goes from ``dispatch``, which chooses a backend, to ``reference`` (the equations as printed), or through
``attention_operator`` (with a gradient) to ``native`` (C++, by ``kernels/``), ``triton_backend`` or ``blocked``.
"""

from kithkin.ops.baselines import global_attention, local_attention
from kithkin.ops.depthwise import gelu_depthwise_gelu
from kithkin.ops.dispatch import available_backends, knn_local_attention
from kithkin.ops.feedforward import feed_forward
from kithkin.ops.gated import gated_block
from kithkin.ops.grouping import (
    PatchGroups,
    default_n_buckets,
    draw_rotations,
    exact_groups,
    group_patches,
    lsh_hash,
    sort_by_hash,
)
from kithkin.ops.linear import pointwise
from kithkin.ops.norm import layer_norm
from kithkin.ops.patches import partition, unpartition
from kithkin.ops.precision import in_float32, multiplies_bfloat16
from kithkin.ops.reference import WEIGHTINGS, aggregate, pairwise_attention, pairwise_weights
from kithkin.ops.triton_backend import trusted

__all__ = [
    "WEIGHTINGS",
    "PatchGroups",
    "aggregate",
    "available_backends",
    "default_n_buckets",
    "draw_rotations",
    "exact_groups",
    "feed_forward",
    "gated_block",
    "gelu_depthwise_gelu",
    "global_attention",
    "group_patches",
    "in_float32",
    "knn_local_attention",
    "layer_norm",
    "local_attention",
    "lsh_hash",
    "multiplies_bfloat16",
    "pairwise_attention",
    "pairwise_weights",
    "partition",
    "pointwise",
    "sort_by_hash",
    "trusted",
    "unpartition",
]
