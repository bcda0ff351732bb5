// Products of pixels with the matrices of linear layers whose numbers lie in the order in which they are read, and a 3 x 3
// depth-wise convolution of what such a product gives.
//
// A panel is two vectors of outputs. Its matrix is (depth, 2 W), without gaps: columns of a matrix as wide as 512 lie on as
// many pages of memory, and a core knows the places of fewer.

#pragma once

#include "dense.hpp"

namespace kithkin {

constexpr int64_t PAIR = 2 * W;

// Which output each vector of a panel begins with, and how many are its own; the others are zeros.
struct Chosen {
    int64_t first, count;
};

// The matrix (outputs, inputs) and offsets of a linear layer.
struct Panels {
    int64_t depth, vectors;
    Aligned matrix, offsets;

    // Zeros.
    Panels(int64_t inputs, int64_t n) : depth(inputs), vectors(n), matrix(panels() * inputs * PAIR), offsets(panels() * PAIR) {
        std::memset(matrix.at(0), 0, panels() * inputs * PAIR * 4);
        std::memset(offsets.at(0), 0, panels() * PAIR * 4);
    }
    // Of a weight (outputs, inputs) and a bias: choose(vector) says which outputs.
    template <typename Choose>
    Panels(const float* weight, const float* bias, int64_t inputs, int64_t n, Choose choose) : Panels(inputs, n) {
        for (int64_t v = 0; v < n; ++v) {
            const Chosen chosen = choose(v);
            const auto put = [](float* to, auto x) {
                if constexpr (std::is_same_v<decltype(x), float>) *to = x;
                else store(to, x);
            };
            transposed(weight + chosen.first * inputs, inputs, chosen.count, inputs, number(0, v), PAIR, put);
            std::memcpy(offsets.at(v * W), bias + chosen.first, chosen.count * 4);
        }
    }
    float* number(int64_t input, int64_t vector) const { return panel(vector / 2) + input * PAIR + vector % 2 * W; }
    int64_t panels() const { return (vectors + 1) / 2; }
    float* panel(int64_t p) const { return matrix.at(p * depth * PAIR); }
};

// R pixels and V vectors of a panel; put(pixel, sums) takes a pixel's V sums.
template <int R, int V, typename Put>
inline void panel_block(const float* x, int64_t row, int64_t first, const float* b, const float* offsets, int64_t depth, Put put) {
    Vec sums[R][V];
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r)
#pragma GCC unroll 2
        for (int v = 0; v < V; ++v) sums[r][v] = load(offsets + v * W);
    x += first * row;
    for (int64_t d = 0; d < depth; ++d, b += PAIR) {
        Vec right[V];
#pragma GCC unroll 2
        for (int v = 0; v < V; ++v) right[v] = load(b + v * W);
#pragma GCC unroll 16
        for (int r = 0; r < R; ++r) {
            const float left = x[r * row + d];
#pragma GCC unroll 2
            for (int v = 0; v < V; ++v) sums[r][v] += left * right[v];
        }
    }
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r) put(first + r, sums[r]);
}

template <int V, typename Put>
inline void panel_rows(const float* x, int64_t row, int64_t rows, const float* b, const float* offsets, int64_t depth, Put put) {
    constexpr int MOST = W == 16 ? 12 : 6;
    for (int64_t r = 0; r < rows;) {
        const auto take = [&](auto size) {
            panel_block<decltype(size)::value, V>(x, row, r, b, offsets, depth, put);
            r += decltype(size)::value;
        };
        if (rows - r >= MOST) take(std::integral_constant<int, MOST>{});
        else if (rows - r >= 4) take(std::integral_constant<int, 4>{});
        else if (rows - r >= 2) take(std::integral_constant<int, 2>{});
        else take(std::integral_constant<int, 1>{});
    }
}

// Pixels (rows, depth), `row` numbers apart, times a matrix of whole panels: put(pixel, panel, first sum, second sum). A
// pixel's sums depend on that pixel alone, in whatever company it comes.
template <typename Put>
inline void multiply_pairs(const float* x, int64_t row, int64_t rows, const Panels& m, Put put) {
    for (int64_t p = 0; p < m.panels(); ++p)
        panel_rows<2>(x, row, rows, m.panel(p), m.offsets.at(p * PAIR), m.depth,
                      [&](int64_t r, const Vec* sums) { put(r, p, sums[0], sums[1]); });
}

// The same with any number of vectors: put(pixel, vector, sum).
template <typename Put>
inline void multiply(const float* x, int64_t row, int64_t rows, const Panels& m, Put put) {
    for (int64_t v = 0; v < m.vectors; v += 2) {
        const float *matrix = m.panel(v / 2), *offsets = m.offsets.at(v * W);
        if (v + 1 < m.vectors)
            panel_rows<2>(x, row, rows, matrix, offsets, m.depth,
                          [&](int64_t r, const Vec* sums) { put(r, v, sums[0]), put(r, v + 1, sums[1]); });
        else
            panel_rows<1>(x, row, rows, matrix, offsets, m.depth, [&](int64_t r, const Vec* sums) { put(r, v, sums[0]); });
    }
}

// N neighbouring pixels of a panel of the convolution's output: put(pixel, two vectors). The rows point to the pixel left of the first;
// taps are (9, 2 W).
template <int N, typename Put>
inline void convolve_pixels(const float* const rows[3], const float* taps, const float* offsets, Put put) {
    Vec sums[N][2];
#pragma GCC unroll 2
    for (int v = 0; v < 2; ++v) {
#pragma GCC unroll 4
        for (int i = 0; i < N; ++i) sums[i][v] = load(offsets + v * W);
#pragma GCC unroll 3
        for (int y = 0; y < 3; ++y) {
            Vec w[3];
#pragma GCC unroll 3
            for (int t = 0; t < 3; ++t) w[t] = load(taps + (3 * y + t) * PAIR + v * W);
#pragma GCC unroll 6
            for (int x = 0; x < N + 2; ++x) {
                const Vec near = load(rows[y] + x * PAIR + v * W);
#pragma GCC unroll 4
                for (int i = 0; i < N; ++i)
                    if (i <= x && x <= i + 2) sums[i][v] += w[x - i] * near;
            }
        }
    }
#pragma GCC unroll 4
    for (int i = 0; i < N; ++i) put(i, sums[i]);
}

// A row of `count` pixels of a panel.
template <typename Put>
inline void convolve_panel(const float* above, const float* here, const float* below, int64_t count, const float* taps,
                           const float* offsets, Put put) {
    const auto take = [&](int64_t x, auto size) {
        const float* rows[3] = {above + x * PAIR, here + x * PAIR, below + x * PAIR};
        convolve_pixels<decltype(size)::value>(rows, taps, offsets, [&](int64_t i, const Vec* sums) { put(x + i, sums); });
    };
    int64_t x = 0;
    for (; x + 4 <= count; x += 4) take(x, std::integral_constant<int, 4>{});
    for (; x < count; ++x) take(x, std::integral_constant<int, 1>{});
}

}  // namespace kithkin
