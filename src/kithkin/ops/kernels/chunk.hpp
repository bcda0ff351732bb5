// One chunk of Eqs. (8)-(10) on a CPU, forward and backward.
//
// Lanes are the pixels of a few query patches, rows are the pixels of the candidates. A softmax over the P pixels of a
// candidate then runs down P rows and needs no sum across lanes, and the inner product of two patches (Eq. 10) is the
// trace of their P x P block of logits. A block of logits stays in the first-level cache; no other logits exist.
// Logits are kept in units of log 2, so that the exponentials are powers of two. Sums are float32; with `Pairs` the factors
// of the products are bfloat16, else everything is computed in float32.

#pragma once

#include <limits>
#include <vector>

#include "simd.hpp"

namespace kithkin {

inline int64_t up(int64_t n) { return (n + W - 1) / W * W; }

// The sizes of a call. The forward pass takes a block of query patches and all candidates at a time, the backward pass all
// query patches and one candidate.
struct Shape {
    int64_t pixels, channels, heads, depth;  // P, C, heads, C / heads
    int64_t kq, kc;                          // query patches and candidates of a chunk
    int64_t per_block, lanes;                // query patches that are worked off together, their pixels rounded up to vectors
    int64_t padded, pairs;                   // depth, and candidates or queries, rounded up to vectors

    Shape(int64_t p, int64_t c, int64_t h, int64_t q, int64_t k, bool backward)
        : pixels(p), channels(c), heads(h), depth(c / h), kq(q), kc(k), padded(up(c / h)), pairs(up(std::max(q, k))) {
        per_block = backward ? kq : std::min(kq, std::max<int64_t>(1, 2 * W / pixels));
        lanes = up(per_block * pixels);
    }
    int64_t patch() const { return pixels * channels; }
    float scale() const { return 1.0f / std::sqrt(static_cast<float>(depth)); }
};

// The work space of a thread, on cache lines of its own. `keys` are the pixels of the candidates worked off together.
struct Scratch {
    float *query_t, *grad_t;         // (depth, lanes): queries, scaled, and the gradients of their outputs
    float *logits, *inner;           // (keys, lanes)
    float* result_t;                 // (depth, lanes): sums of weighted values, or gradients of the queries
    float *weight, *pair;            // (candidates, lanes): weights of the pairs; products of gradient and pair output
    float* pair_logit;               // (per_block, pairs)
    float* share;                    // (per_block): what the rounds before keep of their weight
    float *query, *grad;             // (lanes, padded)
    float *d_key, *d_value;          // (P, padded)
    float *key, *value;              // (kc, P, depth): candidates of another type than float, or as pairs of pixels
    float* single;                   // (P, depth): a patch of another type than float
    float* attention;                // (keys / 2, lanes): the softmaxes as pairs, of pixels or (keys, lanes / 2) of lanes
    const float **keys, **values;    // (kc): where each candidate's numbers of this head lie
    int64_t *queries, *candidates;   // (kq), (kc): rows of patches, -1 where a place is empty
    int64_t key_pitch, value_pitch;  // from pixel (or pair of pixels) to the next

