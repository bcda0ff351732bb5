"""Hashing, sorting and chunking patches, Eqs. (5)-(7), and the value that carries the result."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st

from kithkin.errors import InputError
from kithkin.ops import PatchGroups, default_n_buckets, exact_groups, group_patches, lsh_hash, sort_by_hash

import oracle


def normal(*shape, seed=0, dtype=torch.float32):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def random_orders(batch, rounds, n, seed=0):
    rng = np.random.default_rng(seed)
    return torch.from_numpy(np.stack([[rng.permutation(n) for _ in range(rounds)] for _ in range(batch)]))


def lists(tensor):
    """The entries of the last axis that are no padding, as lists; the leading axes become one."""
    return [[i for i in row if i >= 0] for row in tensor.flatten(0, -2).tolist()]


# Eq. (5)


@pytest.mark.parametrize("n_buckets", [2, 4, 16, 128])
def test_hashes_are_the_oracle_s(n_buckets):
    features, rotations = normal(2, 40, 12), normal(3, 12, n_buckets // 2, seed=1)
    hashes = lsh_hash(features, rotations)
    assert hashes.dtype == torch.int64
    assert tuple(hashes.shape) == (2, 3, 40)
    for image in range(2):
        for j in range(3):
            scores = oracle.hash_scores(features[image].numpy(), rotations[j].numpy())
            first, second = np.sort(scores, axis=1)[:, -1], np.sort(scores, axis=1)[:, -2]
            assert ((first - second) > 1e-4).all()  # float32 can't turn any of these around
            expected = oracle.lsh_hash(features[image].numpy(), rotations[j].numpy())
            assert hashes[image, j].tolist() == expected


def test_the_first_bucket_wins_a_tie():
    features = torch.eye(4).unsqueeze(0)
    rotations = torch.tensor([[[1.0, 1.0, 1.0], [2.0, 5.0, 5.0], [-3.0, 1.0, -3.0], [0.0, 0.0, 0.0]]])
    expected = oracle.lsh_hash(features[0].numpy(), rotations[0].numpy())
    assert expected == [0, 1, 3, 0]
    assert lsh_hash(features, rotations)[0, 0].tolist() == expected


def test_a_patch_of_zeros_has_a_hash():
    assert lsh_hash(torch.zeros(1, 3, 5), normal(2, 5, 4)).tolist() == [[[0, 0, 0], [0, 0, 0]]]


@pytest.mark.parametrize("scale", [2.0**-20, 0.3, 7.7, 2.0**20])
def test_only_the_direction_of_a_patch_counts(scale):
    features, rotations = normal(1, 40, 12), normal(3, 12, 8, seed=1)
    assert torch.equal(lsh_hash(features * scale, rotations), lsh_hash(features, rotations))


def test_the_opposite_patch_lands_in_the_opposite_bucket():
    features, rotations = normal(1, 40, 12), normal(3, 12, 8, seed=1)
    assert torch.equal(lsh_hash(-features, rotations), (lsh_hash(features, rotations) + 8) % 16)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_hashes_are_computed_in_float32(dtype):
    features, rotations = normal(2, 200, 48, dtype=dtype), normal(4, 48, 32, seed=1)
    assert torch.equal(lsh_hash(features, rotations), lsh_hash(features.float(), rotations))


def test_autocast_does_not_change_the_hashes():
    features, rotations = normal(2, 200, 48), normal(4, 48, 32, seed=1)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = lsh_hash(features, rotations)
    assert torch.equal(inside, lsh_hash(features, rotations))


def test_similar_patches_share_a_bucket_more_often_than_random_ones():
    patches, rotations = normal(1, 500, 48), normal(4, 48, 8, seed=1)
    near = lsh_hash(patches + 0.1 * normal(1, 500, 48, seed=2), rotations)
    far = lsh_hash(normal(1, 500, 48, seed=3), rotations)
    here = lsh_hash(patches, rotations)
    assert (here == near).float().mean() > 0.8
    assert (here == far).float().mean() < 0.15  # 1/16 by chance


def test_centered_hashes_are_those_of_patches_without_their_mean():
    patches, rotations = normal(2, 60, 4, 5), normal(3, 20, 8, seed=1)
    shifted = patches + 10 * normal(2, 1, 4, 5, seed=2)
    for image in range(2):
        flat = (patches[image] - patches[image].mean(0)).flatten(1).double().numpy()
        found = group_patches(shifted[image : image + 1], k=4, n_hashes=3, rotations=rotations, features="centered")
        for j in range(3):
            rotation = rotations[j, :, : default_n_buckets(60, 4) // 2].double().numpy()
            expected = oracle.sort_by_hash(oracle.lsh_hash(flat, rotation))
            assert found.order[0, j].tolist() == list(expected)
    plain = group_patches(shifted, k=4, n_hashes=3, rotations=rotations)
    assert (plain.order.diff(dim=-1) == 1).float().mean() > 0.8  # one bucket or two: nothing is sorted


# Eq. (6)


@settings(deadline=None, max_examples=60)
@given(st.lists(st.integers(min_value=0, max_value=5), min_size=1, max_size=40))
def test_the_order_is_the_oracle_s_stable_one(hashes):
    assert sort_by_hash(torch.tensor([[hashes]])).tolist() == [[oracle.sort_by_hash(hashes)]]


@pytest.mark.parametrize("n", [1, 17, 5000])
def test_the_order_is_an_ascending_permutation(n):
    hashes = torch.randint(128, (2, 3, n), generator=torch.Generator().manual_seed(0))
    order = sort_by_hash(hashes)
    assert order.dtype == torch.int64
    assert torch.equal(order.sort(-1).values, torch.arange(n).expand(2, 3, n))
    assert (hashes.gather(-1, order).diff(dim=-1) >= 0).all()


def test_equal_hashes_keep_the_order_of_the_patches():
    assert torch.equal(sort_by_hash(torch.full((1, 1, 5000), 127)), torch.arange(5000).expand(1, 1, 5000))


# Eq. (7)


@pytest.mark.parametrize("look_back", [False, True])
@pytest.mark.parametrize(("n", "k"), [(9, 4), (12, 4), (13, 4), (15, 4), (5, 2), (7, 3), (3, 1), (4, 1)])
def test_chunks_and_candidates_are_the_oracle_s(n, k, look_back):
    order = random_orders(2, 3, n)
    groups = PatchGroups(order, k, look_back)
    n_chunks = -(-n // k)
    assert tuple(groups.chunks().shape) == (2, 3, n_chunks, k)
    assert tuple(groups.candidates().shape) == (2, 3, n_chunks, 2 * k if look_back else k)
    rounds = [row.tolist() for row in order.flatten(0, 1)]
    assert lists(groups.chunks()) == [run for row in rounds for run in oracle.chunks(row, k)]
    assert lists(groups.candidates()) == [run for row in rounds for run in oracle.chunk_candidates(row, k, look_back)]


@pytest.mark.parametrize(("n", "k"), [(9, 4), (13, 4), (7, 3), (5, 2)])
def test_no_candidate_is_counted_twice_and_no_query_left_out(n, k):
    groups = PatchGroups(random_orders(2, 3, n), k, True)
    for candidates in lists(groups.candidates()):
        assert len(candidates) == len(set(candidates))
    for row in lists(groups.chunks().flatten(2)):
        assert sorted(row) == list(range(n))


def test_places_beyond_the_last_patch_are_masked_at_the_end():
    groups = PatchGroups(torch.arange(9).view(1, 1, 9), 4, True)
    assert groups.chunks()[0, 0].tolist() == [[0, 1, 2, 3], [4, 5, 6, 7], [8, -1, -1, -1]]
    assert groups.candidates()[0, 0, 0].tolist() == [0, 1, 2, 3, 8, -1, -1, -1]
    assert groups.candidates()[0, 0, 2].tolist() == [8, -1, -1, -1, 4, 5, 6, 7]


@pytest.mark.parametrize(("n", "k"), [(1, 1), (2, 1), (5, 4), (8, 4)])
def test_look_back_needs_three_chunks(n, k):
    with pytest.raises(InputError):
        PatchGroups(torch.arange(n).view(1, 1, n), k, True)


@pytest.mark.parametrize("k", [0, -1])
def test_chunks_of_less_than_one_patch_are_refused(k):
    with pytest.raises(InputError):
        PatchGroups(torch.arange(9).view(1, 1, 9), k, False)


# All together


def by_the_oracle(patches, rotations, n_buckets):
    """The orders of every image and round, as nested lists; patches (B, N, F)."""
    return [
        [
            oracle.sort_by_hash(oracle.lsh_hash(image, rotation[:, : n_buckets // 2]))
            for rotation in rotations.double().numpy()
        ]
        for image in patches.double().numpy()
    ]


@pytest.mark.parametrize("k", [2, 4])
@pytest.mark.parametrize("n", [9, 16, 30])
def test_groups_are_the_oracle_s(n, k):
    patches, rotations = normal(2, n, 4, 3), normal(3, 12, 64, seed=1)
    groups = group_patches(patches, k=k, n_hashes=3, rotations=rotations)
    expected = by_the_oracle(patches.flatten(2), rotations, oracle.default_n_buckets(n, k))
    assert groups.order.tolist() == expected
    assert (groups.k, groups.look_back) == (k, True)


@pytest.mark.parametrize("n_buckets", [2, 6, 8])
def test_n_buckets_takes_that_many_columns(n_buckets):
    patches, rotations = normal(2, 30, 4, 3), normal(3, 12, 4, seed=1)
    groups = group_patches(patches, k=4, n_hashes=3, n_buckets=n_buckets, rotations=rotations)
    assert groups.order.tolist() == by_the_oracle(patches.flatten(2), rotations, n_buckets)


def test_pooled_features_are_the_means_over_the_pixels():
    patches, rotations = normal(2, 30, 4, 3), normal(3, 3, 4, seed=1)
    groups = group_patches(patches, k=4, n_hashes=3, n_buckets=8, rotations=rotations, features="pooled")
    assert groups.order.tolist() == by_the_oracle(patches.double().mean(2), rotations, 8)


@pytest.mark.parametrize("k", [1, 2, 3, 4, 7])
def test_the_default_number_of_buckets(k):
    for n in [1, 2, 7, 8, 9, 64, 255, 256, 257, 514, 515, 516, 1024, 65536]:
        assert default_n_buckets(n, k) == oracle.default_n_buckets(n, k)


@pytest.mark.parametrize(("n", "k"), [(1, 4), (3, 4), (4, 4), (7, 4), (8, 4), (2, 2)])
def test_few_patches_all_see_each_other_once(n, k):
    groups = group_patches(normal(2, n, 4, 3), k=k)
    assert (groups.k, groups.look_back) == (n, False)
    assert tuple(groups.candidates().shape) == (2, 1, 1, n)
    assert groups.candidates().sort(-1).values.tolist() == [[[list(range(n))]]] * 2


def test_one_patch_more_than_two_chunks_is_hashed():
    groups = group_patches(normal(2, 9, 4, 3), k=4, n_hashes=3)
    assert (tuple(groups.order.shape), groups.k, groups.look_back) == ((2, 3, 9), 4, True)


@pytest.mark.parametrize("n", [1, 2, 3, 16])
def test_with_k_1_every_patch_sees_itself_alone(n):
    groups = group_patches(normal(2, n, 4, 3), k=1)
    assert (groups.k, groups.look_back) == (1, False)
    assert groups.order.tolist() == [[list(range(n))]] * 2
    assert groups.candidates().tolist() == [[[[i] for i in range(n)]]] * 2


def test_grouping_a_batch_is_grouping_its_images_one_by_one():
    patches, rotations = normal(3, 70, 16, 6), normal(4, 96, 64, seed=1)
    whole = group_patches(patches, rotations=rotations).order
    assert torch.equal(whole, torch.cat([group_patches(one, rotations=rotations).order for one in patches.split(1)]))


def test_a_near_tie_is_decided_alike_in_every_batch():
    """Flat patches, and columns that are permutations of one another: only roundings tell the buckets apart."""
    column = normal(96, seed=1).numpy()
    rng = np.random.default_rng(0)
    rotations = torch.from_numpy(np.stack([[rng.permutation(column) for _ in range(8)] for _ in range(4)])).mT
    patches = normal(3, 70, 1, 1).expand(3, 70, 16, 6)
    whole = group_patches(patches, rotations=rotations).order
    assert torch.equal(whole, torch.cat([group_patches(one, rotations=rotations).order for one in patches.split(1)]))


@pytest.mark.parametrize("features", ["patch", "pooled"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_patches_are_grouped_in_float32(features, dtype):
    patches = normal(2, 70, 16, 6, dtype=dtype)
    groups = group_patches(patches, features=features)
    assert torch.equal(groups.order, group_patches(patches.float(), features=features).order)


def test_the_same_rotations_give_the_same_order_and_others_another():
    patches = normal(1, 70, 4, 3)
    first, again, other = (group_patches(patches, rotations=normal(4, 12, 64, seed=seed)).order for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_the_rounds_differ():
    order = group_patches(normal(1, 70, 4, 3), n_hashes=2).order
    assert not torch.equal(order[:, 0], order[:, 1])


def test_a_generator_draws_the_rotations_and_none_means_a_fixed_seed():
    patches = normal(1, 70, 4, 3)
    drawn = [group_patches(patches, generator=torch.Generator().manual_seed(seed)).order for seed in (1, 1, 2)]
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])
    generator = torch.Generator().manual_seed(1)
    assert not torch.equal(*(group_patches(patches, generator=generator).order for _ in range(2)))
    assert torch.equal(group_patches(patches).order, group_patches(patches).order)


def test_the_global_random_state_is_neither_moved_nor_read():
    patches = normal(1, 70, 4, 3)
    torch.manual_seed(0)
    np.random.seed(0)
    before, numpy_before = torch.get_rng_state(), np.random.get_state()[1].copy()
    first = [group_patches(patches).order, group_patches(patches, generator=torch.Generator().manual_seed(1)).order]
    assert torch.equal(torch.get_rng_state(), before)
    assert np.array_equal(np.random.get_state()[1], numpy_before)
    torch.manual_seed(99)
    second = [group_patches(patches).order, group_patches(patches, generator=torch.Generator().manual_seed(1)).order]
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_patches_that_require_grad_or_are_not_contiguous_give_the_same_groups():
    patches = normal(2, 70, 4, 3)
    view = patches.transpose(1, 2).contiguous().transpose(1, 2).requires_grad_()
    assert not view.is_contiguous()
    assert torch.equal(group_patches(view).order, group_patches(patches).order)


def test_a_copy_of_a_patch_is_its_neighbor():
    half = normal(1, 32, 4, 3)
    groups = group_patches(torch.cat([half, half], 1), k=4, n_hashes=1)
    together = lists(groups.candidates())
    of = {patch: near for chunk, near in zip(lists(groups.chunks()), together, strict=True) for patch in chunk}
    found = sum(patch + 32 in of[patch] or patch in of[patch + 32] for patch in range(32))
    assert found > 20  # unrelated patches: about 12 of 32


@pytest.mark.parametrize(
    "wrong",
    [
        {"k": 0},
        {"n_hashes": 0},
        {"n_buckets": 3},
        {"n_buckets": 0},
        {"features": "colour"},
        {"rotations": torch.zeros(4, 11, 64)},  # not P*C rows
        {"rotations": torch.zeros(4, 12, 3), "n_buckets": 8},  # too few columns
        {"rotations": torch.zeros(12, 64)},
        {"rotations": torch.zeros(2, 12, 64), "n_hashes": 4},  # too few rounds
    ],
)
def test_settings_that_can_not_be_meant_are_refused(wrong):
    with pytest.raises(InputError):
        group_patches(normal(1, 70, 4, 3), **wrong)


def test_patches_of_another_rank_are_refused():
    with pytest.raises(InputError):
        group_patches(normal(70, 4, 3))


# Exact neighbours


@pytest.mark.parametrize(("n", "k"), [(1, 4), (3, 4), (9, 1), (30, 4)])
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_exact_neighbors_are_the_oracle_s_nearest_first(n, k, dtype):
    patches = normal(2, n, 4, 3, dtype=dtype)
    groups = exact_groups(patches, k=k)
    kept = min(n, k)
    assert tuple(groups.chunks().shape) == (2, 1, n, 1)
    assert tuple(groups.candidates().shape) == (2, 1, n, kept)
    for image in range(2):
        expected, distances = oracle.exact_neighborhoods(patches[image].double().numpy(), kept)
        queries, found = groups.chunks()[image, 0, :, 0].tolist(), groups.candidates()[image, 0].tolist()
        assert sorted(queries) == list(range(n))
        for query, near in zip(queries, found, strict=True):
            assert set(near) == expected[query]
            assert near[0] == query
            assert (np.diff(distances[query, near]) >= 0).all()


def test_exact_neighbors_of_a_far_away_image_are_not_lost_to_rounding():
    """Distances of about 1 between patches of about 1000: |a|² + |b|² - 2ab would lose them in float32."""
    patches = normal(1, 30, 4, 3) + 1000.0
    expected, _ = oracle.exact_neighborhoods(patches[0].double().numpy(), 4)
    assert [set(row) for row in exact_groups(patches, k=4).candidates()[0, 0].tolist()] == expected


def test_equally_near_patches_come_in_the_order_of_their_indices():
    line = torch.tensor([0.0, 1.0, 2.0, 3.0, 4.0]).view(1, 5, 1, 1)
    found = exact_groups(line, k=3).candidates()[0, 0].tolist()
    assert found == [[0, 1, 2], [1, 0, 2], [2, 1, 3], [3, 2, 4], [4, 3, 2]]


def test_a_patch_is_its_own_exact_neighbor_even_among_many_copies():
    found = exact_groups(torch.ones(1, 9, 4, 3), k=4).candidates()[0, 0].tolist()
    assert all(i in near for i, near in enumerate(found))


def test_exact_groups_refuse_what_can_not_be_meant():
    with pytest.raises(InputError):
        exact_groups(normal(9, 4, 3))
    with pytest.raises(InputError):
        exact_groups(normal(1, 9, 4, 3), k=0)
