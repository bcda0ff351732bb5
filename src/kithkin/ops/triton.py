"""Eqs. (8)-(10) by fused GPU kernels in Triton: float32, bfloat16 and float16, accumulated in float32.

A program works on one chunk of query patches in one round, with all the keys it sees: logits (kP, 2kP) in registers,
whose traces over P×P blocks are the inner products of Eq. (10). Channels come in blocks, in the products over them and
in the results, so that registers suffice for any number of channels. All rounds of all chunks are one launch. Each
leaves its own result and the logarithm of its sum of weights; a second kernel joins the rounds. Gradients take two
kernels, one for each side of the pair. One program writes each number, so their order changes no result.

float32 without TF32 has no tensor cores to multiply on. There a program takes its keys patch by patch, with a running
maximum as in online softmax, so that no factor of a product is wider than a patch.

Logits are kept in units of log 2. This module is imported only where Triton is there; see ``triton_launch``.
"""

import triton
import triton.language as tl

LOG2_E = tl.constexpr(1.4426950408889634)
SIZES = ["n", "k", "chunks", "rounds", "pixels", "patches"]  # a picture of another size takes the same code


@triton.jit
def _task(order, n, chunks, rounds, HEADS: tl.constexpr):
    """Of this program: its row (image and round), the image's first patch, the row's order, chunk and head."""
    task = tl.program_id(0)
    row = (task // (chunks * HEADS)).to(tl.int64)
    return row, row // rounds * n, order + row * n, task // HEADS % chunks, task % HEADS


@triton.jit
def _patches(order, g, start, TOWARDS: tl.constexpr, chunks, n, k, KB: tl.constexpr, B: tl.constexpr):
    """B patches from place ``start`` on of chunk g and, after its KB places, of the next one: index, is it there."""
    c = start + tl.arange(0, B)
    place = (g + chunks + TOWARDS * (c // KB)) % chunks * k + c % KB
    real = (c % KB < k) & (place < n)
    return tl.load(order + place, mask=real, other=0), real


@triton.jit
def _pixels(
    order, g, start, TOWARDS: tl.constexpr, chunks, n, k,
    P: tl.constexpr, KB: tl.constexpr, PB: tl.constexpr, B: tl.constexpr,
):  # fmt: skip
    """The pixels of ``_patches``, (B·PB,): place among the image's pixels, is it there."""
    row = tl.arange(0, B * PB)
    c, p = start + row // PB, row % PB
    place = (g + chunks + TOWARDS * (c // KB)) % chunks * k + c % KB
    there = (c % KB < k) & (place < n) & (p < P)
    return tl.load(order + place, mask=there, other=0) * P + p, there


@triton.jit
def _dot(a, b, PRECISION: tl.constexpr):
    if PRECISION == "interpreter":  # Triton's interpreter multiplies bfloat16 as if it were integers
        return tl.dot(a.to(tl.float32), b.to(tl.float32), input_precision="ieee")
    return tl.dot(a, b, input_precision=PRECISION)


@triton.jit
def _take(base, pixel, there, step, start, D: tl.constexpr, DB: tl.constexpr):
    """(pixels, DB): channels ``start`` to ``start + DB``, zero where there is none."""
    d = start + tl.arange(0, DB)
    mask = there[:, None] if D % DB == 0 else there[:, None] & (d < D)[None, :]
    return tl.load(base + pixel[:, None] * step + d[None, :], mask=mask, other=0.0)


@triton.jit
def _put(base, pixel, there, step, start, x, D: tl.constexpr, DB: tl.constexpr):
    d = start + tl.arange(0, DB)
    mask = there[:, None] if D % DB == 0 else there[:, None] & (d < D)[None, :]
    tl.store(base + pixel[:, None] * step + d[None, :], x.to(base.dtype.element_ty), mask=mask)


@triton.jit
def _rows_of_patches(x, B: tl.constexpr, PB: tl.constexpr):
    """(B,) of patches -> (B·PB, 1) of their pixels."""
    return tl.reshape(tl.broadcast_to(x[:, None], (B, PB)), (B * PB,))[:, None]


@triton.jit
def _products(
    query, pixel, there, q_step, key, other, seen, k_step, D: tl.constexpr, DK: tl.constexpr, PRECISION: tl.constexpr
):
    """Inner products of pixels with others, over all channels."""
    s = tl.zeros((pixel.shape[0], other.shape[0]), tl.float32)
    for start in tl.range(0, D, DK):
        q = _take(query, pixel, there, q_step, start, D, DK)
        s += _dot(q, tl.trans(_take(key, other, seen, k_step, start, D, DK)), PRECISION)
    return s


@triton.jit
def _softmaxes(s, scale, P: tl.constexpr, QB: tl.constexpr, CB: tl.constexpr, PB: tl.constexpr):
    """Eq. (8)'s softmaxes, one over the pixels of each candidate: what each exponential is to be divided by, (QB·PB,
    CB), and the exponentials, (QB·PB, CB, PB)."""
    grouped = tl.reshape(s, (QB * PB, CB, PB))
    if P != PB:
        grouped = tl.where((tl.arange(0, PB) < P)[None, None, :], grouped, float("-inf"))
    # The difference before the product: of two large products fused into it, rounding alone may leave more than 128.
    e = tl.exp2((grouped - tl.max(grouped, axis=2)[:, :, None]) * scale)
    return tl.sum(e, axis=2), e


@triton.jit
def _diagonal(QB: tl.constexpr, CB: tl.constexpr, PB: tl.constexpr):
    """(QB·PB, CB·PB): where a query's pixel meets the same pixel of a candidate."""
    return (tl.arange(0, QB * PB) % PB)[:, None] == (tl.arange(0, CB * PB) % PB)[None, :]


@triton.jit
def _sum_of_patches(x, QB: tl.constexpr, CB: tl.constexpr, PB: tl.constexpr):
    """(QB·PB, CB) -> (QB, CB): the sum over the pixels of each query patch."""
    return tl.sum(tl.reshape(x, (QB, PB, CB)), axis=1)


@triton.jit
def _pair_logits(s, scale, P: tl.constexpr, QB: tl.constexpr, CB: tl.constexpr, PB: tl.constexpr):
    """The mean scaled inner products of Eq. (10), in units of log 2: (QB, CB)."""
    on = tl.where(_diagonal(QB, CB, PB), s, 0.0)
    return _sum_of_patches(tl.sum(tl.reshape(on, (QB * PB, CB, PB)), axis=2), QB, CB, PB) * (scale / P)


@triton.jit
def _power(x):
    """2 to what is 0 at most, whatever rounding makes of it."""
    return tl.exp2(tl.minimum(x, 0.0))


@triton.jit
def _to_rows(x, QB: tl.constexpr, CB: tl.constexpr, PB: tl.constexpr):
    """(QB, CB) of pairs -> (QB·PB, CB): for each pixel of the queries."""
    return tl.reshape(tl.broadcast_to(x[:, None, :], (QB, PB, CB)), (QB * PB, CB))


@triton.jit
def _seen(
    query, pixel, there, key, order, g, c, chunks, n, k, step, scale, highest, total, size,
    P: tl.constexpr, D: tl.constexpr, KB: tl.constexpr, PB: tl.constexpr, CB: tl.constexpr, DK: tl.constexpr,
    PAPER: tl.constexpr, SIGNED: tl.constexpr, DIVIDED: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """CB candidates from place c on, seen by a chunk's queries: the weighted softmaxes, (KB·PB, CB·PB), the running
    maximum, sum and sum of magnitudes of the weights, (KB,), and what the earlier ones shrink to."""
    other, seen = _pixels(order, g, c, -1, chunks, n, k, P, KB, PB, CB)
    _, exists = _patches(order, g, c, -1, chunks, n, k, KB, CB)
    s = _products(query, pixel, there, step, key, other, seen, step, D, DK, PRECISION)
    scale *= LOG2_E
    logit = tl.where(exists[None, :], _pair_logits(s, scale, P, KB, CB, PB), 0.0 if PAPER else float("-inf"))
    if PAPER:
        weight, share = logit, tl.full((KB,), 1.0, tl.float32)
        size += tl.sum(tl.abs(weight), axis=1)
    else:
        new = tl.maximum(highest, tl.max(logit, axis=1))
        weight, share = _power(logit - new[:, None]), tl.exp2(highest - new)
        highest = new
    total = total * share + tl.sum(weight, axis=1)  # the denominator of Eq. (10)
    if DIVIDED:
        weight /= (size if SIGNED else total)[:, None]
    sums, e = _softmaxes(s, scale, P, KB, CB, PB)
    a = e * (_to_rows(weight, KB, CB, PB) / sums)[:, :, None]  # Eq. (8), weighted
    return tl.reshape(a, (KB * PB, CB * PB)), other, seen, highest, total, size, share


@triton.jit(do_not_specialize=SIZES)
def attend(
    query, key, value, order, part, level, total, n, k, chunks, rounds, step, scale,
    P: tl.constexpr, D: tl.constexpr, HEADS: tl.constexpr, KB: tl.constexpr, PB: tl.constexpr, SEEN: tl.constexpr,
    CB: tl.constexpr, DK: tl.constexpr, DO: tl.constexpr, PAPER: tl.constexpr, SIGNED: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """The result of a chunk in a round; per patch, the logarithm of its sum of weights. Of Eq. (10) as printed the sum,
    and that of magnitudes. Its weights have signs, and their sum may be near zero before rounds are added up: where
    there are rounds to add (SIGNED), results are divided by the latter."""
    row, first, order, g, head = _task(order, n, chunks, rounds, HEADS)
    pixel, there = _pixels(order, g, 0, -1, chunks, n, k, P, KB, PB, KB)
    shift = first * P * step + head * D
    query, key, value = query + shift, key + shift, value + shift
    part += row * n * P * (HEADS * D) + head * D
    highest = tl.full((KB,), float("-inf"), tl.float32)
    weights, size = tl.zeros((KB,), tl.float32), tl.zeros((KB,), tl.float32)
    if CB == SEEN:
        a, other, seen, highest, weights, size, _ = _seen(
            query, pixel, there, key, order, g, 0, chunks, n, k, step, scale, highest, weights, size,
            P, D, KB, PB, CB, DK, PAPER, SIGNED, True, PRECISION,
        )  # fmt: skip
        a = a.to(value.dtype.element_ty)
        for start in tl.range(0, D, DO):
            v = _take(value, other, seen, step, start, D, DO)
            _put(part, pixel, there, D * HEADS, start, _dot(a, v, PRECISION), D, DO)
    else:
        for start in tl.range(0, D, DO):
            acc = tl.zeros((KB * PB, DO), tl.float32)
            highest = tl.full((KB,), float("-inf"), tl.float32)
            weights, size = tl.zeros((KB,), tl.float32), tl.zeros((KB,), tl.float32)
            for c in tl.range(0, SEEN, CB):
                a, other, seen, highest, weights, size, share = _seen(
                    query, pixel, there, key, order, g, c, chunks, n, k, step, scale, highest, weights, size,
                    P, D, KB, PB, CB, DK, PAPER, SIGNED, False, PRECISION,
                )  # fmt: skip
                v = _take(value, other, seen, step, start, D, DO)
                acc = acc * _rows_of_patches(share, KB, PB) + _dot(a.to(v.dtype), v, PRECISION)
            acc /= _rows_of_patches(size if SIGNED else weights, KB, PB)
            _put(part, pixel, there, D * HEADS, start, acc, D, DO)
    patch, real = _patches(order, g, 0, -1, chunks, n, k, KB, KB)
    place = (row * n + patch) * HEADS + head
    if PAPER:
        tl.store(total + place, weights, mask=real)
        tl.store(level + place, size, mask=real)
    else:
        tl.store(level + place, highest + tl.log2(weights), mask=real)


@triton.jit(do_not_specialize=SIZES)
def join(
    part, level, total, out, norm, pixels, n, rounds,
    P: tl.constexpr, D: tl.constexpr, HEADS: tl.constexpr, RB: tl.constexpr, DB: tl.constexpr, PAPER: tl.constexpr,
):  # fmt: skip
    """The rounds' results, each by its share of the weights: output and norm."""
    pixel = tl.program_id(0) // HEADS * RB + tl.arange(0, RB).to(tl.int64)
    head = tl.program_id(0) % HEADS
    there = pixel < pixels
    image, local = pixel // (n * P), pixel % (n * P)
    where = image * rounds * n + local // P
    top = tl.full((RB,), float("-inf"), tl.float32)
    weights = tl.zeros((RB,), tl.float32)
    for j in range(rounds):
        at = (where + j * n) * HEADS + head
        if PAPER:
            weights += tl.load(total + at, mask=there, other=1.0)
        else:
            found = tl.load(level + at, mask=there, other=0.0)
            new = tl.maximum(top, found)
            weights = weights * tl.exp2(top - new) + tl.exp2(found - new)
            top = new
    for start in tl.range(0, D, DB):
        acc = tl.zeros((RB, DB), tl.float32)
        for j in range(rounds):
            size = tl.load(level + (where + j * n) * HEADS + head, mask=there, other=0.0)
            share = size if PAPER else tl.exp2(size - top)
            x = _take(part + head * D, (image * rounds + j) * n * P + local, there, D * HEADS, start, D, DB)
            acc += x.to(tl.float32) * share[:, None]
        _put(out + head * D, pixel, there, D * HEADS, start, acc / weights[:, None], D, DB)
    result = weights if PAPER else top + tl.log2(weights)
    tl.store(norm + pixel // P * HEADS + head, result, mask=there & (pixel % P == 0))


@triton.jit(do_not_specialize=SIZES)
def inner(
    grad, out, delta, patches, P: tl.constexpr, D: tl.constexpr, HEADS: tl.constexpr, PB: tl.constexpr,
    RB: tl.constexpr, DB: tl.constexpr,
):  # fmt: skip
    """Per patch and head, the inner product of the output and its gradient."""
    head, row = tl.program_id(0) % HEADS, tl.arange(0, RB * PB)
    start = (tl.program_id(0) // HEADS).to(tl.int64) * RB
    pixel = (start + row // PB) * P + row % PB
    there = (start + row // PB < patches) & (row % PB < P)
    acc = tl.zeros((RB * PB,), tl.float32)
    for d in tl.range(0, D, DB):
        up = _take(grad + head * D, pixel, there, D * HEADS, d, D, DB).to(tl.float32)
        acc += tl.sum(up * _take(out + head * D, pixel, there, D * HEADS, d, D, DB).to(tl.float32), axis=1)
    patch = start + tl.arange(0, RB)
    tl.store(delta + patch * HEADS + head, tl.sum(tl.reshape(acc, (RB, PB)), axis=1), mask=patch < patches)


@triton.jit
def _slopes(
    query, grad, pixel, there, norm, delta, key, value, other, seen, valid, step, scale,
    P: tl.constexpr, D: tl.constexpr, HEADS: tl.constexpr, QB: tl.constexpr, CB: tl.constexpr, PB: tl.constexpr,
    DK: tl.constexpr, PAPER: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """The gradient of the logits (scale left out) and the weighted softmaxes, both (QB·PB, CB·PB)."""
    s = _products(query, pixel, there, step, key, other, seen, step, D, DK, PRECISION)
    scale *= LOG2_E
    inner = _products(grad, pixel, there, D * HEADS, value, other, seen, step, D, DK, PRECISION)
    inner = tl.reshape(inner, (QB * PB, CB, PB))
    logit = _pair_logits(s, scale, P, QB, CB, PB)
    if PAPER:
        weight = tl.where(valid, logit / norm[:, None], 0.0)
        slope = tl.where(valid, LOG2_E / norm[:, None], 0.0)
    else:
        weight = tl.where(valid, _power(logit - norm[:, None]), 0.0)
        slope = weight
    sums, e = _softmaxes(s, scale, P, QB, CB, PB)
    a = e * (1.0 / sums)[:, :, None]
    mean = tl.sum(a * inner, axis=2)
    d_pair = (_sum_of_patches(mean, QB, CB, PB) - delta[:, None]) * slope / P
    a *= _to_rows(weight, QB, CB, PB)[:, :, None]
    d_s = tl.reshape(a * (inner - mean[:, :, None]), (QB * PB, CB * PB))
    d_pair = tl.broadcast_to(_to_rows(d_pair, QB, CB, PB)[:, :, None], (QB * PB, CB, PB))
    d_s += tl.where(_diagonal(QB, CB, PB), tl.reshape(d_pair, (QB * PB, CB * PB)), 0.0)
    return d_s, tl.reshape(a, (QB * PB, CB * PB))


@triton.jit
def _slopes_of_keys(
    query, key, value, grad, order, g, c, pixel, there, norm, delta, real, chunks, n, k, step, scale,
    P: tl.constexpr, D: tl.constexpr, HEADS: tl.constexpr, KB: tl.constexpr, PB: tl.constexpr, CB: tl.constexpr,
    DK: tl.constexpr, PAPER: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """``_slopes`` of a chunk's queries and of CB candidates from place c on, and these."""
    other, seen = _pixels(order, g, c, -1, chunks, n, k, P, KB, PB, CB)
    _, exists = _patches(order, g, c, -1, chunks, n, k, KB, CB)
    valid = real[:, None] & exists[None, :]
    d_s, _ = _slopes(
        query, grad, pixel, there, norm, delta, key, value, other, seen, valid, step, scale, P, D, HEADS, KB, CB, PB,
        DK, PAPER, PRECISION,
    )  # fmt: skip
    return d_s.to(key.dtype.element_ty), other, seen


@triton.jit(do_not_specialize=SIZES)
def backward_queries(
    query, key, value, grad, norm, delta, order, d_query, n, k, chunks, rounds, step, scale,
    P: tl.constexpr, D: tl.constexpr, HEADS: tl.constexpr, KB: tl.constexpr, PB: tl.constexpr, SEEN: tl.constexpr,
    CB: tl.constexpr, DK: tl.constexpr, DO: tl.constexpr, PAPER: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    row, first, order, g, head = _task(order, n, chunks, rounds, HEADS)
    pixel, there = _pixels(order, g, 0, -1, chunks, n, k, P, KB, PB, KB)
    patch, real = _patches(order, g, 0, -1, chunks, n, k, KB, KB)
    shift = first * P * step + head * D
    query, key, value = query + shift, key + shift, value + shift
    grad += first * P * (HEADS * D) + head * D
    d_query += row * n * P * (HEADS * D) + head * D
    row_norm = tl.load(norm + (first + patch) * HEADS + head, mask=real, other=1.0)
    row_delta = tl.load(delta + (first + patch) * HEADS + head, mask=real, other=0.0)
    if CB == SEEN:
        d_s, other, seen = _slopes_of_keys(
            query, key, value, grad, order, g, 0, pixel, there, row_norm, row_delta, real, chunks, n, k, step, scale, P,
            D, HEADS, KB, PB, CB, DK, PAPER, PRECISION,
        )  # fmt: skip
        for start in tl.range(0, D, DO):
            acc = _dot(d_s, _take(key, other, seen, step, start, D, DO), PRECISION)
            _put(d_query, pixel, there, D * HEADS, start, acc * scale, D, DO)
    else:
        for start in tl.range(0, D, DO):
            acc = tl.zeros((KB * PB, DO), tl.float32)
            for c in tl.range(0, SEEN, CB):
                d_s, other, seen = _slopes_of_keys(
                    query, key, value, grad, order, g, c, pixel, there, row_norm, row_delta, real, chunks, n, k, step,
                    scale, P, D, HEADS, KB, PB, CB, DK, PAPER, PRECISION,
                )  # fmt: skip
                acc += _dot(d_s, _take(key, other, seen, step, start, D, DO), PRECISION)
            _put(d_query, pixel, there, D * HEADS, start, acc * scale, D, DO)


@triton.jit
def _slopes_of_queries(
    query, key, value, grad, norm, delta, order, first, g, head, c, pixel, there, real, chunks, n, k, step, scale,
    P: tl.constexpr, D: tl.constexpr, HEADS: tl.constexpr, KB: tl.constexpr, PB: tl.constexpr, CB: tl.constexpr,
    DK: tl.constexpr, PAPER: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """``_slopes`` of a chunk's keys and of CB patches, from place c on, whose queries see them, turned; and these."""
    other, seen = _pixels(order, g, c, 1, chunks, n, k, P, KB, PB, CB)
    patch, exists = _patches(order, g, c, 1, chunks, n, k, KB, CB)
    valid = exists[:, None] & real[None, :]
    row_norm = tl.load(norm + (first + patch) * HEADS + head, mask=exists, other=1.0)
    row_delta = tl.load(delta + (first + patch) * HEADS + head, mask=exists, other=0.0)
    d_s, a = _slopes(
        query, grad, other, seen, row_norm, row_delta, key, value, pixel, there, valid, step, scale, P, D,
        HEADS, CB, KB, PB, DK, PAPER, PRECISION,
    )  # fmt: skip
    return tl.trans(d_s.to(query.dtype.element_ty)), tl.trans(a.to(grad.dtype.element_ty)), other, seen


@triton.jit(do_not_specialize=SIZES)
def backward_keys(
    query, key, value, grad, norm, delta, order, d_key, d_value, n, k, chunks, rounds, step, scale,
    P: tl.constexpr, D: tl.constexpr, HEADS: tl.constexpr, KB: tl.constexpr, PB: tl.constexpr, SEEN: tl.constexpr,
    CB: tl.constexpr, DK: tl.constexpr, DO: tl.constexpr, PAPER: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Of the keys and values of a chunk, which the queries of the same and of the next chunk see."""
    row, first, order, g, head = _task(order, n, chunks, rounds, HEADS)
    pixel, there = _pixels(order, g, 0, 1, chunks, n, k, P, KB, PB, KB)
    _, real = _patches(order, g, 0, 1, chunks, n, k, KB, KB)
    shift = first * P * step + head * D
    query, key, value = query + shift, key + shift, value + shift
    grad += first * P * (HEADS * D) + head * D
    d_key += row * n * P * (HEADS * D) + head * D
    d_value += row * n * P * (HEADS * D) + head * D
    if CB == SEEN:
        d_s, a, other, seen = _slopes_of_queries(
            query, key, value, grad, norm, delta, order, first, g, head, 0, pixel, there, real, chunks, n, k, step,
            scale, P, D, HEADS, KB, PB, CB, DK, PAPER, PRECISION,
        )  # fmt: skip
        for start in tl.range(0, D, DO):
            of_key = _dot(d_s, _take(query, other, seen, step, start, D, DO), PRECISION)
            _put(d_key, pixel, there, D * HEADS, start, of_key * scale, D, DO)
            of_value = _dot(a, _take(grad, other, seen, D * HEADS, start, D, DO), PRECISION)
            _put(d_value, pixel, there, D * HEADS, start, of_value, D, DO)
    else:
        for start in tl.range(0, D, DO):
            of_key, of_value = tl.zeros((KB * PB, DO), tl.float32), tl.zeros((KB * PB, DO), tl.float32)
            for c in tl.range(0, SEEN, CB):
                d_s, a, other, seen = _slopes_of_queries(
                    query, key, value, grad, norm, delta, order, first, g, head, c, pixel, there, real, chunks, n, k,
                    step, scale, P, D, HEADS, KB, PB, CB, DK, PAPER, PRECISION,
                )  # fmt: skip
                of_key += _dot(d_s, _take(query, other, seen, step, start, D, DO), PRECISION)
                of_value += _dot(a, _take(grad, other, seen, D * HEADS, start, D, DO), PRECISION)
            _put(d_key, pixel, there, D * HEADS, start, of_key * scale, D, DO)
            _put(d_value, pixel, there, D * HEADS, start, of_value, D, DO)
