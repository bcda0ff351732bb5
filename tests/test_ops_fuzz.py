"""The kernels under arguments that nobody means: each is computed or refused, and none reads or writes elsewhere.

``tests/sanitize.sh`` runs these under AddressSanitizer and UndefinedBehaviorSanitizer.
"""

import pytest
import torch
from hypothesis import HealthCheck, given, settings, strategies as st

from kithkin.errors import InputError
from kithkin.ops import (
    PatchGroups,
    available_backends,
    feed_forward,
    gelu_depthwise_gelu,
    knn_local_attention,
    native,
)

pytestmark = pytest.mark.skipif(available_backends()["native"] is not None, reason=str(available_backends()["native"]))
fuzzed = settings(derandomize=True, deadline=None, max_examples=150, suppress_health_check=list(HealthCheck))
BACKENDS = ("native", "blocked")


def numbers(shape, seed=0, dtype=torch.float32):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


# What is refused


@pytest.mark.parametrize("wrong", [-(2**40), -1, 9, 2**40, 4])
def test_a_place_in_order_that_is_no_patch_or_named_twice_is_refused(wrong):
    order = torch.arange(9).repeat(2, 3, 1)
    order[1, 2, 5] = wrong
    with pytest.raises(InputError, match="patches 0 to 8 once"):
        PatchGroups(order, 3)


@pytest.mark.parametrize("wrong", [-(2**40), -2, 9, 2**40])
def test_a_neighbor_that_is_no_patch_is_refused(wrong):
    neighbors = torch.zeros(1, 9, 2, dtype=torch.int64)
    neighbors[0, 3, 1] = wrong
    with pytest.raises(InputError, match="from 0 to 8, or -1"):
        PatchGroups(torch.arange(9).view(1, 1, 9), 1, False, neighbors)


def test_a_patch_without_any_neighbor_and_groups_without_a_round_are_refused():
    neighbors = torch.zeros(1, 9, 2, dtype=torch.int64)
    neighbors[0, 3] = -1
    with pytest.raises(InputError, match="one of each patch at least"):
        PatchGroups(torch.arange(9).view(1, 1, 9), 1, False, neighbors)
    with pytest.raises(InputError, match="h ≥ 1"):
        PatchGroups(torch.zeros(1, 0, 9, dtype=torch.int64), 3)


@pytest.mark.parametrize("shape", [(1, 8, 2), (2, 9, 2), (1, 9, 0), (9, 2)])
def test_neighbors_of_another_shape_are_refused(shape):
    with pytest.raises(InputError, match=r"neighbors \(B, N, K\)"):
        PatchGroups(torch.arange(9).view(1, 1, 9), 1, False, torch.zeros(shape, dtype=torch.int64))


def test_groups_that_were_changed_since_are_refused_by_the_kernel():
    x, groups = numbers((1, 9, 4, 8)), PatchGroups(torch.arange(9).view(1, 1, 9), 3)
    groups.order[0, 0, 4] = 2**40
    for backend in BACKENDS:
        with pytest.raises(InputError, match="patches 0 to 8 once"):
            knn_local_attention(x, x, x, groups, backend=backend)


@pytest.mark.parametrize("shape", [(1, 4, 0, 24), (0, 4, 4, 24), (1, 0, 4, 24)])
def test_maps_without_pixels_stay_empty(shape):
    x = torch.zeros(shape, requires_grad=True)
    scale = numbers((24,)).requires_grad_()
    parameters = [scale, numbers((24,)), numbers((48, 24)), numbers((48,)), numbers((48, 1, 3, 3)), numbers((48,))]
    parameters += [numbers((24, 48)), numbers((24,))]
    for out in (
        feed_forward(x, parameters),
        gelu_depthwise_gelu(x, scale.view(24, 1, 1, 1).expand(24, 1, 3, 3), numbers((24,))),
    ):
        assert out.shape == shape
        gradients = torch.autograd.grad(out.sum(), [x, scale])
        assert gradients[0].shape == shape
        assert not gradients[1].any()


# The operators, as anyone can call them through torch.ops

axis = st.integers(0, 9)
wrong_one = st.one_of(st.none(), st.integers(0, 8))


def reshaped(tensors, which, how):
    """The tensors, one of them of another shape or dtype."""
    if which is None or which >= len(tensors):
        return tensors, False
    x = tensors[which]
    other = [x[..., :-1], x[:-1], x.double(), x.unsqueeze(0), x.flatten(), torch.cat([x, x])][how]
    return [*tensors[:which], other, *tensors[which + 1 :]], other.shape != x.shape or other.dtype != x.dtype


def computed_or_refused(call, wrong):
    """What an operator gives; None where it refuses what is wrong."""
    try:
        found = call()
    except InputError:
        assert wrong
        return None
    assert not wrong
    return found


