"""Eqs. (1), (2) and (5)-(10) of the paper as float64 loops in numpy; it shares no line with `src`.

Slow and plain on purpose: one image, one head and one pair of patches at a time, so that each function can be
checked against the paper by eye. Patches are (N, P, C): N patches of P pixels with C channels. A neighbourhood
is a plain list of patch indices, in the original order of the patches, in which a patch may stand more than once.
"""

import numpy as np


def partition(image, patch_size):
    """(H, W, C) -> (N, P, C): patches row by row, and the pixels of a patch row by row."""
    height, width, channels = image.shape
    patches = []
    for top in range(0, height, patch_size):
        for left in range(0, width, patch_size):
            pixels = [image[top + y, left + x] for y in range(patch_size) for x in range(patch_size)]
            patches.append(pixels)
    return np.array(patches).reshape(-1, patch_size**2, channels)


def hash_scores(features, rotation):
    """The vectors [xR; -xR] of Eq. (5): (N, F) and (F, m/2) -> (N, m)."""
    features, rotation = np.float64(features), np.float64(rotation)
    scores = []
    for x in features:
        projected = [float(np.sum(x * column)) for column in rotation.T]
        scores.append(projected + [-value for value in projected])
    return np.array(scores)


def lsh_hash(features, rotation):
    """Eq. (5), one round: the place of the largest score, the first of them on a tie."""
    hashes = []
    for row in hash_scores(features, rotation):
        best = 0
        for bucket in range(1, len(row)):
            if row[bucket] > row[best]:
                best = bucket
        hashes.append(best)
    return hashes


def sort_by_hash(hashes):
    """Eq. (6), one round: patch indices by ascending hash, equal hashes in the order of the patches."""
    return sorted(range(len(hashes)), key=lambda patch: (hashes[patch], patch))


def chunks(order, k):
    """Eq. (7), one round: runs of k of the sorted patches; the last run may be shorter."""
    return [list(order[start : start + k]) for start in range(0, len(order), k)]


def chunk_candidates(order, k, look_back):
    """The candidates of every chunk of one round: itself, then the chunk before it, the last one before the first."""
    runs = chunks(order, k)
    return [run + (runs[i - 1] if look_back else []) for i, run in enumerate(runs)]


def neighborhoods(orders, k, look_back):
    """N_p of every patch: its candidates of all rounds together, orders (h, N) -> N lists."""
    found = [[] for _ in orders[0]]
    for order in orders:
        for run, candidates in zip(chunks(order, k), chunk_candidates(order, k, look_back), strict=True):
            for patch in run:
                found[patch] += candidates
    return [[int(patch) for patch in row] for row in found]


def exact_neighborhoods(patches, n_neighbors):
    """The patches at the smallest Euclidean distance from each patch, itself among them: sets, and all distances."""
    n = len(patches)
    distances = np.zeros((n, n))
    for p in range(n):
        for q in range(n):
            distances[p, q] = np.sqrt(np.sum((np.float64(patches[p]) - np.float64(patches[q])) ** 2))
    return [set(np.argsort(row, kind="stable")[:n_neighbors].tolist()) for row in distances], distances


def default_n_buckets(n, k):
    """The largest even number up to n // k, held between 2 and 128."""
    wanted = n // k
    if wanted % 2 == 1:
        wanted -= 1
    if wanted < 2:
        return 2
    return 128 if wanted > 128 else wanted


def softmax(row):
    exponentials = np.exp(row - np.max(row))
    return exponentials / np.sum(exponentials)


def pairwise_softmax(query, key):
    """The softmax of Eq. (8) over the pixels of the key patch: (P, C), (P, C) -> (P, P)."""
    return np.array([softmax(np.array([np.dot(a, b) for b in key]) / np.sqrt(query.shape[1])) for a in query])


def pairwise_attention(query, key, value):
    """Eq. (8): o_pq of one pair of patches, (P, C) each."""
    attention = pairwise_softmax(query, key)
    output = np.zeros(value.shape)
    for i in range(len(query)):
        for j in range(len(key)):
            output[i] += attention[i, j] * value[j]
    return output


