"""The table of backends, and the one function that runs them."""

import torch
from torch import Tensor

from kithkin.errors import BackendError, InputError
from kithkin.ops import attention_operator, blocked, native, reference, triton_backend
from kithkin.ops.backend import Problem
from kithkin.ops.grouping import PatchGroups
from kithkin.ops.library import constant_when_compiled

# In order of preference: the first that can serve is taken where none is asked for.
BACKENDS = {
    backend.name: backend
    for backend in (
        *map(attention_operator.register, (native.BACKEND, triton_backend.BACKEND, blocked.BACKEND)),
        reference.BACKEND,
    )
}


def available_backends(device: str | torch.device = "cpu", dtype: torch.dtype = torch.float32) -> dict[str, str | None]:
    """Which backends can serve tensors of this device and dtype.

    Returns:
        name -> None where it can be used, else the reason in one sentence; in order of preference. ``triton`` is taken
        unasked only where ``trusted`` finds it right; where it was found wrong, the reason says so.
    """
    place = torch.device(device)
    return {
        name: backend.why_not(place.type, dtype, None) or (backend.fault and backend.fault(place, dtype))
        for name, backend in BACKENDS.items()
    }


def knn_local_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    groups: PatchGroups,
    *,
    weighting: str = "softmax",
    n_heads: int = 1,
    backend: str | None = None,
) -> Tensor:
    """k-NN local attention (Eqs. 8-10): each patch attends, pixel to pixel, to the patches of its group.

    Args:
        query, key, value: (B, N, P, C), one floating dtype, one device.
        groups: who meets whom, from ``group_patches`` or ``exact_groups``.
        weighting: ``"softmax"`` (stable, default) or ``"paper"`` (Eq. 10 as printed), normalised jointly over the
            candidates of all rounds; a candidate found in several rounds counts as often as it was found.
        n_heads: channels are split into this many heads, each with its own attention and pair weights.
        backend: a name from ``available_backends``; None takes the first that can serve.

    Returns:
        (B, N, P, C), dtype and device of ``value`` (under autocast float32, the dtype of its sums), patches in their
        original order. Differentiable once in query, key and value; any number of times by the backend ``reference``.

    Raises:
        InputError: shapes, dtypes, heads or weighting don't fit.
        BackendError: the named backend is unknown or can't serve this call.
    """
    _check(query, key, value, groups, weighting, n_heads)
    problem = Problem(
        query.shape[2], query.shape[3], n_heads, groups.k, groups.candidates_per_patch, groups.neighbors is not None
    )
    chosen = _choose(backend, query.device, query.dtype, problem)
    if plain := BACKENDS[chosen].plain:
        out = plain(query, key, value, groups, weighting, n_heads)
        return out.float() if torch.is_autocast_enabled(out.device.type) and out.dtype != torch.float64 else out
    return attention_operator.attention(query, key, value, groups, weighting, n_heads, chosen)


def _check(query: Tensor, key: Tensor, value: Tensor, groups: PatchGroups, weighting: str, n_heads: int) -> None:
    shapes = [tuple(x.shape) for x in (query, key, value)]
    if query.ndim != 4 or any(shape != shapes[0] for shape in shapes):  # sizes may be symbols, which no set takes
        raise InputError(
            "knn_local_attention: expected query, key and value of one shape (B, N, P, C), "
            f"got {', '.join(map(str, shapes))}"
        )
    if len({(x.dtype, x.device) for x in (query, key, value)}) > 1:
        kinds = ", ".join(f"{x.dtype} on {x.device}" for x in (query, key, value))
        raise InputError(f"knn_local_attention: query, key and value must share dtype and device, got {kinds}")
    batch, count, _, channels = query.shape
    if (groups.order.shape[0], groups.n_patches) != (batch, count) or groups.order.device != query.device:
        raise InputError(
            f"knn_local_attention: the groups are of {groups.order.shape[0]} images of {groups.n_patches} patches on "
            f"{groups.order.device}, the tensors of {batch} of {count} on {query.device}"
        )
    if weighting not in reference.WEIGHTINGS:
        raise InputError(
            f"knn_local_attention: weighting must be one of {', '.join(reference.WEIGHTINGS)}, got {weighting!r}"
        )
    if n_heads < 1 or channels % n_heads:
        raise InputError(f"knn_local_attention: {channels} channels can't be split into {n_heads} heads")


@constant_when_compiled
def _choose(name: str | None, device: torch.device, dtype: torch.dtype, problem: Problem) -> str:
    reasons = {}
    for candidate in BACKENDS.values():
        if name not in (None, candidate.name):
            continue
        reason = candidate.why_not(device.type, dtype, problem)
        if reason is None and name is None and candidate.why_unasked:
            reason = candidate.why_unasked(device, dtype)
        if reason is None:
            return candidate.name
        reasons[candidate.name] = reason
    if not reasons:
        raise BackendError(f"knn_local_attention: no backend is called {name!r}; there are {', '.join(BACKENDS)}")
    raise BackendError("knn_local_attention: " + "; ".join(reasons.values()))
