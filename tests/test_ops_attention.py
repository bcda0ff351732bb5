"""k-NN local attention, Eqs. (8)-(10): every backend against the oracle, forward and gradients."""

from dataclasses import dataclass
from functools import cache

import numpy as np
import pytest
import torch

import kithkin.ops
from kithkin.errors import BackendError, InputError
from kithkin.ops import (
    PatchGroups,
    aggregate,
    available_backends,
    exact_groups,
    group_patches,
    local_attention,
    pairwise_attention,
    pairwise_weights,
)

import oracle

BACKENDS = [name for name in available_backends() if name != "triton"]  # slow in its interpreter: see test_triton.py
FAST = [name for name in BACKENDS if name != "reference"]
WEIGHTINGS = ["softmax", "paper"]
DTYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16]
NAMES = ["output", "gradient of query", "gradient of key", "gradient of value"]


def knn_local_attention(*args, backend=None, **options):
    """The operator; where a backend gives a reason why it can't serve the problem, the test is skipped with it."""
    try:
        return kithkin.ops.knn_local_attention(*args, backend=backend, **options)
    except BackendError as refusal:
        if backend not in BACKENDS:
            raise
        pytest.skip(str(refusal))


each_backend = pytest.mark.parametrize("backend", BACKENDS)
each_fast_backend = pytest.mark.parametrize("backend", FAST)
each_weighting = pytest.mark.parametrize("weighting", WEIGHTINGS)
each_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: str(dtype).removeprefix("torch."))


@dataclass(frozen=True)
class Problem:
    """Random patches in random groups, so that nothing here hangs on how groups are found."""

    about: str
    batch: int
    n: int
    pixels: int
    channels: int
    k: int
    rounds: int = 1
    look_back: bool = False
    n_heads: int = 1
    exact: int = 0  # the length of the neighbour lists, 0 for chunks
    gain: float = 1.0

    def groups(self):
        rng = np.random.default_rng(self.n)
        if self.exact:
            rows = [[rng.permutation(self.n)[: self.exact] for _ in range(self.n)] for _ in range(self.batch)]
            order = torch.arange(self.n).expand(self.batch, 1, self.n)
            return PatchGroups(order, k=1, look_back=False, neighbors=torch.from_numpy(np.array(rows)))
        rows = [[rng.permutation(self.n) for _ in range(self.rounds)] for _ in range(self.batch)]
        return PatchGroups(torch.from_numpy(np.array(rows)), self.k, self.look_back)

    def neighbors(self):
        """By the oracle: one list of neighbourhoods an image."""
        groups = self.groups()
        if self.exact:
            return groups.neighbors.tolist()
        return [oracle.neighborhoods(orders, self.k, self.look_back) for orders in groups.order.tolist()]

    def tensors(self, weighting, dtype):
        """Query, key, value and the gradient that comes from above."""
        rng = np.random.default_rng(self.n + 1)
        shape = (self.batch, self.n, self.pixels, self.channels)
        query, key, value, upstream = (rng.standard_normal(shape) for _ in range(4))
        if weighting == "paper":  # all inner products positive: the denominator of Eq. (10) stays far from zero
            query, key = abs(query) + 0.5, abs(key) + 0.5
        arrays = self.gain * query, self.gain * key, value, upstream
        return [torch.from_numpy(x).to(dtype) for x in arrays]


PROBLEMS = [
    Problem("one patch", 1, 1, 4, 3, k=1),
    Problem("k = 1", 2, 5, 4, 3, k=1),
    Problem("one pixel, one channel", 1, 3, 1, 1, k=1),
    Problem("dense, N < 2k", 2, 5, 4, 3, k=5),
    Problem("dense, N = 2k", 1, 8, 4, 4, k=8),
    Problem("N = 2k + 1", 1, 9, 4, 3, k=4, rounds=2, look_back=True),
    Problem("k = 2, last chunk of 1", 2, 5, 4, 2, k=2, rounds=3, look_back=True),
    Problem("full chunks", 2, 12, 4, 4, k=4, rounds=2, look_back=True),
    Problem("N % k = 1, heads", 2, 13, 4, 6, k=4, rounds=3, look_back=True, n_heads=2),
    Problem("a head a channel", 1, 10, 4, 3, k=3, rounds=2, look_back=True, n_heads=3),
    Problem("without look-back", 2, 10, 4, 5, k=4, rounds=2),
    Problem("one pixel a patch", 2, 11, 1, 5, k=3, rounds=2, look_back=True),
    Problem("odd sides and channels", 1, 9, 9, 7, k=4, look_back=True),
    Problem("k = 1 with look-back", 1, 5, 4, 3, k=1, rounds=2, look_back=True),
    Problem("the paper's r, k and h", 1, 10, 16, 8, k=4, rounds=4, look_back=True),
    Problem("large scores", 1, 9, 9, 4, k=4, look_back=True, gain=4.0),
    Problem("exact neighbours", 2, 7, 4, 4, k=1, exact=3),
    Problem("exact neighbours, heads", 1, 6, 4, 4, k=1, exact=6, n_heads=2),
]
each_problem = pytest.mark.parametrize("problem", PROBLEMS, ids=lambda problem: problem.about)
by_name = {problem.about: problem for problem in PROBLEMS}


