// One chunk of Eqs. (8)-(10) on a CPU, forward and backward.
//
// Lanes are the pixels of a few query patches, rows are the pixels of the candidates. A softmax over the P pixels of a
// candidate then runs down P rows and needs no sum across lanes, and the inner product of two patches (Eq. 10) is the
// trace of their P x P block of logits. A block of logits stays in the first-level cache; no other logits exist.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <new>

#ifndef KITHKIN_LANES
#define KITHKIN_LANES 8
#endif

namespace kithkin {

constexpr int64_t W = KITHKIN_LANES;  // floats of a vector
typedef float Vec __attribute__((vector_size(4 * KITHKIN_LANES), aligned(4), may_alias));
typedef int32_t Int __attribute__((vector_size(4 * KITHKIN_LANES), aligned(4), may_alias));

struct bfloat16 {
    uint16_t bits;
};

inline float to_float(float x) { return x; }
inline float to_float(bfloat16 x) {
    const uint32_t wide = static_cast<uint32_t>(x.bits) << 16;
    float result;
    std::memcpy(&result, &wide, 4);
    return result;
}

inline Vec load(const float* x) { return *reinterpret_cast<const Vec*>(x); }
inline void store(float* x, Vec v) { *reinterpret_cast<Vec*>(x) = v; }
inline Vec larger(Vec a, Vec b) { return a > b ? a : b; }

// e^x for x <= 0, within about 2 units in the last place: 2^n times a polynomial on [-ln 2 / 2, ln 2 / 2].
inline Vec exp_nonpositive(Vec x) {
    const Vec magic = Vec{} + 12582912.0f;  // 1.5 * 2^23: adding it rounds to an integer
    x = larger(x, Vec{} - 87.0f);
    const Vec shifted = x * 1.44269504f + magic;
    const Vec n = shifted - magic;
    Vec r = x - n * 0.693359375f;
    r = r + n * 2.12194440e-4f;
    Vec p = Vec{} + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * r * r + r + 1.0f;
    return (Vec)((Int)p + (((Int)shifted) << 23));
}

// A matrix whose element (r, c) lies at data[r * row + c * column].
struct Matrix {
    const float* data;
    int64_t row, column;
};

// R rows and 2 vectors of lanes of a product; the accumulators stay in registers.
template <int R>
inline void product_block(Matrix a, const float* b, int64_t lanes, int64_t depth, float* out, bool add) {
    Vec sums[R][2];
    for (int r = 0; r < R; ++r)
        for (int v = 0; v < 2; ++v) sums[r][v] = add ? load(out + r * lanes + v * W) : Vec{};
    for (int64_t c = 0; c < depth; ++c) {
        const Vec first = load(b + c * lanes), second = load(b + c * lanes + W);
        const float* x = a.data + c * a.column;
#pragma GCC unroll 8
        for (int r = 0; r < R; ++r) {
            const float s = x[r * a.row];
            sums[r][0] += s * first;
            sums[r][1] += s * second;
        }
    }
    for (int r = 0; r < R; ++r)
        for (int v = 0; v < 2; ++v) store(out + r * lanes + v * W, sums[r][v]);
}

// out (rows, lanes) = a (rows, depth) times b (depth, lanes), or added to it; lanes is a multiple of 2 vectors.
inline void product(Matrix a, int64_t rows, const float* b, int64_t lanes, int64_t depth, float* out, bool add = false) {
    for (int64_t l = 0; l < lanes; l += 2 * W) {
        int64_t r = 0;
        const auto from = [&] { return Matrix{a.data + r * a.row, a.row, a.column}; };
        for (; r + 8 <= rows; r += 8) product_block<8>(from(), b + l, lanes, depth, out + r * lanes + l, add);
        for (; r + 4 <= rows; r += 4) product_block<4>(from(), b + l, lanes, depth, out + r * lanes + l, add);
        for (; r < rows; ++r) product_block<1>(from(), b + l, lanes, depth, out + r * lanes + l, add);
    }
}

// The sizes of a call, and of the blocks of query patches that a chunk is worked off in.
struct Shape {
    int64_t pixels, channels, heads, depth;  // P, C, heads, C / heads
    int64_t kq, kc;                          // query patches and candidates of a chunk
    int64_t per_block, lanes;                // query patches of a block, their pixels rounded up to 2 vectors
    int64_t padded;                          // depth rounded up to 2 vectors