    Scratch(const Shape& s, bool backward, bool converts) {
        const int64_t more = backward ? 1 : 0, together = backward ? 1 : s.kc, one = s.pixels * s.depth;
        const int64_t small = s.depth * s.lanes, side = s.pixels * s.padded * more, block = together * s.pixels * s.lanes;
        const int64_t pairs = together * s.lanes, rows = s.lanes * s.padded * more, copy = converts ? s.kc * one : 0;
        float** places[] = {&query_t, &grad_t, &logits,  &inner, &result_t, &weight, &pair, &pair_logit, &share, &query,
                            &grad,    &d_key,  &d_value, &key,   &value,    &single, &attention};
        const int64_t sizes[] = {small, small * more, block, block * more, small, pairs, pairs * more, s.per_block * s.pairs,
                                 s.per_block, rows, rows, side, side, copy, copy, one, converts ? block / 2 : 0};
        const int64_t wide = 2 * (3 * s.kc + s.kq);
        int64_t total = (wide + 15) / 16 * 16;
        for (int64_t n : sizes) total += (n + 15) / 16 * 16;
        memory_ = static_cast<float*>(::operator new(total * 4, CACHE_LINE));
        std::memset(memory_, 0, total * 4);
        float* next = memory_;
        for (size_t i = 0; i < sizeof places / sizeof *places; ++i) {
            *places[i] = next;
            next += (sizes[i] + 15) / 16 * 16;
        }
        keys = reinterpret_cast<const float**>(next);
        values = keys + s.kc;
        candidates = reinterpret_cast<int64_t*>(values + s.kc);
        queries = candidates + s.kc;
    }
    ~Scratch() { ::operator delete(memory_, CACHE_LINE); }
    Scratch(const Scratch&) = delete;
    Scratch& operator=(const Scratch&) = delete;

  private:
    float* memory_;
};

// One round of a call. A patch is P pixels of C numbers, `pitch` apart in what comes in and C apart in what goes out.
template <typename T>
struct Round {
    Shape shape;
    int64_t pitch;
    const T *query, *key, *value;
    const T* grad;                    // not pitched
    float *out, *total, *top;         // forward: the sum of weighted values (rows, P * C), of weights and maximum (rows, heads)
    const float *norm, *delta;        // backward: what weights are divided by, sum of grad * output (rows, heads)
    float *d_query, *d_key, *d_value; // (rows, P * C)
    bool paper, first, last;
};

// Patches lie anywhere in memory. Those that the next chunk is the first to need are asked for a few lines at a time while
// this one is worked off: at once, they would be more than a core has in flight, and it would wait for them.
class Ahead {
  public:
    void clear() { patches_.clear(), each_ = 0; }
    // A patch of `pixels`, `pitch` bytes apart, `bytes` of each.
    void add(const void* patch, int64_t pixels, int64_t pitch, int64_t bytes) {
        const char* start = static_cast<const char*>(patch);
        if (pitch == bytes) patches_.push_back({start, 0, 1, pixels * bytes});
        else patches_.push_back({start, pitch, pixels, bytes});
    }
    // From now on: all that was added, in so many steps.
    void begin(int64_t steps) {
        next_ = patches_.data(), end_ = next_ + patches_.size(), at_ = 0, pixel_ = 0;
        int64_t lines = 0;
        for (const Patch& patch : patches_) lines += patch.pixels * ((patch.bytes + 63) / 64);
        each_ = (lines + steps - 1) / steps;
    }
    void ask() {
        for (int64_t left = each_; left > 0 && next_ != end_; --left) {
            __builtin_prefetch(next_->start + pixel_ * next_->pitch + at_, 0, 2);
            if ((at_ += 64) < next_->bytes) continue;
            at_ = 0;
            if (++pixel_ == next_->pixels) pixel_ = 0, ++next_;
        }
    }