def pair_scores(query, keys):
    """<flat q, flat k_j> for every candidate j: (P, C), (K, P, C) -> (K,)."""
    return np.array([float(np.sum(query * key)) for key in keys])


def pairwise_weights(query, keys, weighting):
    """Eq. (10), "paper", or its stable sister "softmax": the weight of every candidate, (P, C), (K, P, C) -> (K,)."""
    scores = pair_scores(query, keys)
    if weighting == "paper":
        return scores / np.sum(scores)
    return softmax(scores / (query.shape[0] * np.sqrt(query.shape[1])))


def aggregate(weights, outputs):
    """Eq. (9): sum over j of w_j o_j, (K,), (K, P, C) -> (P, C)."""
    total = np.zeros(outputs[0].shape)
    for weight, output in zip(weights, outputs, strict=True):
        total += weight * output
    return total


def head_slices(channels, n_heads):
    width = channels // n_heads
    return [slice(head * width, (head + 1) * width) for head in range(n_heads)]


def knn_local_attention(query, key, value, neighbors, weighting="softmax", n_heads=1):
    """Eqs. (8)-(10) for one image: (N, P, C) each and N neighbourhoods -> (N, P, C)."""
    query, key, value = np.float64(query), np.float64(key), np.float64(value)
    output = np.zeros(query.shape)
    for head in head_slices(query.shape[2], n_heads):
        q, k, v = query[..., head], key[..., head], value[..., head]
        for p, near in enumerate(neighbors):
            pairs = [pairwise_attention(q[p], k[j], v[j]) for j in near]
            output[p][:, head] = aggregate(pairwise_weights(q[p], k[near], weighting), pairs)
    return output


def knn_local_attention_grad(query, key, value, neighbors, upstream, weighting="softmax", n_heads=1):
    """The gradients of sum(upstream * knn_local_attention(...)) by query, key and value, derived by hand."""
    query, key, value, upstream = np.float64(query), np.float64(key), np.float64(value), np.float64(upstream)
    grads = [np.zeros(query.shape) for _ in range(3)]
    for head in head_slices(query.shape[2], n_heads):
        q, k, v = query[..., head], key[..., head], value[..., head]
        dq, dk, dv = (grad[..., head] for grad in grads)  # views: adding to them adds to grads
        n_pixels, width = q.shape[1:]
        for p, near in enumerate(neighbors):
            g = upstream[p][:, head]
            weights = pairwise_weights(q[p], k[near], weighting)
            dweights = np.zeros(len(near))
            for i, j in enumerate(near):
                attention = pairwise_softmax(q[p], k[j])
                dweights[i] = np.sum(g * (attention @ v[j]))
                dattention = weights[i] * g @ v[j].T
                dlogits = attention * (dattention - np.sum(attention * dattention, axis=1, keepdims=True))
                dv[j] += weights[i] * attention.T @ g
                dq[p] += dlogits @ k[j] / np.sqrt(width)
                dk[j] += dlogits.T @ q[p] / np.sqrt(width)
            centred = dweights - np.sum(weights * dweights)
            if weighting == "paper":
                dscores = centred / np.sum(pair_scores(q[p], k[near]))
            else:
                dscores = weights * centred / (n_pixels * np.sqrt(width))
            for i, j in enumerate(near):
                dq[p] += dscores[i] * k[j]
                dk[j] += dscores[i] * q[p]
    return grads


def global_attention(query, key, value):
    """Eq. (1): every patch looks at all patches, as one flat vector each, scaled by sqrt(C)."""
    query, key, value = np.float64(query), np.float64(key), np.float64(value)
    output = np.zeros(value.shape)
    for p in range(len(query)):
        weights = softmax(pair_scores(query[p], key) / np.sqrt(query.shape[2]))
        output[p] = aggregate(weights, value)
    return output


def local_attention(query, key, value):
    """Eq. (2): every patch looks at its own pixels."""
    query, key, value = np.float64(query), np.float64(key), np.float64(value)
    return np.array([pairwise_attention(q, k, v) for q, k, v in zip(query, key, value, strict=True)])