@cache
def truth(problem, weighting, dtype):
    """Output and gradients in float64, of the very numbers that the backends get."""
    tensors = [x.double().numpy() for x in problem.tensors(weighting, dtype)]
    results = []
    for *qkv, upstream, neighbors in zip(*tensors, problem.neighbors(), strict=True):
        output = oracle.knn_local_attention(*qkv, neighbors, weighting, problem.n_heads)
        grads = oracle.knn_local_attention_grad(*qkv, neighbors, upstream, weighting, problem.n_heads)
        results.append([output, *grads])
    return [np.stack(parts) for parts in zip(*results, strict=True)]


def solve(backend, tensors, groups, weighting="softmax", n_heads=1):
    """Output and gradients, as they come."""
    *qkv, upstream = tensors
    qkv = [x.detach().requires_grad_() for x in qkv]
    output = knn_local_attention(*qkv, groups, weighting=weighting, n_heads=n_heads, backend=backend)
    return [output.detach(), *torch.autograd.grad(output, qkv, upstream)]


@cache
def solution(backend, problem, weighting, dtype):
    return solve(backend, problem.tensors(weighting, dtype), problem.groups(), weighting, problem.n_heads)


def errors(results, expected):
    """The largest error of output and of each gradient, in units of the largest output and the largest gradient."""
    scales = [abs(expected[0]).max()] + [max(abs(x).max() for x in expected[1:])] * 3
    differences = (abs(a.double().numpy() - b).max() for a, b in zip(results, expected, strict=True))
    return [float(d / s) for d, s in zip(differences, scales, strict=True)]


def assert_parity(results, expected, yardstick, floor):
    """No error above twice the reference's. The floor is for problems in which the reference has next to none."""
    for name, error, allowed in zip(NAMES, errors(results, expected), errors(yardstick, expected), strict=True):
        assert error <= 2 * allowed + floor, f"{name}: error {error:.2e}, the reference's {allowed:.2e}"


# The oracle itself


@each_weighting
def test_the_oracle_s_gradients_are_the_slopes_of_its_output(weighting):
    problem = by_name["k = 2, last chunk of 1"]
    *qkv, upstream = (x[0].numpy() for x in problem.tensors(weighting, torch.float64))
    near = problem.neighbors()[0]
    rng = np.random.default_rng(0)
    for i, grad in enumerate(oracle.knn_local_attention_grad(*qkv, near, upstream, weighting)):
        direction = rng.standard_normal(grad.shape)
        ends = []
        for step in (1e-5, -1e-5):
            moved = [x + step * direction if i == j else x for j, x in enumerate(qkv)]
            ends.append(np.sum(upstream * oracle.knn_local_attention(*moved, near, weighting)))
        assert (ends[0] - ends[1]) / 2e-5 == pytest.approx(np.sum(grad * direction), rel=1e-6)


# Eqs. (8), (9) and (10), one by one


def test_pairwise_attention_is_the_oracle_s():
    query, key, value, _ = (x.numpy() for x in by_name["full chunks"].tensors("softmax", torch.float64))
    result = pairwise_attention(*(torch.from_numpy(x) for x in (query, key, value)))
    for index in np.ndindex(*query.shape[:2]):
        expected = oracle.pairwise_attention(query[index], key[index], value[index])
        np.testing.assert_allclose(result[index].numpy(), expected, rtol=1e-12, atol=1e-12)


def test_pairwise_attention_broadcasts_one_query_over_many_keys():
    query, key, value, _ = by_name["full chunks"].tensors("softmax", torch.float64)
    together = pairwise_attention(query[:, :1], key, value)
    for j in range(key.shape[1]):
        torch.testing.assert_close(together[:, j], pairwise_attention(query[:, 0], key[:, j], value[:, j]))