    Shape(int64_t p, int64_t c, int64_t h, int64_t q, int64_t k)
        : pixels(p), channels(c), heads(h), depth(c / h), kq(q), kc(k) {
        per_block = std::min(kq, std::max<int64_t>(1, 2 * W / pixels));
        lanes = up(per_block * pixels);
        padded = up(depth);
    }
    int64_t keys() const { return kc * pixels; }
    int64_t patch() const { return pixels * channels; }
    static int64_t up(int64_t n) { return (n + 2 * W - 1) / (2 * W) * 2 * W; }
};

// The work space of a thread, on cache lines of its own.
struct Scratch {
    float *query_t, *grad_t;         // (depth, lanes): the block's queries, scaled, and the gradients of its outputs
    float *key, *value;              // (keys, padded)
    float *logits, *inner;           // (keys, lanes)
    float* result_t;                 // (depth, lanes)
    float *weight, *pair;            // (kc, lanes): weights of the pairs; products of gradient and pair output
    float* share;                    // (per_block): what the rounds before keep of their weight
    float *query, *grad;             // (lanes, padded)
    float *d_key, *d_value;          // (keys, padded)

    Scratch(const Shape& s, bool backward) {
        const int64_t more = backward ? 1 : 0;
        const int64_t small = s.depth * s.lanes, side = s.keys() * s.padded, block = s.keys() * s.lanes;
        const int64_t pairs = s.kc * s.lanes, rows = s.lanes * s.padded;
        float** places[] = {&query_t, &grad_t, &key,   &value, &logits, &inner, &result_t,
                            &weight,  &pair,   &share, &query, &grad,   &d_key, &d_value};
        const int64_t sizes[] = {small, small * more, side,        side,        block,       block * more, small,
                                 pairs, pairs * more, s.per_block, rows * more, rows * more, side * more,  side * more};
        int64_t total = 0;
        for (int64_t n : sizes) total += (n + 15) / 16 * 16;
        memory_ = static_cast<float*>(std::aligned_alloc(64, total * 4));
        if (!memory_) throw std::bad_alloc();
        std::memset(memory_, 0, total * 4);
        float* next = memory_;
        for (int i = 0; i < 14; ++i) {
            *places[i] = next;
            next += (sizes[i] + 15) / 16 * 16;
        }
    }
    ~Scratch() { std::free(memory_); }
    Scratch(const Scratch&) = delete;
    Scratch& operator=(const Scratch&) = delete;

