"""Fewer pairs: the best candidates of those that hashing found."""

import pytest
import torch

from kithkin.errors import InputError
from kithkin.layers import KNNLocalAttention
from kithkin.ops import available_backends, best_neighbors, exact_groups, group_patches, knn_local_attention
from kithkin.ops.reference import candidates_of_each_patch

BACKENDS = [name for name in ("native", "blocked", "reference") if available_backends()[name] is None]


def problem(patches=23, rounds=3):
    generator = torch.Generator().manual_seed(patches)
    query, key, value = (torch.randn(2, patches, 4, 3, generator=generator) for _ in range(3))
    return query, key, value, group_patches(value, k=4, n_hashes=rounds)


@pytest.mark.parametrize("n_pairs", [1, 3, 9])
def test_the_best_are_kept_each_once_the_best_first(n_pairs):
    query, key, _, groups = problem()
    found = best_neighbors(query, key, groups, n_pairs).neighbors
    assert found.shape == (2, 23, n_pairs)
    for image, rows in enumerate(candidates_of_each_patch(groups).tolist()):
        for patch, row in enumerate(rows):
            weight = {j: (query[image, patch] * key[image, j]).sum().item() for j in set(row) - {-1}}
            assert found[image, patch].tolist() == sorted(weight, key=weight.get, reverse=True)[:n_pairs]


def test_places_without_a_candidate_are_empty_and_count_nothing():
    query, key, value, groups = problem(patches=9, rounds=2)
    every = best_neighbors(query, key, groups, 16)
    assert (every.neighbors == -1).any()
    results = [knn_local_attention(query, key, value, every, backend=name) for name in BACKENDS]
    for patch in range(9):
        near = every.neighbors[:1, patch : patch + 1]
        alone = best_neighbors(query, key, groups, int((near >= 0).sum()))
        expected = knn_local_attention(query, key, value, alone, backend="reference")[0, patch]
        for found in results:
            torch.testing.assert_close(found[0, patch], expected)


def test_a_layer_attends_to_as_many_as_asked():
    x = torch.randn(1, 32, 32, 8, generator=torch.Generator().manual_seed(0))
    full, few = (KNNLocalAttention(8, n_hashes=2, n_pairs=n) for n in (None, 3))
    few.load_state_dict(full.state_dict())
    assert not torch.allclose(full(x), few(x))
    few.n_pairs = 16  # as many as there are: nothing is left out
    torch.testing.assert_close(full(x), few(x))


def test_what_makes_no_sense_is_refused():
    query, key, _, groups = problem()
    for near, n_pairs in ((groups, 0), (exact_groups(query, k=3), 2)):
        with pytest.raises(InputError, match="best_neighbors: expected chunks and n_pairs ≥ 1"):
            best_neighbors(query, key, near, n_pairs)
    with pytest.raises(InputError, match="n_pairs must be at least 1"):
        KNNLocalAttention(8, n_pairs=0)
