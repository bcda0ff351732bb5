// Products of pixels with the matrix of a linear layer, and LayerNorm, over pixels of C channels each.
//
// Lanes are channels. The last vector of a row overlaps the one before it where C is no multiple of W, so C must be at
// least W, and what is stored may be stored twice: no product adds to what it finds.

#pragma once

#include <utility>
#include <vector>

#include "simd.hpp"

namespace kithkin {

inline int64_t vectors(int64_t channels) { return (channels + W - 1) / W; }
inline int64_t vector_at(int64_t v, int64_t channels) { return std::min(v * W, channels - W); }

// Floats that begin at a cache line, not set to anything.
struct Aligned {
    explicit Aligned(int64_t count) : memory_(static_cast<float*>(::operator new(count * 4, CACHE_LINE))) {}
    ~Aligned() { ::operator delete(memory_, CACHE_LINE); }
    Aligned(Aligned&& other) noexcept : memory_(std::exchange(other.memory_, nullptr)) {}
    Aligned(const Aligned&) = delete;
    Aligned& operator=(const Aligned&) = delete;
    float* at(int64_t i) const { return memory_ + i; }

  private:
    float* memory_;
};

// Element (r, d) of a left factor lies at x[r * row + d * column].
struct Factor {
    const float* x;
    int64_t row, column;
};

// R rows and V vectors of a product; put(row, lane, sum) takes them.
template <int R, int V, typename Put>
inline void dense_block(Factor a, int64_t first, const float* b, int64_t pitch, const int64_t* lanes, int64_t depth, Put put) {
    Vec sums[R * V];
#pragma GCC unroll 32
    for (int i = 0; i < R * V; ++i) sums[i] = Vec{};
    const float* x = a.x + first * a.row;
    for (int64_t d = 0; d < depth; ++d, b += pitch, x += a.column) {
        Vec right[V];
#pragma GCC unroll 4
        for (int v = 0; v < V; ++v) right[v] = load(b + lanes[v]);
#pragma GCC unroll 16
        for (int r = 0; r < R; ++r) {
            const float left = x[r * a.row];
#pragma GCC unroll 4
            for (int v = 0; v < V; ++v) sums[r * V + v] += left * right[v];
        }
    }
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
        for (int v = 0; v < V; ++v) put(first + r, lanes[v], sums[r * V + v]);
}

// The product of a (rows, depth) and b (depth, channels), whose rows are `pitch` apart.
template <typename Put>
inline void dense(Factor a, int64_t rows, const float* b, int64_t pitch, int64_t channels, int64_t depth, Put put) {
    constexpr int R = W == 16 ? 8 : 4;
    const int64_t count = vectors(channels);
    for (int64_t v = 0; v < count;) {
        const int64_t left = count - v, taken = left == 4 ? 2 : std::min<int64_t>(left, 3);
        int64_t lanes[3];
        for (int64_t i = 0; i < taken; ++i) lanes[i] = vector_at(v + i, channels);
        const auto columns = [&](auto size) {
            constexpr int V = decltype(size)::value;
            int64_t r = 0;
            for (; r + R <= rows; r += R) dense_block<R, V>(a, r, b, pitch, lanes, depth, put);
            if (r < rows && rows > R) dense_block<R, V>(a, rows - R, b, pitch, lanes, depth, put);
            else
                for (; r < rows; ++r) dense_block<1, V>(a, r, b, pitch, lanes, depth, put);
        };
        if (taken == 3) columns(std::integral_constant<int, 3>{});
        else if (taken == 2) columns(std::integral_constant<int, 2>{});
        else columns(std::integral_constant<int, 1>{});
        v += taken;
    }
}

// The matrix of a linear layer (outputs, inputs), turned: lanes are outputs.
inline std::vector<float> turned(const float* weight, int64_t outputs, int64_t inputs) {
    std::vector<float> found(outputs * inputs);
    transposed(weight, inputs, outputs, inputs, found.data(), outputs, [](float* to, auto x) {
        if constexpr (std::is_same_v<decltype(x), float>) *to = x;
        else store(to, x);
    });
    return found;
}

inline float sum_of(Vec x) {
#if KITHKIN_LANES == 16
    return _mm512_reduce_add_ps((__m512)x);
#else
    float sum = 0;
    for (int64_t i = 0; i < W; ++i) sum += x[i];
    return sum;
#endif
}

// A pixel's vectors: each(v, lane, which of its lanes no earlier vector holds, as ones and zeros).
struct Lanes {
    int64_t channels;
    Vec last;  // the ones and zeros of the last vector

    explicit Lanes(int64_t c) : channels(c) {
        for (int64_t i = 0; i < W; ++i) last[i] = i >= vectors(c) * W - c;
    }
    template <typename Each>
    void each(Each each) const {
        const int64_t count = vectors(channels);
        for (int64_t v = 0; v < count - 1; ++v) each(v * W, Vec{} + 1.0f);
        each(channels - W, last);
    }
};

// LayerNorm: a pixel's mean is taken away and it is divided by its deviation.
struct Norm {
    const float *weight, *bias;
    float epsilon;
    Lanes lanes;

    struct Statistics {
        float mean, factor;
    };
    Statistics statistics(const float* x) const {
        Vec sum{}, squares{};
        lanes.each([&](int64_t c, Vec counts) { sum += counts * load(x + c); });
        const float mean = sum_of(sum) / lanes.channels;
        lanes.each([&](int64_t c, Vec counts) {
            const Vec off = load(x + c) - mean;
            squares += counts * off * off;
        });
        return {mean, 1.0f / std::sqrt(sum_of(squares) / lanes.channels + epsilon)};
    }
    void apply(const float* x, float* out) const {
        const Statistics found = statistics(x);
        lanes.each([&](int64_t c, Vec) {
            store(out + c, (load(x + c) - found.mean) * found.factor * load(weight + c) + load(bias + c));
        });
    }
    // d_x from the gradient of the result, added to `passed`; shares in the gradients of weight and bias go to `sums`
    // (2, C).
    void differentiate(const float* x, const float* grad, const float* passed, float* d_x, float* sums) const {
        const Statistics found = statistics(x);
        Vec sum{}, product{};
        lanes.each([&](int64_t c, Vec counts) {
            const Vec g = load(grad + c), normal = (load(x + c) - found.mean) * found.factor;
            const Vec slope = counts * g * load(weight + c);
            sum += slope, product += slope * normal;
            store(sums + c, load(sums + c) + counts * g * normal);
            float* bias_sums = sums + lanes.channels;
            store(bias_sums + c, load(bias_sums + c) + counts * g);
        });
        const float mean = sum_of(sum) / lanes.channels, along = sum_of(product) / lanes.channels;
        lanes.each([&](int64_t c, Vec) {
            const Vec normal = (load(x + c) - found.mean) * found.factor;
            const Vec slope = load(grad + c) * load(weight + c);
            store(d_x + c, load(passed + c) + (slope - mean - normal * along) * found.factor);
        });
    }
};

}  // namespace kithkin
