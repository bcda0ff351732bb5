"""How much the patches count that a patch attends to, Eq. (10), as an attention layer saw them."""

from collections.abc import Sequence

import torch
from torch import Tensor

from kithkin.layers import KNNLocalAttention, Recording
from kithkin.ops.reference import candidates_of_each_patch, pairwise_weights


def weights_of(
    attention: KNNLocalAttention, recording: Recording, patches: Sequence[int] | None = None
) -> tuple[Tensor, Tensor]:
    """What patches attend to, and how much each of it counts.

    Args:
        attention: the layer.
        recording: of its pass over one picture.
        patches: M of them by their numbers; None takes all N.

    Returns:
        (M, h·2k) int64 on the CPU, round by round first the k patches of the chunk, then the k of the chunk before it,
        -1 where a place is empty, and (M, N) where no hashing is run; and float32 of the same shape, the weights:
        a sum of 1 a row, the mean of the heads.
    """
    listed = candidates_of_each_patch(recording.groups)[0]
    chosen = slice(None) if patches is None else torch.tensor(patches, dtype=torch.int64, device=listed.device)
    listed = listed[chosen]
    # (heads, N, P, C / heads)
    query, key = (x[0].unflatten(-1, (attention.n_heads, -1)).movedim(-2, 0) for x in (recording.query, recording.key))
    weights = torch.stack(
        [
            pairwise_weights(q[chosen], k[listed.clamp(min=0)], listed >= 0, weighting=attention.weighting)
            for q, k in zip(query, key, strict=True)
        ]
    ).mean(0)
    return listed.cpu(), weights.float().cpu()