@each_weighting
def test_pairwise_weights_are_the_oracle_s(weighting):
    query, key, _, _ = by_name["full chunks"].tensors(weighting, torch.float64)
    valid = torch.tensor([True, True, False, True, False, True, True, True, True, True, True, False])
    weights = pairwise_weights(query[:, 0], key, valid.expand(2, -1), weighting=weighting)
    for image in range(2):
        expected = oracle.pairwise_weights(query[image, 0].numpy(), key[image, valid].numpy(), weighting)
        np.testing.assert_allclose(weights[image, valid].numpy(), expected, rtol=1e-12)
        assert weights[image, ~valid].tolist() == [0.0] * 3


@each_weighting
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_pairwise_weights_are_computed_in_float32(weighting, dtype):
    query, key, _, _ = by_name["full chunks"].tensors(weighting, dtype)
    valid = torch.ones(2, 12, dtype=torch.bool)
    weights = pairwise_weights(query[:, 0], key, valid, weighting=weighting)
    assert weights.dtype == torch.float32
    assert torch.equal(weights, pairwise_weights(query[:, 0].float(), key.float(), valid, weighting=weighting))


def test_aggregate_is_the_oracle_s():
    outputs = torch.randn(3, 5, 4, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    weights = torch.rand(3, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    expected = [oracle.aggregate(w, o) for w, o in zip(weights.numpy(), outputs.numpy(), strict=True)]
    np.testing.assert_allclose(aggregate(weights, outputs).numpy(), np.stack(expected), rtol=1e-12)


# Backends against the oracle

# float32 and float64: a few dozen roundings. Half precisions: the logits themselves are rounded to the dtype, and
# an error of eps·|logit| in the exponent becomes one in the weights.
# Both grow with the square of the inputs' gain.
REFERENCE_TOLERANCE = {torch.float64: 1e-13, torch.float32: 1e-5, torch.float16: 1e-2, torch.bfloat16: 8e-2}

# What a backend may add where the reference has no error at all: a softmax over one pixel is exactly 1, for one.
# Eight roundings of the dtype that sums. In the half precisions also three of their own, half an eps each: of a pair's
# weighted softmax, of the output that its gradient starts from, and of the result.
FLOOR = {
    torch.float64: 8 * torch.finfo(torch.float64).eps,
    torch.float32: 8 * torch.finfo(torch.float32).eps,
    torch.float16: 1.5 * torch.finfo(torch.float16).eps,
    torch.bfloat16: 1.5 * torch.finfo(torch.bfloat16).eps,
}


@each_dtype
@each_weighting
@each_problem
def test_the_reference_is_the_oracle_s_up_to_rounding(problem, weighting, dtype):
    found = solution("reference", problem, weighting, dtype)
    assert all(x.dtype == dtype for x in found)
    for name, error in zip(NAMES, errors(found, truth(problem, weighting, dtype)), strict=True):
        assert error <= REFERENCE_TOLERANCE[dtype] * problem.gain**2, f"{name}: error {error:.2e}"


@each_fast_backend
@each_dtype
@each_weighting
@each_problem
def test_no_backend_errs_more_than_twice_the_reference(backend, problem, weighting, dtype):
    reason = available_backends("cpu", dtype)[backend]
    if reason is not None:
        pytest.skip(reason)
    found = solution(backend, problem, weighting, dtype)
    assert all(x.dtype == dtype and x.shape == found[0].shape for x in found)
    yardstick = solution("reference", problem, weighting, dtype)
    assert_parity(found, truth(problem, weighting, dtype), yardstick, FLOOR[dtype])


@each_fast_backend
@each_weighting
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=["float32", "half", "bfloat16"])
def test_many_numbers_together_err_no_more_than_twice_the_reference(backend, weighting, dtype):
    """The mean square over a larger problem, where luck evens out: no floor."""
    problem = Problem("larger", 2, 61, 16, 16, k=4, rounds=4, look_back=True, n_heads=2)
    tensors = [x.double() for x in problem.tensors(weighting, dtype)]
    exact = solve("reference", tensors, problem.groups(), weighting, 2)
    allowed, found = (solution(name, problem, weighting, dtype) for name in ("reference", backend))
    for name, a, b, c in zip(NAMES, found, allowed, exact, strict=True):
        assert (a - c).square().mean() <= 4 * (b - c).square().mean(), name


@each_fast_backend
@each_weighting
@pytest.mark.parametrize("n_heads", [1, 2])
def test_a_problem_of_many_blocks_agrees_with_the_reference(backend, weighting, n_heads):
    problem = Problem("many blocks", 2, 301, 16, 4, k=4, rounds=2, look_back=True, n_heads=n_heads)
    expected = solution("reference", problem, weighting, torch.float64)
    for found, wanted in zip(solution(backend, problem, weighting, torch.float64), expected, strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-9)


@each_backend
@each_weighting
@pytest.mark.parametrize("about", ["k = 2, last chunk of 1", "a head a channel", "exact neighbours"])
def test_gradients_match_finite_differences(backend, weighting, about):
    if available_backends("cpu", torch.float64)[backend] is not None:
        pytest.skip("no float64")
    problem = by_name[about]
    inputs = [x[:1, :, :2].requires_grad_() for x in problem.tensors(weighting, torch.float64)[:3]]
    whole = problem.groups()
    lists = None if whole.neighbors is None else whole.neighbors[:1]
    groups = PatchGroups(whole.order[:1], whole.k, whole.look_back, lists)
    kinds = {"weighting": weighting, "n_heads": problem.n_heads, "backend": backend}
    assert torch.autograd.gradcheck(lambda *qkv: knn_local_attention(*qkv, groups, **kinds), inputs)


@each_backend
@pytest.mark.parametrize("wanted", [0, 1, 2], ids=["query", "key", "value"])
def test_one_gradient_may_be_asked_for_alone(backend, wanted):
    problem = by_name["N = 2k + 1"]
    *qkv, upstream = problem.tensors("softmax", torch.float32)
    qkv[wanted].requires_grad_()
    knn_local_attention(*qkv, problem.groups(), backend=backend).backward(upstream)
    expected = solution(backend, problem, "softmax", torch.float32)[1 + wanted]
    torch.testing.assert_close(qkv[wanted].grad, expected)


# Layouts and memory


def spread(x):
    """The same numbers at other strides."""
    wider = torch.cat([x, x], -1)
    wider[..., 1::2] = -7.0
    wider[..., ::2] = x
    return wider[..., ::2]


@each_backend
@each_weighting
@pytest.mark.parametrize(
    "layout",
    [spread, lambda x: x.permute(3, 1, 0, 2).contiguous().permute(2, 1, 3, 0), lambda x: x.mT.contiguous().mT],
    ids=["every second number", "channels first", "pixels last"],
)
def test_strides_do_not_matter(backend, weighting, layout):
    problem = by_name["N % k = 1, heads"]
    tensors = problem.tensors(weighting, torch.float32)
    strided = [layout(x) for x in tensors]
    assert not any(x.is_contiguous() for x in strided)
    found = solve(backend, strided, problem.groups(), weighting, 2)
    for a, b in zip(found, solution(backend, problem, weighting, torch.float32), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


@each_backend
def test_a_gradient_of_stride_zero_is_read_right(backend):
    problem = by_name["N = 2k + 1"]
    *qkv, _ = problem.tensors("softmax", torch.float32)
    ones = torch.ones(()).expand(qkv[0].shape)
    for a, b in zip(
        solve(backend, [*qkv, ones], problem.groups()),
        solve(backend, [*qkv, ones.contiguous()], problem.groups()),
        strict=True,
    ):
        torch.testing.assert_close(a, b)


@each_backend
def test_inputs_are_left_as_they_were(backend):
    problem = by_name["N % k = 1, heads"]
    tensors, untouched = (problem.tensors("softmax", torch.float32) for _ in range(2))
    groups, order = problem.groups(), problem.groups().order
    solve(backend, tensors, groups, n_heads=2)
    assert all(torch.equal(a, b) for a, b in zip(tensors, untouched, strict=True))
    assert torch.equal(groups.order, order)


def poisoned(make):
    def make_and_poison(*args, **kwargs):
        made = make(*args, **kwargs)
        return made.fill_(float("nan")) if made.is_floating_point() else made

    return make_and_poison


@each_backend
@each_weighting
@pytest.mark.parametrize("about", ["one patch", "N % k = 1, heads", "without look-back", "exact neighbours"])
def test_no_memory_is_read_before_it_is_written(backend, weighting, about, monkeypatch):
    problem = by_name[about]
    tensors, groups = problem.tensors(weighting, torch.float32), problem.groups()
    expected = solution(backend, problem, weighting, torch.float32)
    for home, name in [
        (torch, "empty"),
        (torch, "empty_like"),
        (torch, "empty_strided"),
        (torch.Tensor, "new_empty"),
        (torch.Tensor, "new_empty_strided"),
    ]:
        monkeypatch.setattr(home, name, poisoned(getattr(home, name)))
    assert torch.empty(3).isnan().all()
    found = solve(backend, tensors, groups, weighting, problem.n_heads)
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


# What belongs together, and what does not


@each_backend
@each_weighting
def test_permuting_the_patches_permutes_the_output(backend, weighting):
    problem = by_name["N % k = 1, heads"]
    tensors, groups = problem.tensors(weighting, torch.float64), problem.groups()
    shuffled = torch.randperm(13, generator=torch.Generator().manual_seed(0))
    moved = PatchGroups(shuffled.argsort()[groups.order], groups.k, groups.look_back)
    found = solve(backend, [x[:, shuffled] for x in tensors], moved, weighting, 2)
    for a, b in zip(found, solve(backend, tensors, groups, weighting, 2), strict=True):
        torch.testing.assert_close(a, b[:, shuffled])


@each_backend
@each_weighting
def test_neither_the_order_in_a_chunk_nor_that_of_the_rounds_matters(backend, weighting):
    problem = by_name["full chunks"]
    tensors, groups = problem.tensors(weighting, torch.float64), problem.groups()
    inside = groups.order.unflatten(-1, (3, 4)).flip(-1).flatten(2)
    found = solve(backend, tensors, PatchGroups(inside.flip(1), 4, True), weighting)
    for a, b in zip(found, solve(backend, tensors, groups, weighting), strict=True):
        torch.testing.assert_close(a, b)


@each_backend
@each_weighting
def test_identical_patches_give_local_attention(backend, weighting):
    problem = by_name["N % k = 1, heads"]
    query, key, value, _ = (x[:, :1].expand_as(x) for x in problem.tensors(weighting, torch.float64))
    found = knn_local_attention(query, key, value, problem.groups(), weighting=weighting, backend=backend)
    torch.testing.assert_close(found, local_attention(query, key, value))


@each_backend
@each_weighting
@pytest.mark.parametrize("n", [1, 6])
def test_k_1_gives_local_attention(backend, weighting, n):
    problem = Problem("k = 1", 2, n, 4, 3, k=1)
    query, key, value, _ = problem.tensors(weighting, torch.float64)
    found = knn_local_attention(query, key, value, group_patches(query, k=1), weighting=weighting, backend=backend)
    torch.testing.assert_close(found, local_attention(query, key, value))


@each_backend
@each_weighting
@each_problem
def test_the_weights_of_a_patch_sum_to_one(backend, weighting, problem):
    query, key, value, _ = problem.tensors(weighting, torch.float32)
    found = knn_local_attention(
        query,
        key,
        torch.full_like(value, 0.75),
        problem.groups(),
        weighting=weighting,
        n_heads=problem.n_heads,
        backend=backend,
    )
    torch.testing.assert_close(found, torch.full_like(value, 0.75), rtol=1e-5, atol=0.0)


@each_backend
@each_weighting
def test_a_round_that_is_repeated_changes_nothing(backend, weighting):
    problem = by_name["N = 2k + 1"]
    tensors = problem.tensors(weighting, torch.float64)
    order = problem.groups().order[:, :1]
    found = solve(backend, tensors, PatchGroups(order.expand(-1, 3, -1), 4, True), weighting)
    for a, b in zip(found, solve(backend, tensors, PatchGroups(order, 4, True), weighting), strict=True):
        torch.testing.assert_close(a, b)


@each_backend
@each_weighting
def test_heads_are_attentions_of_their_own(backend, weighting):
    problem = by_name["N % k = 1, heads"]
    *qkv, _ = problem.tensors(weighting, torch.float64)
    kinds = {"weighting": weighting, "backend": backend}
    together = knn_local_attention(*qkv, problem.groups(), n_heads=2, **kinds)
    parts_of_heads = zip(*(x.split(3, -1) for x in qkv), strict=True)
    halves = [knn_local_attention(*parts, problem.groups(), **kinds) for parts in parts_of_heads]
    torch.testing.assert_close(together, torch.cat(halves, -1))


@each_backend
@each_weighting
def test_another_image_of_the_batch_has_no_influence_even_if_it_is_nan(backend, weighting):
    problem = by_name["N % k = 1, heads"]
    tensors, groups = problem.tensors(weighting, torch.float32), problem.groups()
    expected = solve(backend, tensors, groups, weighting, 2)
    for other in (0, 1):
        broken = [x.clone() for x in tensors]
        for x in broken:
            x[other] = float("nan")
        found = solve(backend, broken, groups, weighting, 2)
        assert all(torch.equal(a[1 - other], b[1 - other]) for a, b in zip(found, expected, strict=True))


@each_backend
@each_weighting
@pytest.mark.parametrize("about", ["N = 2k + 1", "without look-back", "k = 2, last chunk of 1", "exact neighbours"])
def test_a_patch_touches_only_those_that_it_is_a_candidate_of(backend, weighting, about):
    """Also the masked places, which point at some patch or other: that patch must not leak through them."""
    problem = by_name[about]
    *qkv, _ = problem.tensors(weighting, torch.float32)
    groups, neighbors = problem.groups(), problem.neighbors()[0]
    kinds = {"weighting": weighting, "backend": backend}
    expected = knn_local_attention(*qkv, groups, **kinds)
    for touched in range(problem.n):
        query, key, value = (x.clone() for x in qkv)
        key[0, touched] *= -3.0
        value[0, touched] = 1e30
        found = knn_local_attention(query, key, value, groups, **kinds)
        changed = (found[0] != expected[0]).flatten(1).any(-1).tolist()
        assert changed == [touched in near for near in neighbors]


@each_backend
@each_weighting
@pytest.mark.parametrize("about", ["N = 2k + 1", "without look-back", "k = 2, last chunk of 1", "exact neighbours"])
def test_a_patch_sends_gradients_only_to_its_candidates(backend, weighting, about):
    problem = by_name[about]
    *qkv, upstream = problem.tensors(weighting, torch.float32)
    neighbors = problem.neighbors()[0]
    for p in range(problem.n):
        alone = torch.zeros_like(upstream)
        alone[0, p] = upstream[0, p]
        _, of_query, of_key, of_value = solve(backend, [*qkv, alone], problem.groups(), weighting)
        reached = [x.abs().flatten(2).sum(-1).nonzero().tolist() for x in (of_query, of_key, of_value)]
        near = [[0, j] for j in sorted(set(neighbors[p]))]
        assert reached == [[[0, p]], near, near]


@each_fast_backend
@each_weighting
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize(
    "problem",
    [
        Problem("full chunks", 3, 100, 16, 16, k=4, rounds=4, look_back=True),
        Problem("N % k = 1, heads", 3, 141, 16, 12, k=4, rounds=2, look_back=True, n_heads=3),
        Problem("dense", 3, 7, 16, 16, k=7),
        Problem("k = 1", 3, 33, 16, 8, k=1),
        Problem("small and odd", 3, 11, 9, 5, k=3, rounds=3, look_back=True),
    ],
    ids=lambda problem: problem.about,
)
def test_an_image_gets_the_same_bits_in_every_batch(backend, problem, weighting, dtype):
    tensors, groups = problem.tensors(weighting, dtype), problem.groups()
    together = solve(backend, tensors, groups, weighting, problem.n_heads)
    for i in range(3):
        alone = PatchGroups(groups.order[i : i + 1], groups.k, groups.look_back)
        found = solve(backend, [x[i : i + 1] for x in tensors], alone, weighting, problem.n_heads)
        for name, a, b in zip(NAMES, found, together, strict=True):
            assert torch.equal(a, b[i : i + 1]), f"{name} of image {i}"


@each_backend
@each_weighting
def test_the_same_call_gives_the_same_bits(backend, weighting):
    problem = Problem("again", 2, 201, 16, 8, k=4, rounds=2, look_back=True)
    tensors, groups = problem.tensors(weighting, torch.float32), problem.groups()
    first, again = (solve(backend, tensors, groups, weighting) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(again, first, strict=True))


@pytest.fixture
def two_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@each_fast_backend
@each_weighting
def test_the_number_of_threads_does_not_change_a_bit(backend, weighting, two_threads):
    problem = Problem("again", 2, 201, 16, 8, k=4, rounds=2, look_back=True)
    tensors, groups = problem.tensors(weighting, torch.float32), problem.groups()
    with_two = solve(backend, tensors, groups, weighting)
    torch.set_num_threads(1)
    with_one = solve(backend, tensors, groups, weighting)
    assert all(torch.equal(a, b) for a, b in zip(with_one, with_two, strict=True))


# Extremes of number


@each_backend
@pytest.mark.parametrize("gain", [1e-20, 1e3, 1e6])
def test_softmax_weights_stay_finite_at_any_scale_of_the_inputs(backend, gain):
    problem = by_name["N % k = 1, heads"]
    query, key, value, upstream = problem.tensors("softmax", torch.float32)
    found = solve(backend, [gain * query, gain * key, value, upstream], problem.groups(), "softmax", 2)
    assert all(x.isfinite().all() for x in found)


@each_backend
@each_weighting
def test_inner_products_beyond_the_range_of_float16_do_no_harm(backend, weighting):
    """Each pixel's inner product fits into float16, their sum over a patch, near 110,000, does not."""
    problem = Problem("large", 1, 9, 16, 16, k=4, look_back=True, gain=16.0)
    *qkv, upstream = problem.tensors("paper", torch.float16)
    output, *grads = solve(backend, [*qkv, upstream], problem.groups(), weighting)
    assert output.abs().max() <= 1.01 * qkv[2].abs().max()  # positive weights that sum to 1
    assert all(x.isfinite().all() for x in grads)


@each_backend
@each_dtype
def test_scores_far_below_zero_keep_their_weights(backend, dtype):
    """All candidates equally unlike the query: uniform weights, however small each exponential is."""
    query, key = torch.full((1, 9, 4, 4), 16.0, dtype=dtype), torch.full((1, 9, 4, 4), -16.0, dtype=dtype)
    value = torch.arange(9.0).view(1, 9, 1, 1).expand(1, 9, 4, 4).to(dtype)
    groups = PatchGroups(torch.arange(9).view(1, 1, 9), 4, True)
    found = knn_local_attention(query, key, value, groups, backend=backend)[0, :, 0, 0].double()
    expected = [np.mean(near) for near in oracle.neighborhoods([range(9)], 4, True)]
    np.testing.assert_allclose(found.numpy(), expected, rtol=4 * torch.finfo(dtype).eps)


@each_backend
def test_paper_weights_are_literal_where_some_are_negative(backend):
    """A signed sum, as printed: weights below zero and above one, and no clamping."""
    query = torch.ones(1, 3, 1, 1, dtype=torch.float64)
    key = torch.tensor([3.0, -2.0, 1.0], dtype=torch.float64).view(1, 3, 1, 1)
    value = torch.tensor([1.0, 10.0, 100.0], dtype=torch.float64).view(1, 3, 1, 1)
    groups = PatchGroups(torch.arange(3).view(1, 1, 3), 3, False)
    found = knn_local_attention(query, key, value, groups, weighting="paper", backend=backend)
    torch.testing.assert_close(found.flatten(), torch.full((3,), (3 * 1 - 2 * 10 + 1 * 100) / 2.0, dtype=torch.float64))


@each_fast_backend
@each_weighting
def test_autocast_costs_no_more_than_twice_what_it_costs_the_reference(backend, weighting):
    problem = by_name["the paper's r, k and h"]
    tensors, groups = problem.tensors(weighting, torch.float32), problem.groups()
    found = []
    for name in (backend, "reference"):
        *qkv, upstream = (x.clone() for x in tensors)
        for x in qkv:
            x.requires_grad_()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            output = knn_local_attention(*qkv, groups, weighting=weighting, backend=name)
        grads = torch.autograd.grad(output, qkv, upstream.to(output.dtype))
        found.append([output.detach(), *grads])
    assert_parity(found[0], truth(problem, weighting, torch.float32), found[1], 1e-6)


# Other groups than random ones


@each_backend
@each_weighting
def test_hashed_groups_and_their_attention_are_the_oracle_s_from_end_to_end(backend, weighting):
    problem = Problem("end to end", 2, 30, 4, 3, k=4)
    query, key, value, _ = problem.tensors(weighting, torch.float64)
    rotations = torch.randn(3, 12, 64, generator=torch.Generator().manual_seed(0))
    groups = group_patches(value, k=4, n_hashes=3, rotations=rotations)
    found = knn_local_attention(query, key, value, groups, weighting=weighting, backend=backend)
    n_columns = oracle.default_n_buckets(30, 4) // 2
    for q, k, v, output in zip(query.numpy(), key.numpy(), value.numpy(), found.numpy(), strict=True):
        hashes = [oracle.lsh_hash(v.reshape(30, 12), rotation[:, :n_columns].numpy()) for rotation in rotations]
        near = oracle.neighborhoods([oracle.sort_by_hash(one) for one in hashes], 4, True)
        np.testing.assert_allclose(output, oracle.knn_local_attention(q, k, v, near, weighting), rtol=1e-10, atol=1e-10)


@each_backend
@each_weighting
def test_exact_groups_and_their_attention_are_the_oracle_s_from_end_to_end(backend, weighting):
    query, key, value, _ = Problem("end to end", 2, 12, 4, 3, k=4).tensors(weighting, torch.float64)
    found = knn_local_attention(query, key, value, exact_groups(value, k=3), weighting=weighting, backend=backend)
    for q, k, v, output in zip(query.numpy(), key.numpy(), value.numpy(), found.numpy(), strict=True):
        near = [sorted(row) for row in oracle.exact_neighborhoods(v, 3)[0]]
        np.testing.assert_allclose(output, oracle.knn_local_attention(q, k, v, near, weighting), rtol=1e-10, atol=1e-10)


@each_backend
@each_weighting
def test_all_exact_neighbors_are_the_dense_groups(backend, weighting):
    *qkv, _ = Problem("dense", 2, 7, 4, 3, k=7).tensors(weighting, torch.float64)
    kinds = {"weighting": weighting, "backend": backend}
    exact = knn_local_attention(*qkv, exact_groups(qkv[2], k=7), **kinds)
    torch.testing.assert_close(exact, knn_local_attention(*qkv, group_patches(qkv[2], k=4), **kinds))


# The choice of a backend, and refusals


def test_no_backend_named_means_the_first_that_can_serve():
    problem = by_name["N = 2k + 1"]
    chosen = next(name for name, reason in available_backends("cpu", torch.float32).items() if reason is None)
    found = solve(None, problem.tensors("softmax", torch.float32), problem.groups())
    assert all(
        torch.equal(a, b) for a, b in zip(found, solution(chosen, problem, "softmax", torch.float32), strict=True)
    )


def test_softmax_weighting_and_one_head_are_the_defaults():
    problem = by_name["full chunks"]
    *qkv, _ = problem.tensors("softmax", torch.float32)
    plain = knn_local_attention(*qkv, problem.groups())
    assert torch.equal(plain, knn_local_attention(*qkv, problem.groups(), weighting="softmax", n_heads=1))
    assert not torch.equal(plain, knn_local_attention(*qkv, problem.groups(), weighting="paper"))
    assert not torch.equal(plain, knn_local_attention(*qkv, problem.groups(), n_heads=2))


def test_every_backend_says_in_a_sentence_why_it_can_not_serve():
    assert {"reference", "blocked"} <= set(BACKENDS)
    for reason in available_backends("cpu", torch.int64).values():
        assert isinstance(reason, str)
        assert "int64" in reason


def test_an_unknown_backend_is_refused_with_the_names_of_the_known_ones():
    problem = by_name["N = 2k + 1"]
    with pytest.raises(BackendError) as caught:
        solve("warp", problem.tensors("softmax", torch.float32), problem.groups())
    assert all(name in str(caught.value) for name in ["warp", *BACKENDS])


@each_backend
def test_a_backend_that_can_not_serve_is_refused_with_its_reason(backend):
    integers = torch.zeros(1, 9, 4, 3, dtype=torch.int64)
    reason = available_backends("cpu", torch.int64)[backend]
    with pytest.raises(BackendError) as caught:
        kithkin.ops.knn_local_attention(integers, integers, integers, by_name["N = 2k + 1"].groups(), backend=backend)
    assert reason in str(caught.value)


SHAPE = (1, 9, 4, 3)


@pytest.mark.parametrize(
    ("shapes", "options"),
    [
        ([SHAPE, (1, 9, 4, 2), SHAPE], {}),
        ([SHAPE, SHAPE, (1, 9, 4, 2)], {}),
        ([SHAPE, (1, 8, 4, 3), (1, 8, 4, 3)], {}),
        ([(9, 4, 3)] * 3, {}),
        ([(1, 10, 4, 3)] * 3, {}),  # the groups are of nine patches
        ([(2, 9, 4, 3)] * 3, {}),  # and of one image
        ([SHAPE] * 3, {"n_heads": 2}),
        ([SHAPE] * 3, {"n_heads": 0}),
        ([SHAPE] * 3, {"weighting": "cosine"}),
    ],
)
def test_what_does_not_fit_is_refused(shapes, options):
    with pytest.raises(InputError):
        knn_local_attention(*(torch.zeros(shape) for shape in shapes), by_name["N = 2k + 1"].groups(), **options)


def test_mixed_dtypes_are_refused():
    query, key, value, _ = by_name["N = 2k + 1"].tensors("softmax", torch.float32)
    for i in range(3):
        mixed = [x.double() if i == j else x for j, x in enumerate((query, key, value))]
        with pytest.raises(InputError):
            knn_local_attention(*mixed, by_name["N = 2k + 1"].groups())