@fuzzed
@given(
    shape=st.tuples(st.integers(0, 2), st.integers(0, 13), st.integers(0, 5), st.sampled_from([0, 1, 6, 16, 20])),
    k=st.sampled_from([1, 2, 3, 5, 13, 2**20]),
    look_back=st.booleans(),
    rounds=st.integers(0, 3),
    heads=st.sampled_from([-1, 0, 1, 2, 3]),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
    paper=st.booleans(),
    which=wrong_one,
    how=st.integers(0, 5),
)
def test_attention(shape, k, look_back, rounds, heads, dtype, paper, which, how):
    batch, count, _, channels = shape
    given, wrong = reshaped([numbers(shape, i, dtype) for i in range(3)], which, how)
    rows = [[torch.randperm(count, generator=torch.Generator().manual_seed(i)) for i in range(rounds)]] * batch
    order = torch.tensor([[row.tolist() for row in one] for one in rows], dtype=torch.int64).view(batch, rounds, count)
    fits = not look_back or -(-count // k) >= 3
    # Of tensors without numbers nothing is looked at any further.
    wrong = (wrong or heads < 1 or channels % heads != 0 or not fits or rounds == 0) and given[0].numel() > 0

    def call():
        return torch.ops.kithkin.knn_attention(*given, order, None, k, look_back, paper, heads, "native")

    if given[0].numel() == 0 and heads < 0:
        return
    found = computed_or_refused(call, wrong)
    if found is not None and found[0].numel():
        assert found[0].isfinite().all()
        grads = [*given, *found]
        back = torch.ops.kithkin.knn_attention_backward(
            numbers(shape, 7, dtype), *grads, order, None, k, look_back, paper, heads, "native"
        )
        assert all(x.isfinite().all() for x in back)


@fuzzed
@given(
    shape=st.tuples(st.integers(0, 2), axis, axis, st.sampled_from([0, 1, 16, 24, 33])),
    wide=st.sampled_from([0, 1, 16, 40]),
    which=wrong_one,
    how=st.integers(0, 5),
)
def test_feed_forward(shape, wide, which, how):
    c = shape[3]
    right = [(c,), (c,), (wide, c), (wide,), (wide, 1, 3, 3), (wide,), (c, wide), (c,)]
    given, wrong = reshaped([numbers(shape), *map(numbers, right)], which, how)
    wrong = (wrong or min(c, wide) < native.MOST_LANES) and given[0].numel() > 0
    x, *parameters = given
    found = computed_or_refused(lambda: torch.ops.kithkin.feed_forward(x, parameters, 1e-5), wrong)
    if found is not None:
        assert found[0].isfinite().all()
        torch.ops.kithkin.feed_forward_backward(numbers(shape, 3), x, parameters, found[1], 1e-5)


@fuzzed
@given(name=st.sampled_from(["hidden", "grad", "d_x", "d_parameters"]), how=st.integers(0, 5))
def test_what_the_backward_kernel_writes_is_looked_at_too(name, how):
    shapes = [(1, 3, 4, 16), (16,), (16,), (20, 16), (20,), (20, 1, 3, 3), (20,), (16, 20), (16,)]
    given = tuple(numbers(shape) for shape in shapes)
    right = {"hidden": torch.zeros(1, 3, 4, 20), "grad": torch.zeros(shapes[0]), "d_x": torch.zeros(shapes[0])}
    right["d_parameters"] = torch.zeros(sum(x.numel() for x in given[1:]))
    found, wrong = reshaped(list(right.values()), list(right).index(name), how)
    call = "kithkin_feed_forward_backward"
    computed_or_refused(lambda: native.feed_forward(call, given, 1e-5, **dict(zip(right, found, strict=True))), wrong)


@fuzzed
@given(
    shape=st.tuples(st.integers(0, 2), axis, axis, st.sampled_from([0, 1, 16, 20])),
    which=st.one_of(st.none(), st.integers(0, 15)),
    how=st.integers(0, 5),
)
def test_gated_block(shape, which, how):
    c = shape[3]
    weights = [(c,), (2 * c, c), (2 * c, 1, 3, 3), (c, c), (c,), (2 * c, c), (c, c)]
    right = [numbers(shape), *(numbers(part) for weight in weights for part in (weight, weight[:1])), numbers(shape, 1)]
    given, wrong = reshaped(right, which, how)
    x, *parameters, grad = given
    wrong = (wrong or c < native.MOST_LANES) and x.numel() > 0
    forward_wrong = wrong and (which != 15 or c < native.MOST_LANES)
    found = computed_or_refused(lambda: torch.ops.kithkin.gated_block(x, parameters, 1e-5), forward_wrong)
    assert found is None or found.shape == x.shape
    computed_or_refused(lambda: torch.ops.kithkin.gated_block_backward(grad, x, parameters, 1e-5), wrong)