  private:
    float* memory_;
};

// One round of a call. A patch is a row of P * C numbers; -1 in the tables is an empty place.
template <typename T>
struct Round {
    Shape shape;
    const T *query, *key, *value, *grad;
    const int64_t *queries, *candidates;    // (chunks, kq), (chunks, kc)
    float *out, *total, *top;               // forward: numerator (rows, P * C), sum of weights and maximum (rows, heads)
    const float *norm, *delta;              // backward: what weights are divided by, sum of grad * output (rows, heads)
    float *d_query, *d_key, *d_value;       // (rows, P * C)
    bool paper, first;
};

// A patch's (P, depth) numbers of one head as rows, or as scaled columns.
template <typename T>
inline void take_rows(const T* patch, const Shape& s, float* out) {
    for (int64_t p = 0; p < s.pixels; ++p)
        for (int64_t c = 0; c < s.depth; ++c) out[p * s.padded + c] = to_float(patch[p * s.channels + c]);
}
template <typename T>
inline void take_columns(const T* patch, const Shape& s, float scale, float* out) {
    for (int64_t p = 0; p < s.pixels; ++p)
        for (int64_t c = 0; c < s.depth; ++c) out[c * s.lanes + p] = to_float(patch[p * s.channels + c]) * scale;
}

template <typename T>
void take_candidates(const Round<T>& call, const int64_t* candidates, int64_t head, Scratch& w) {
    const Shape& s = call.shape;
    const int64_t size = s.pixels * s.padded;
    for (int64_t j = 0; j < s.kc; ++j) {
        if (candidates[j] < 0) {
            std::memset(w.key + j * size, 0, size * 4);
            std::memset(w.value + j * size, 0, size * 4);
            continue;
        }
        const int64_t from = candidates[j] * s.patch() + head * s.depth;
        take_rows(call.key + from, s, w.key + j * size);
        take_rows(call.value + from, s, w.value + j * size);
    }
}

// The mean of the scaled inner products of query patch i of the block and candidate j, from their block of logits.
inline float pair_logit(const Scratch& w, const Shape& s, int64_t i, int64_t j) {
    float sum = 0;
    for (int64_t p = 0; p < s.pixels; ++p) sum += w.logits[(j * s.pixels + p) * s.lanes + i * s.pixels + p];
    return sum / s.pixels;
}

inline void spread_weight(Scratch& w, const Shape& s, int64_t i, int64_t j, float value) {
    for (int64_t p = 0; p < s.pixels; ++p) w.weight[j * s.lanes + i * s.pixels + p] = value;
}

// Eq. (8): the softmax over each candidate's pixels, in place; times the pairs' weights where `weigh` is set.
inline void attend(Scratch& w, const Shape& s, bool weigh) {
    for (int64_t j = 0; j < s.kc; ++j)
        for (int64_t l = 0; l < s.lanes; l += W) {
            float* x = w.logits + j * s.pixels * s.lanes + l;
            Vec top = load(x);
            for (int64_t p = 1; p < s.pixels; ++p) top = larger(top, load(x + p * s.lanes));
            Vec sum = Vec{};
            for (int64_t p = 0; p < s.pixels; ++p) {
                const Vec e = exp_nonpositive(load(x + p * s.lanes) - top);
                sum += e;
                store(x + p * s.lanes, e);
            }
            const Vec factor = (weigh ? load(w.weight + j * s.lanes + l) : Vec{} + 1.0f) / sum;
            for (int64_t p = 0; p < s.pixels; ++p) store(x + p * s.lanes, load(x + p * s.lanes) * factor);
        }
}

// Eq. (10) for query patch i of the block, not yet divided by the sum, which goes to the patch's running total.
template <typename T>
void weigh_pairs(const Round<T>& call, const int64_t* candidates, int64_t i, int64_t place, Scratch& w) {
    const Shape& s = call.shape;
    float &total = call.total[place], &top = call.top[place];
    float highest = call.first || call.paper ? -std::numeric_limits<float>::infinity() : top;
    for (int64_t j = 0; j < s.kc && !call.paper; ++j)
        if (candidates[j] >= 0) highest = std::max(highest, pair_logit(w, s, i, j));
    float sum = 0;
    for (int64_t j = 0; j < s.kc; ++j) {
        const float logit = candidates[j] < 0 ? 0 : pair_logit(w, s, i, j);
        const float value = candidates[j] < 0 ? 0 : call.paper ? logit : std::exp(logit - highest);
        spread_weight(w, s, i, j, value);
        sum += value;
    }
    w.share[i] = call.first ? 0 : call.paper ? 1 : std::exp(top - highest);
    total = call.first ? sum : total * w.share[i] + sum;
    top = highest;
}

template <typename T>
void forward_chunk(const Round<T>& call, int64_t chunk, Scratch& w) {
    const Shape& s = call.shape;
    const int64_t *queries = call.queries + chunk * s.kq, *candidates = call.candidates + chunk * s.kc;
    const float scale = 1.0f / std::sqrt(static_cast<float>(s.depth));
    for (int64_t head = 0; head < s.heads; ++head) {
        take_candidates(call, candidates, head, w);
        for (int64_t start = 0; start < s.kq; start += s.per_block) {
            const int64_t count = std::min(s.per_block, s.kq - start);
            const auto each_query = [&](auto&& work) {
                for (int64_t i = 0; i < count; ++i)
                    if (queries[start + i] >= 0) work(i, queries[start + i]);
            };
            each_query([&](int64_t i, int64_t row) {
                take_columns(call.query + row * s.patch() + head * s.depth, s, scale, w.query_t + i * s.pixels);
            });
            product({w.key, s.padded, 1}, s.keys(), w.query_t, s.lanes, s.depth, w.logits);
            each_query([&](int64_t i, int64_t row) { weigh_pairs(call, candidates, i, row * s.heads + head, w); });
            attend(w, s, true);
            product({w.value, 1, s.padded}, s.depth, w.logits, s.lanes, s.keys(), w.result_t);
            each_query([&](int64_t i, int64_t row) {
                float* out = call.out + row * s.patch() + head * s.depth;
                const float* found = w.result_t + i * s.pixels;
                for (int64_t p = 0; p < s.pixels; ++p)
                    for (int64_t c = 0; c < s.depth; ++c) {
                        float& o = out[p * s.channels + c];
                        o = (call.first ? 0 : o * w.share[i]) + found[c * s.lanes + p];
                    }
            });
        }
    }
}

// Queries and gradients of a block; empty places become zero, for they still hold what an earlier block left there.
template <typename T>
void take_block(const Round<T>& call, const int64_t* rows, int64_t count, int64_t head, float scale, Scratch& w) {
    const Shape& s = call.shape;
    for (int64_t i = 0; i < s.per_block; ++i) {
        float *query = w.query + i * s.pixels * s.padded, *grad = w.grad + i * s.pixels * s.padded;
        float *query_t = w.query_t + i * s.pixels, *grad_t = w.grad_t + i * s.pixels;
        if (i >= count || rows[i] < 0) {
            std::memset(query, 0, s.pixels * s.padded * 4);
            std::memset(grad, 0, s.pixels * s.padded * 4);
            for (int64_t c = 0; c < s.depth; ++c) {
                std::memset(query_t + c * s.lanes, 0, s.pixels * 4);
                std::memset(grad_t + c * s.lanes, 0, s.pixels * 4);
            }
            continue;
        }
        const int64_t from = rows[i] * s.patch() + head * s.depth;
        take_rows(call.query + from, s, query);
        take_rows(call.grad + from, s, grad);
        take_columns(call.query + from, s, scale, query_t);
        take_columns(call.grad + from, s, 1.0f, grad_t);
    }
}

// From softmaxes A and G = grad * value^T: logits becomes w A, inner the gradient of the logits but for its diagonal,
// w A (G - rowsum(A G)), pair the row sums.
inline void differentiate_softmax(Scratch& w, const Shape& s) {
    for (int64_t j = 0; j < s.kc; ++j)
        for (int64_t l = 0; l < s.lanes; l += W) {
            float *a = w.logits + j * s.pixels * s.lanes + l, *g = w.inner + j * s.pixels * s.lanes + l;
            Vec sum = Vec{};
            for (int64_t p = 0; p < s.pixels; ++p) sum += load(a + p * s.lanes) * load(g + p * s.lanes);
            store(w.pair + j * s.lanes + l, sum);
            const Vec weight = load(w.weight + j * s.lanes + l);
            for (int64_t p = 0; p < s.pixels; ++p) {
                const Vec weighted = weight * load(a + p * s.lanes);
                store(a + p * s.lanes, weighted);
                store(g + p * s.lanes, weighted * (load(g + p * s.lanes) - sum));
            }
        }
}

// The gradient of query patch i's pair weights, which reaches the diagonals of its blocks of logits.
template <typename T>
void differentiate_weights(const Round<T>& call, const int64_t* candidates, int64_t i, int64_t place, Scratch& w) {
    const Shape& s = call.shape;
    for (int64_t j = 0; j < s.kc; ++j) {
        if (candidates[j] < 0) continue;
        const int64_t first = j * s.lanes + i * s.pixels;
        float sum = 0;
        for (int64_t p = 0; p < s.pixels; ++p) sum += w.pair[first + p];
        const float slope = call.paper ? 1 / call.norm[place] : w.weight[first];
        const float d = (sum - call.delta[place]) * slope / s.pixels;
        for (int64_t p = 0; p < s.pixels; ++p) w.inner[(j * s.pixels + p) * s.lanes + i * s.pixels + p] += d;
    }
}

template <typename T>
void backward_block(const Round<T>& call, const int64_t* rows, int64_t count, const int64_t* candidates, int64_t head,
                    Scratch& w) {
    const Shape& s = call.shape;
    const float scale = 1.0f / std::sqrt(static_cast<float>(s.depth));
    take_block(call, rows, count, head, scale, w);
    product({w.key, s.padded, 1}, s.keys(), w.query_t, s.lanes, s.depth, w.logits);
    product({w.value, s.padded, 1}, s.keys(), w.grad_t, s.lanes, s.depth, w.inner);
    for (int64_t i = 0; i < s.per_block; ++i)
        for (int64_t j = 0; j < s.kc; ++j) {
            const bool there = i < count && rows[i] >= 0 && candidates[j] >= 0;
            const float norm = there ? call.norm[rows[i] * s.heads + head] : 0;
            const float logit = there ? pair_logit(w, s, i, j) : 0;
            spread_weight(w, s, i, j, !there ? 0 : call.paper ? logit / norm : std::exp(logit - norm));
        }
    attend(w, s, false);
    differentiate_softmax(w, s);
    for (int64_t i = 0; i < count; ++i)
        if (rows[i] >= 0) differentiate_weights(call, candidates, i, rows[i] * s.heads + head, w);
    product({w.key, 1, s.padded}, s.depth, w.inner, s.lanes, s.keys(), w.result_t);
    product({w.inner, s.lanes, 1}, s.keys(), w.query, s.padded, s.lanes, w.d_key, true);
    product({w.logits, s.lanes, 1}, s.keys(), w.grad, s.padded, s.lanes, w.d_value, true);
    for (int64_t i = 0; i < count; ++i) {
        if (rows[i] < 0) continue;
        float* out = call.d_query + rows[i] * s.patch() + head * s.depth;
        for (int64_t p = 0; p < s.pixels; ++p)
            for (int64_t c = 0; c < s.depth; ++c)
                out[p * s.channels + c] += w.result_t[c * s.lanes + i * s.pixels + p] * scale;
    }
}

// Writes to the gradients of the chunk's queries and of its candidates: chunks that share a candidate must not meet.
template <typename T>
void backward_chunk(const Round<T>& call, int64_t chunk, Scratch& w) {
    const Shape& s = call.shape;
    const int64_t *queries = call.queries + chunk * s.kq, *candidates = call.candidates + chunk * s.kc;
    const float scale = 1.0f / std::sqrt(static_cast<float>(s.depth));
    for (int64_t head = 0; head < s.heads; ++head) {
        take_candidates(call, candidates, head, w);
        std::memset(w.d_key, 0, s.keys() * s.padded * 4);
        std::memset(w.d_value, 0, s.keys() * s.padded * 4);
        for (int64_t start = 0; start < s.kq; start += s.per_block)
            backward_block(call, queries + start, std::min(s.per_block, s.kq - start), candidates, head, w);
        for (int64_t j = 0; j < s.kc; ++j) {
            if (candidates[j] < 0) continue;
            const int64_t to = candidates[j] * s.patch() + head * s.depth, from = j * s.pixels * s.padded;
            for (int64_t p = 0; p < s.pixels; ++p)
                for (int64_t c = 0; c < s.depth; ++c) {
                    call.d_key[to + p * s.channels + c] += w.d_key[from + p * s.padded + c] * scale;
                    call.d_value[to + p * s.channels + c] += w.d_value[from + p * s.padded + c];
                }
        }
    }
}

}  // namespace kithkin