  private:
    struct Patch {
        const char* start;
        int64_t pitch, pixels, bytes;
    };
    std::vector<Patch> patches_;
    const Patch *next_ = nullptr, *end_ = nullptr;
    int64_t at_ = 0, pixel_ = 0, each_ = 0;
};

// A patch of one head as floats: where it lies, or a copy.
inline const float* floats(const float* patch, const Shape&, int64_t pitch, float*, int64_t& new_pitch) {
    new_pitch = pitch;
    return patch;
}
inline const float* floats(const bfloat16* patch, const Shape& s, int64_t pitch, float* copy, int64_t& new_pitch) {
    for (int64_t p = 0; p < s.pixels; ++p)
        for (int64_t c = 0; c < s.depth; ++c) copy[p * s.depth + c] = to_float(patch[p * pitch + c]);
    new_pitch = s.depth;
    return copy;
}

#ifdef __AVX512BF16__
// The pairs of two pixels, channel by channel: (P / 2, depth), `row` apart.
inline void pair_pixels(const bfloat16* patch, const Shape& s, int64_t pitch, float* out, int64_t row) {
    auto* to = reinterpret_cast<Bits*>(out);
    for (int64_t p = 0; p < s.pixels; p += 2, to += row) {
        const bfloat16 *low = patch + p * pitch, *high = low + pitch;
        for (int64_t c = 0; c < s.depth; ++c) to[c] = low[c].bits | static_cast<uint32_t>(high[c].bits) << 16;
    }
}
#endif

// What `keys_times` multiplies lies in `keys`, what `times_keys` does in `values`; the backward pass multiplies both ways, and
// has the keys' pairs of pixels in `key`.
template <typename Dot, bool BACKWARD = false, typename T>
void find_candidates(const Round<T>& call, int64_t head, Scratch& w) {
    const Shape& s = call.shape;
    const int64_t size = s.pixels * s.depth;
    for (int64_t j = 0; j < s.kc; ++j) {
        if (w.candidates[j] < 0) continue;
        const int64_t from = w.candidates[j] * s.pixels * call.pitch + head * s.depth;
        if constexpr (std::is_same_v<Dot, Floats>) {
            w.keys[j] = floats(call.key + from, s, call.pitch, w.key + j * size, w.key_pitch);
            w.values[j] = floats(call.value + from, s, call.pitch, w.value + j * size, w.value_pitch);
        } else {
            w.keys[j] = reinterpret_cast<const float*>(call.key + from);  // pairs of channels as they lie
            w.key_pitch = call.pitch / 2;
            if constexpr (BACKWARD) {
                w.values[j] = reinterpret_cast<const float*>(call.value + from), w.value_pitch = call.pitch / 2;
                pair_pixels(call.key + from, s, call.pitch, w.key + j * size / 2, s.depth);
            } else {
                w.values[j] = w.value + j * size / 2, w.value_pitch = s.depth;
                pair_pixels(call.value + from, s, call.pitch, w.value + j * size / 2, s.depth);
            }
        }
    }
}

// Products with the candidates, each (P, `pitch` apart); an empty place counts as a patch of zeros. `depth` is that of a dot
// product in elements of the factors: floats, or pairs.
template <typename Dot>
void keys_times(const Shape& s, const Scratch& w, const float* const* patches, int64_t pitch, int64_t depth, const float* b,
                Into into, Ahead& ahead) {
    for (int64_t j = 0; j < s.kc; ++j) {
        ahead.ask();
        float* block = into.out + j * s.pixels * s.lanes;
        if (w.candidates[j] < 0) std::memset(block, 0, s.pixels * s.lanes * 4);
        else product<Dot>(Parts{patches + j, 1, pitch, 1}, s.pixels, b, s.lanes, depth, Into{block, into.scale});
    }
}
template <typename Dot>
void times_keys(const Shape& s, const Scratch& w, const float* const* patches, int64_t pitch, int64_t depth, const float* b,
                Into into) {
    for (int64_t j = 0; j < s.kc;) {
        int64_t end = j;
        while (end < s.kc && w.candidates[end] >= 0) ++end;
        if (end > j) {
            product<Dot>(Parts{patches + j, end - j, 1, pitch}, s.depth, b + j * depth * s.lanes, s.lanes, depth, into);
            into.add = true;
        }
        j = end + 1;
    }
}

struct Assign {
    float factor;
    void operator()(float* to, float x) const { *to = x * factor; }
    void operator()(float* to, Quad x) const { store(to, x * factor); }
};
struct Move {
    void operator()(float* to, float x) const { std::memcpy(to, &x, 4); }
    void operator()(float* to, Quad x) const { store(to, x); }
};
struct Add {
    float factor;
    void operator()(float* to, float x) const { *to += x * factor; }
    void operator()(float* to, Quad x) const { store(to, load4(to) + x * factor); }
};
struct Combine {
    float share, factor;
    void operator()(float* to, float x) const { *to = (*to * share + x) * factor; }
    void operator()(float* to, Quad x) const { store(to, (load4(to) * share + x) * factor); }
};

// A patch's (P, depth) numbers of one head as scaled columns.
template <typename T>
inline void take_columns(const T* patch, const Shape& s, int64_t pitch, float scale, Scratch& w, float* out) {
    const float* rows = floats(patch, s, pitch, w.single, pitch);
    transposed(rows, pitch, s.pixels, s.depth, out, s.lanes, Assign{scale});
}
inline void take_rows(const float* patch, const Shape& s, int64_t pitch, float* out) {
    for (int64_t p = 0; p < s.pixels; ++p) std::memcpy(out + p * s.padded, patch + p * pitch, s.depth * 4);
}
inline void take_rows(const bfloat16* patch, const Shape& s, int64_t pitch, float* out) {
    for (int64_t p = 0; p < s.pixels; ++p)
        for (int64_t c = 0; c < s.depth; ++c) out[p * s.padded + c] = to_float(patch[p * pitch + c]);
}

// For query patch i of the block, the mean scaled inner product with each candidate: the traces of their blocks of logits.
inline void find_pair_logits(const Shape& s, int64_t i, Scratch& w) {
    float* found = w.pair_logit + i * s.pairs;
    const float* logits = w.logits + i * s.pixels;
    for (int64_t j = 0; j < s.kc; ++j) found[j] = logits[j * s.pixels * s.lanes];
    for (int64_t p = 1; p < s.pixels; ++p)
        for (int64_t j = 0; j < s.kc; ++j) found[j] += logits[(j * s.pixels + p) * s.lanes + p];
    for (int64_t j = 0; j < s.kc; ++j) found[j] /= s.pixels;
}

inline void spread_weight(Scratch& w, const Shape& s, int64_t i, int64_t j, float value) {
    float* to = w.weight + j * s.lanes + i * s.pixels;
    for (int64_t p = 0; p < s.pixels; ++p) to[p] = value;
}

// The largest of n rows, by several chains that need not wait for each other.
template <int P>
inline Vec softmax_top(const float* x, int64_t n, int64_t lanes) {
    constexpr int64_t CHAINS = P && P % 4 == 0 ? 4 : 1;
    Vec tops[CHAINS];
    for (int64_t p = 0; p < CHAINS; ++p) tops[p] = load(x + p * lanes);
#pragma GCC unroll 16
    for (int64_t p = CHAINS; p < n; ++p) tops[p % CHAINS] = larger(tops[p % CHAINS], load(x + p * lanes));
    for (int64_t p = 1; p < CHAINS; ++p) tops[0] = larger(tops[0], tops[p]);
    return tops[0];
}

// Eq. (8): the softmax over each candidate's pixels, times the pairs' weights: in place, or to `attention` as pairs of
// pixels. With P known to the compiler the pixels stay in registers.
template <typename Dot, int P>
inline void attend_lane(float* x, const float* weight, int64_t pixels, int64_t lanes, float* out) {
    const int64_t n = P ? P : pixels;
    const auto at = [&](int64_t p) { return x + p * lanes; };
    Vec e[P ? P : 1];
    const Vec top = softmax_top<P>(x, n, lanes);
    Vec total[2] = {};
#pragma GCC unroll 16
    for (int64_t p = 0; p < n; ++p) {
        const Vec found = Dot::exp2_nonpositive(load(at(p)) - top);
        total[p % 2] += found;
        if constexpr (P > 0) e[p] = found;
        else store(at(p), found);
    }
    const Vec factor = load(weight) / (total[0] + total[1]);
    const auto result = [&](int64_t p) { return (P ? e[P ? p : 0] : load(at(p))) * factor; };
    if constexpr (std::is_same_v<Dot, Floats>) {
#pragma GCC unroll 16
        for (int64_t p = 0; p < n; ++p) store(out + p * lanes, result(p));
    } else {
#pragma GCC unroll 8
        for (int64_t p = 0; p < n; p += 2) store(out + p / 2 * lanes, pairs_of(result(p), result(p + 1)));
    }
}

template <typename Dot>
void attend(Scratch& w, const Shape& s, Ahead& ahead) {
    constexpr bool in_place = std::is_same_v<Dot, Floats>;
    for (int64_t j = 0; j < s.kc; ++j) {
        ahead.ask();
        for (int64_t l = 0; l < s.lanes; l += W) {
            float* x = w.logits + j * s.pixels * s.lanes + l;
            float* out = in_place ? x : w.attention + j * s.pixels / 2 * s.lanes + l;
            const float* weight = w.weight + j * s.lanes + l;
            if (s.pixels == 16) attend_lane<Dot, 16>(x, weight, 16, s.lanes, out);
            else attend_lane<Dot, 0>(x, weight, s.pixels, s.lanes, out);
        }
    }
}

// Eq. (10) for query patch i of the block, not yet divided by the sum, which goes to the patch's running total.
template <typename T>
void weigh_pairs(const Round<T>& call, int64_t i, int64_t place, Scratch& w) {
    const Shape& s = call.shape;
    float &total = call.total[place], &top = call.top[place], *weight = w.pair_logit + i * s.pairs;
    find_pair_logits(s, i, w);
    float highest = call.first ? -std::numeric_limits<float>::infinity() : top;
    if (!call.paper) {
        for (int64_t j = 0; j < s.kc; ++j)
            if (w.candidates[j] >= 0) highest = std::max(highest, weight[j]);
        for (int64_t j = 0; j < s.kc; j += W) store(weight + j, exp2_nonpositive(load(weight + j) - highest));
    }
    float sum = 0;
    for (int64_t j = 0; j < s.kc; ++j) {
        const float value = w.candidates[j] < 0 ? 0 : weight[j];
        spread_weight(w, s, i, j, value);
        sum += value;
    }
    w.share[i] = call.first ? 0 : call.paper ? 1 : std::exp2(top - highest);
    total = call.first ? sum : total * w.share[i] + sum;
    top = highest;
}

template <typename Dot, typename T>
void forward_chunk(const Round<T>& call, Scratch& w, Ahead& ahead) {
    const Shape& s = call.shape;
    const float scale = s.scale() * LOG2_E;
    constexpr bool pairs = !std::is_same_v<Dot, Floats>;
    for (int64_t head = 0; head < s.heads; ++head) {
        find_candidates<Dot>(call, head, w);
        for (int64_t start = 0; start < s.kq; start += s.per_block) {
            const int64_t count = std::min(s.per_block, s.kq - start);
            const auto each_query = [&](auto&& work) {
                for (int64_t i = 0; i < count; ++i)
                    if (w.queries[start + i] >= 0) work(i, w.queries[start + i]);
            };
            each_query([&](int64_t i, int64_t row) {
                const T* patch = call.query + row * s.pixels * call.pitch + head * s.depth;
                float* to = w.query_t + i * s.pixels;
                if constexpr (pairs) {
                    const auto* rows = reinterpret_cast<const float*>(patch);
                    transposed(rows, call.pitch / 2, s.pixels, s.depth / 2, to, s.lanes, Move{});
                } else {
                    take_columns(patch, s, call.pitch, scale, w, to);
                }
            });
            const int64_t depth = pairs ? s.depth / 2 : s.depth, pixels = pairs ? s.pixels / 2 : s.pixels;
            keys_times<Dot>(s, w, w.keys, w.key_pitch, depth, w.query_t, Into{w.logits, pairs ? scale : 1}, ahead);
            each_query([&](int64_t i, int64_t row) { weigh_pairs(call, i, row * s.heads + head, w); });
            attend<Dot>(w, s, ahead);
            times_keys<Dot>(s, w, w.values, w.value_pitch, pixels, pairs ? w.attention : w.logits, Into{w.result_t});
            each_query([&](int64_t i, int64_t row) {
                float* out = call.out + row * s.patch() + head * s.depth;
                const float factor = call.last ? 1 / call.total[row * s.heads + head] : 1;
                const float* found = w.result_t + i * s.pixels;
                if (call.first) transposed(found, s.lanes, s.depth, s.pixels, out, s.channels, Assign{factor});
                else transposed(found, s.lanes, s.depth, s.pixels, out, s.channels, Combine{w.share[i], factor});
            });
        }
    }
}

// The queries of a chunk and the gradients of their outputs; empty places become zero, for they still hold what an earlier
// chunk left there.
template <typename Dot, typename T>
void take_queries(const Round<T>& call, int64_t head, Scratch& w) {
    const Shape& s = call.shape;
    constexpr int64_t each = numbers<Dot>;
    for (int64_t i = 0; i < s.kq; ++i) {
        const int64_t first = i * s.pixels / each * s.padded;
        float *query = w.query + first, *grad = w.grad + first;
        float *query_t = w.query_t + i * s.pixels, *grad_t = w.grad_t + i * s.pixels;
        if (w.queries[i] < 0) {
            std::memset(query, 0, s.pixels / each * s.padded * 4);
            std::memset(grad, 0, s.pixels / each * s.padded * 4);
            for (int64_t c = 0; c < s.depth / each; ++c) {
                std::memset(query_t + c * s.lanes, 0, s.pixels * 4);
                std::memset(grad_t + c * s.lanes, 0, s.pixels * 4);
            }
            continue;
        }
        const T* from_query = call.query + w.queries[i] * s.pixels * call.pitch + head * s.depth;
        const T* from_grad = call.grad + w.queries[i] * s.patch() + head * s.depth;
        if constexpr (std::is_same_v<Dot, Floats>) {
            take_rows(from_query, s, call.pitch, query);
            take_rows(from_grad, s, s.channels, grad);
            take_columns(from_query, s, call.pitch, s.scale() * LOG2_E, w, query_t);
            take_columns(from_grad, s, s.channels, 1.0f, w, grad_t);
        } else {
            pair_pixels(from_query, s, call.pitch, query, s.padded);
            pair_pixels(from_grad, s, s.channels, grad, s.padded);
            const auto columns = [&](const T* x, int64_t pitch, float* out) {
                transposed(reinterpret_cast<const float*>(x), pitch / 2, s.pixels, s.depth / 2, out, s.lanes, Move{});
            };
            columns(from_query, call.pitch, query_t);
            columns(from_grad, s.channels, grad_t);
        }
    }
}

// From logits and G = grad * value^T, with A the softmaxes: w A goes to `attention`, where the logits are or, as pairs of
// lanes, elsewhere; inner becomes the gradient of the logits but for its diagonal, w A (G - rowsum(A G)), pair the row sums.
template <typename Dot, int P>
inline void differentiate_lane(float* x, float* g, const float* weight, float* pair, float* attention, int64_t pixels,
                               int64_t lanes) {
    const int64_t n = P ? P : pixels;
    Vec e[P ? P : 1];
    const Vec top = softmax_top<P>(x, n, lanes);
    Vec total[2] = {}, products[2] = {};
#pragma GCC unroll 16
    for (int64_t p = 0; p < n; ++p) {
        const Vec found = Dot::exp2_nonpositive(load(x + p * lanes) - top);
        total[p % 2] += found;
        products[p % 2] += found * load(g + p * lanes);
        if constexpr (P > 0) e[p] = found;
        else store(x + p * lanes, found);
    }
    const Vec scale = 1.0f / (total[0] + total[1]), mean = (products[0] + products[1]) * scale;
    store(pair, mean);
    const Vec factor = load(weight) * scale;
#pragma GCC unroll 16
    for (int64_t p = 0; p < n; ++p) {
        const Vec weighted = (P ? e[P ? p : 0] : load(x + p * lanes)) * factor;
        Dot::put(attention + p * lanes / numbers<Dot>, weighted);
        store(g + p * lanes, weighted * (load(g + p * lanes) - mean));
    }
}

template <typename Dot>
void differentiate_softmax(Scratch& w, const Shape& s) {
    for (int64_t l = 0; l < s.lanes; l += W) {
        float *x = w.logits + l, *g = w.inner + l, *pair = w.pair + l;
        float* attention = numbers<Dot> == 1 ? x : w.attention + l / 2;
        if (s.pixels == 16) differentiate_lane<Dot, 16>(x, g, w.weight + l, pair, attention, 16, s.lanes);
        else differentiate_lane<Dot, 0>(x, g, w.weight + l, pair, attention, s.pixels, s.lanes);
    }
}

#ifdef __AVX512BF16__
// (P, lanes) numbers as pairs of pixels, (P / 2, lanes), and of lanes, (P, lanes / 2).
inline void pair_both_ways(const float* x, const Shape& s, float* of_pixels, float* of_lanes) {
    for (int64_t p = 0; p < s.pixels; p += 2)
        for (int64_t l = 0; l < s.lanes; l += W) {
            const Vec low = load(x + p * s.lanes + l), high = load(x + (p + 1) * s.lanes + l);
            store(of_pixels + p / 2 * s.lanes + l, pairs_of(low, high));
            Pairs::put(of_lanes + (p * s.lanes + l) / 2, low);
            Pairs::put(of_lanes + ((p + 1) * s.lanes + l) / 2, high);
        }
}
#endif

// The sum over a candidate's pixels and the same pixel of each query patch: of rows of lanes, the traces of blocks.
inline void sum_of_each_query(const float* x, int64_t step, const Shape& s, float* found) {
    for (int64_t i = 0; i < s.kq; ++i) found[i] = x[i * s.pixels];
    for (int64_t p = 1; p < s.pixels; ++p)
        for (int64_t i = 0; i < s.kq; ++i) found[i] += x[i * s.pixels + p * step];
}

// The weights of one candidate in each query patch's output, as the forward pass found them; 0 where there is no such patch.
template <typename T>
void weigh_pairs_again(const Round<T>& call, int64_t head, Scratch& w) {
    const Shape& s = call.shape;
    float* weight = w.pair_logit;
    sum_of_each_query(w.logits, s.lanes + 1, s, weight);
    for (int64_t i = 0; i < s.kq; ++i) {
        const float norm = w.queries[i] < 0 ? 1 : call.norm[w.queries[i] * s.heads + head], logit = weight[i] / s.pixels;
        weight[i] = call.paper ? logit / norm : logit - norm;
    }
    if (!call.paper)
        for (int64_t i = 0; i < s.kq; i += W) store(weight + i, exp2_nonpositive(load(weight + i)));
    for (int64_t i = 0; i < s.kq; ++i) spread_weight(w, s, i, 0, w.queries[i] < 0 ? 0 : weight[i]);
}

// The gradient of the pairs' weights, which reaches the diagonals of their blocks of logits.
template <typename T>
void differentiate_weights(const Round<T>& call, int64_t head, Scratch& w) {
    const Shape& s = call.shape;
    float* sum = w.pair_logit;
    sum_of_each_query(w.pair, 1, s, sum);
    for (int64_t i = 0; i < s.kq; ++i) {
        if (w.queries[i] < 0) continue;
        const int64_t place = w.queries[i] * s.heads + head, first = i * s.pixels;
        const float slope = call.paper ? LOG2_E / call.norm[place] : w.weight[first];
        const float d = (sum[i] - call.delta[place]) * slope / s.pixels;
        for (int64_t p = 0; p < s.pixels; ++p) w.inner[first + p * (s.lanes + 1)] += d;
    }
}

// One candidate's share in the gradients of the chunk's queries, and the queries' in its own.
template <typename Dot, typename T>
void backward_candidate(const Round<T>& call, int64_t j, int64_t head, Scratch& w, Ahead& ahead) {
    const Shape& s = call.shape;
    constexpr int64_t each = numbers<Dot>;
    const auto multiply = [&](const float* a, int64_t row, int64_t column, int64_t rows, const float* b, int64_t lanes,
                              int64_t depth, Into into) {
        ahead.ask();
        product<Dot>(Parts{&a, 1, row, column}, rows, b, lanes, depth / each, into);
    };
    const float scale = each == 1 ? 1 : s.scale() * LOG2_E;  // else the queries are scaled
    multiply(w.keys[j], w.key_pitch, 1, s.pixels, w.query_t, s.lanes, s.depth, Into{w.logits, scale});
    multiply(w.values[j], w.value_pitch, 1, s.pixels, w.grad_t, s.lanes, s.depth, Into{w.inner});
    weigh_pairs_again(call, head, w);
    differentiate_softmax<Dot>(w, s);
    differentiate_weights(call, head, w);
    const float *attention = w.logits, *slopes = w.inner, *slopes_t = w.inner, *key_t = w.keys[j];
    int64_t key_column = w.key_pitch;
#ifdef __AVX512BF16__
    if constexpr (each == 2) {
        float *of_pixels = w.logits, *of_lanes = of_pixels + s.pixels * s.lanes / 2;  // the logits are not needed any more
        pair_both_ways(w.inner, s, of_pixels, of_lanes);
        attention = w.attention, slopes = of_pixels, slopes_t = of_lanes;
        key_t = w.key + j * s.pixels * s.depth / 2, key_column = s.depth;
    }
#endif
    multiply(key_t, 1, key_column, s.depth, slopes, s.lanes, s.pixels, Into{w.result_t, 1, true});
    multiply(slopes_t, s.lanes / each, 1, s.pixels, w.query, s.padded, s.lanes, Into{w.d_key, s.scale()});
    multiply(attention, s.lanes / each, 1, s.pixels, w.grad, s.padded, s.lanes, Into{w.d_value});
    const int64_t to = w.candidates[j] * s.patch() + head * s.depth;
    for (int64_t p = 0; p < s.pixels; ++p) {
        add(call.d_key + to + p * s.channels, w.d_key + p * s.padded, s.depth);
        add(call.d_value + to + p * s.channels, w.d_value + p * s.padded, s.depth);
    }
}

// Writes to the gradients of the chunk's queries and of its candidates: chunks that share a candidate must not meet.
template <typename Dot, typename T>
void backward_chunk(const Round<T>& call, Scratch& w, Ahead& ahead) {
    const Shape& s = call.shape;
    for (int64_t head = 0; head < s.heads; ++head) {
        find_candidates<Dot, true>(call, head, w);
        take_queries<Dot>(call, head, w);
        std::memset(w.result_t, 0, s.depth * s.lanes * 4);
        for (int64_t j = 0; j < s.kc; ++j)
            if (w.candidates[j] >= 0) backward_candidate<Dot>(call, j, head, w, ahead);
        for (int64_t i = 0; i < s.kq; ++i) {
            if (w.queries[i] < 0) continue;
            float* out = call.d_query + w.queries[i] * s.patch() + head * s.depth;
            transposed(w.result_t + i * s.pixels, s.lanes, s.depth, s.pixels, out, s.channels, Add{s.scale()});
        }
    }
}

}  // namespace kithkin
