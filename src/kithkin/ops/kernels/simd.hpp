// Vectors, and the small products and transpositions that the chunks of the operator are made of.

#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <new>
#include <type_traits>

#ifdef __AVX__
#include <immintrin.h>
#endif

#ifndef KITHKIN_LANES
#define KITHKIN_LANES 8
#endif

namespace kithkin {

constexpr int64_t W = KITHKIN_LANES;  // floats of a vector
typedef float Vec __attribute__((vector_size(4 * KITHKIN_LANES), aligned(4), may_alias));
typedef uint32_t Int __attribute__((vector_size(4 * KITHKIN_LANES), aligned(4), may_alias));
typedef float Quad __attribute__((vector_size(16), aligned(4), may_alias));
typedef uint32_t Bits __attribute__((may_alias));

constexpr std::align_val_t CACHE_LINE{64};
constexpr float LOG2_E = 1.44269504f;

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

// Not templates: as an argument of one, a type loses its alignment of 4.
inline Vec load(const float* x) { return *reinterpret_cast<const Vec*>(x); }
inline Quad load4(const float* x) { return *reinterpret_cast<const Quad*>(x); }
inline void store(float* x, Vec v) { *reinterpret_cast<Vec*>(x) = v; }
inline void store(float* x, Quad v) { *reinterpret_cast<Quad*>(x) = v; }

inline Vec larger(Vec a, Vec b) {
#if KITHKIN_LANES == 16
    return (Vec)_mm512_max_ps((__m512)a, (__m512)b);
#elif defined(__AVX__)
    return (Vec)_mm256_max_ps((__m256)a, (__m256)b);
#else
    return a > b ? a : b;
#endif
}

// x = n + r with n whole and -1/2 <= r <= 1/2: r, and what `raised` takes for n. Without AVX-512 nothing is below -126.
inline Vec split(Vec x, Vec& n) {
#if KITHKIN_LANES == 16
    n = (Vec)_mm512_roundscale_ps((__m512)x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    return x - n;
#else
    const Vec magic = Vec{} + 12582912.0f;  // 1.5 * 2^23: adding it rounds to an integer, which the last bits then are
    x = larger(Vec{} - 126.0f, x);  // in this order NaN stays NaN
    n = x + magic;
    return x - (n - magic);
#endif
}

// y * 2^n for the n of `split`; y is near 1.
inline Vec raised(Vec y, Vec n) {
#if KITHKIN_LANES == 16
    return (Vec)_mm512_scalef_ps((__m512)y, (__m512)n);
#else
    return (Vec)((Int)y + ((Int)n << 23));
#endif
}

// 2^x for x <= 0, within about 2 units in the last place.
inline Vec exp2_nonpositive(Vec x) {
    Vec n;
    const Vec r = split(x, n);
    Vec p = Vec{} + 1.5403530e-4f;
    p = p * r + 1.3333558e-3f;
    p = p * r + 9.6181291e-3f;
    p = p * r + 5.5504109e-2f;
    p = p * r + 2.4022651e-1f;
    p = p * r + 6.9314718e-1f;
    p = p * r + 1.0f;
    return raised(p, n);
}

// How one element of the left factor meets a vector of the right one: both are floats, or both are pairs of bfloat16 along
// the depth, in the bits of a float, whose products are summed in float32.
struct Floats {
    static Vec exp2_nonpositive(Vec x) { return kithkin::exp2_nonpositive(x); }
    static Vec multiply_add(float left, Vec right, Vec sum) { return sum + left * right; }
    static void put(float* to, Vec x) { store(to, x); }
};
#ifdef __AVX512BF16__
struct Pairs {
    // Within 1e-4 of itself: what it is for is rounded to 8 bits.
    static Vec exp2_nonpositive(Vec x) {
        Vec n;
        const Vec r = split(x, n);
        Vec p = Vec{} + 5.5088680e-2f;
        p = p * r + 2.4260405e-1f;
        p = p * r + 6.9327624e-1f;
        p = p * r + 9.9992894e-1f;
        return raised(p, n);
    }
    static Vec multiply_add(float left, Vec right, Vec sum) {
        return (Vec)_mm512_dpbf16_ps((__m512)sum, (__m512bh)_mm512_set1_ps(left), (__m512bh)right);
    }
    // A vector as pairs of neighbours, rounded to nearest even.
    static void put(float* to, Vec x) { _mm256_storeu_si256((__m256i*)to, (__m256i)_mm512_cvtneps_pbh((__m512)x)); }
};
// The pairs (low, high) of two rows of lanes, rounded to nearest even.
inline Vec pairs_of(Vec low, Vec high) {
    alignas(64) static constexpr uint16_t places[32] = {0, 16, 1, 17, 2,  18, 3,  19, 4,  20, 5,  21, 6,  22, 7,  23,
                                                        8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31};
    const __m512i both = (__m512i)_mm512_cvtne2ps_pbh((__m512)high, (__m512)low);
    return (Vec)_mm512_permutexvar_epi16(_mm512_load_si512(places), both);
}
#endif

// Elements of a factor that meet at a time.
template <typename Dot>
constexpr int64_t numbers = std::is_same_v<Dot, Floats> ? 1 : 2;

// The left factor of a product: element (r, d) of part i lies at parts[i][r * row + d * column].
struct Parts {
    const float* const* parts;
    int64_t count, row, column;
};

// What becomes of a product: out = scale * (a b), or out += a b.
struct Into {
    float* out;
    float scale = 1;
    bool add = false;
};

// R rows and V vectors of lanes of a product; the accumulators stay in registers.
template <typename Dot, int R, int V>
inline void product_block(const Parts& a, int64_t offset, const float* b, int64_t lanes, int64_t depth, float* out,
                          const Into& into) {
    Vec sums[R * V];
#pragma GCC unroll 32
    for (int i = 0; i < R * V; ++i) sums[i] = Vec{};
    for (int64_t i = 0; i < a.count; ++i) {
        const float* x = a.parts[i] + offset;
        for (int64_t d = 0; d < depth; ++d, b += lanes, x += a.column) {
            const Vec first = load(b), second = load(b + (V - 1) * W);
#pragma GCC unroll 16
            for (int r = 0; r < R; ++r) {
                const float left = x[r * a.row];
                sums[r * V] = Dot::multiply_add(left, first, sums[r * V]);
                if constexpr (V == 2) sums[r * V + 1] = Dot::multiply_add(left, second, sums[r * V + 1]);
            }
        }
    }
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r)
#pragma GCC unroll 2
        for (int v = 0; v < V; ++v) {
            float* to = out + r * lanes + v * W;
            store(to, into.add ? load(to) + sums[r * V + v] : into.scale * sums[r * V + v]);
        }
}

// As many rows at a time as the registers hold accumulators for.
template <typename Dot, int V>
inline void product_lanes(const Parts& a, int64_t rows, const float* b, int64_t lanes, int64_t depth, float* out,
                          const Into& into) {
    constexpr int MOST = W == 16 ? 12 : 6, FEWER = W == 16 ? 8 : 4;
    for (int64_t r = 0; r < rows;) {
        const int64_t left = rows - r;
        const auto take = [&](auto size) {
            product_block<Dot, decltype(size)::value, V>(a, r * a.row, b, lanes, depth, out + r * lanes, into);
            r += decltype(size)::value;
        };
        if (left >= MOST && left % FEWER) take(std::integral_constant<int, MOST>{});
        else if (left >= FEWER) take(std::integral_constant<int, FEWER>{});
        else if (left >= 4) take(std::integral_constant<int, 4>{});
        else take(std::integral_constant<int, 1>{});
    }
}

// (rows, lanes) = a (rows, depth of each part) times b (depth of all parts, lanes); lanes is a multiple of W.
template <typename Dot>
inline void product(const Parts& a, int64_t rows, const float* b, int64_t lanes, int64_t depth, const Into& into) {
    int64_t l = 0;
    for (; l + 2 * W <= lanes; l += 2 * W) product_lanes<Dot, 2>(a, rows, b + l, lanes, depth, into.out + l, into);
    if (l < lanes) product_lanes<Dot, 1>(a, rows, b + l, lanes, depth, into.out + l, into);
}

inline void add(float* to, const float* x, int64_t n) {
    int64_t i = 0;
    for (; i + W <= n; i += W) store(to + i, load(to + i) + load(x + i));
    for (; i < n; ++i) to[i] += x[i];
}

inline void transpose(Quad (&x)[4]) {
#ifdef __clang__
#define KITHKIN_SHUFFLE(a, b, i, j, k, l) __builtin_shufflevector(a, b, i, j, k, l)
#else
#define KITHKIN_SHUFFLE(a, b, i, j, k, l) __builtin_shuffle(a, b, (__attribute__((vector_size(16))) int32_t){i, j, k, l})
#endif
    const Quad a = KITHKIN_SHUFFLE(x[0], x[1], 0, 4, 1, 5), b = KITHKIN_SHUFFLE(x[2], x[3], 0, 4, 1, 5);
    const Quad c = KITHKIN_SHUFFLE(x[0], x[1], 2, 6, 3, 7), d = KITHKIN_SHUFFLE(x[2], x[3], 2, 6, 3, 7);
    x[0] = KITHKIN_SHUFFLE(a, b, 0, 1, 4, 5), x[1] = KITHKIN_SHUFFLE(a, b, 2, 3, 6, 7);
    x[2] = KITHKIN_SHUFFLE(c, d, 0, 1, 4, 5), x[3] = KITHKIN_SHUFFLE(c, d, 2, 3, 6, 7);
#undef KITHKIN_SHUFFLE
}

// For every element (r, c) of a (rows, columns) matrix: put(out + c * out_row + r, the element), four at a time where they
// fit: `put` takes a pointer and either one float or four neighbours.
template <typename Put>
inline void transposed(const float* x, int64_t row, int64_t rows, int64_t columns, float* out, int64_t out_row, Put put) {
    const int64_t whole_rows = rows / 4 * 4, whole_columns = columns / 4 * 4;
    for (int64_t r = 0; r < whole_rows; r += 4)
        for (int64_t c = 0; c < whole_columns; c += 4) {
            Quad block[4];
            for (int i = 0; i < 4; ++i) block[i] = load4(x + (r + i) * row + c);
            transpose(block);
            for (int i = 0; i < 4; ++i) put(out + (c + i) * out_row + r, block[i]);
        }
    for (int64_t r = 0; r < rows; ++r)
        for (int64_t c = r < whole_rows ? whole_columns : 0; c < columns; ++c) put(out + c * out_row + r, x[r * row + c]);
}

}  // namespace kithkin
