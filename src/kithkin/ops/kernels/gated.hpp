// The gated block over maps (B, H, W, C): Y = X + W1(gate(DW(V1(LN X)))), then Y + W2(gate(V2(LN Y))), where the gate multiplies
// one half of the channels by the other.
//
// A map is cut into tiles, which are worked off row by row: three rows of the widened map lie in the cache.

#pragma once

#include <vector>

#include "panels.hpp"
#include "team.hpp"

extern "C" {

// x, out (B, H, W, C); matrices (outputs, inputs); stencils (2 C, 9). native.py mirrors this struct.
struct KithkinGatedBlock {
    const float *x, *norm1_weight, *norm1_bias, *widen1, *widen1_bias, *stencils, *stencil_bias, *narrow1, *narrow1_bias;
    const float *norm2_weight, *norm2_bias, *widen2, *widen2_bias, *narrow2, *narrow2_bias;
    float* out;
    const float* grad;
    float *d_x, *d_parameters;
    void* team;
    int64_t threads, batch, height, width, channels;
    double epsilon;
};
}

namespace kithkin {

constexpr int64_t TAPS = 9;

// Into how many tiles a map is cut.
struct Tiling {
    int64_t across, down;
};

struct Gated {
    const KithkinGatedBlock& call;
    int64_t channels, vectors;
    Norm norm1, norm2;
    Panels widen1, narrow1, widen2, narrow2;
    Aligned taps, tap_offsets;  // (panels, 9, 2 W), (panels, 2 W)
    int64_t across, down;       // tiles of a map

    // A panel of a widened map has a vector of each half, so that the gate needs no other panel.
    auto halves() const {
        return [this](int64_t v) { return Chosen{v % 2 * channels + v / 2 * W, std::min(W, channels - v / 2 * W)}; };
    }
    auto outputs() const {
        return [this](int64_t v) { return Chosen{vector_at(v, channels), W}; };
    }
    Gated(const KithkinGatedBlock& c, Tiling tiling)
        : call(c), channels(c.channels), vectors(kithkin::vectors(c.channels)),
          norm1{c.norm1_weight, c.norm1_bias, static_cast<float>(c.epsilon), Lanes(c.channels)},
          norm2{c.norm2_weight, c.norm2_bias, static_cast<float>(c.epsilon), Lanes(c.channels)},
          widen1(c.widen1, c.widen1_bias, channels, 2 * vectors, halves()),
          narrow1(c.narrow1, c.narrow1_bias, channels, vectors, outputs()),
          widen2(c.widen2, c.widen2_bias, channels, 2 * vectors, halves()),
          narrow2(c.narrow2, c.narrow2_bias, channels, vectors, outputs()), taps(vectors * TAPS * PAIR), tap_offsets(vectors * PAIR),
          across(tiling.across), down(tiling.down) {
        std::memset(taps.at(0), 0, vectors * TAPS * PAIR * 4);
        std::memset(tap_offsets.at(0), 0, vectors * PAIR * 4);
        for (int64_t v = 0; v < 2 * vectors; ++v) {
            const Chosen chosen = halves()(v);
            for (int64_t i = 0; i < chosen.count; ++i) {
                for (int64_t t = 0; t < TAPS; ++t)
                    *taps.at((v / 2 * TAPS + t) * PAIR + v % 2 * W + i) = c.stencils[(chosen.first + i) * TAPS + t];
                *tap_offsets.at(v * W + i) = c.stencil_bias[chosen.first + i];
            }
        }
    }
    int64_t tiles() const { return call.batch * down * across; }
    int64_t widest() const { return (call.width + across - 1) / across; }
    int64_t pixel(int64_t image, int64_t y, int64_t x) const { return ((image * call.height + y) * call.width + x) * channels; }
};

struct Tile {
    int64_t image, top, bottom, left, right;

    Tile(const Gated& g, int64_t i) {
        const int64_t column = i % g.across, row = i / g.across % g.down;
        image = i / g.across / g.down;
        top = row * g.call.height / g.down, bottom = (row + 1) * g.call.height / g.down;
        left = column * g.call.width / g.across, right = (column + 1) * g.call.width / g.across;
    }
};

// Three rows of a tile of the widened map, panel after panel, with a pixel more at both ends; a row each of normalised pixels, of what a gate
// lets through and of Y.
struct Buffers {
    const Gated& g;
    int64_t pixels;  // of a row of a panel
    Aligned wide, normal, passed, middle;

    explicit Buffers(const Gated& gated)
        : g(gated), pixels(g.widest() + 2), wide(3 * g.vectors * pixels * PAIR), normal(pixels * pitch()),
          passed(pixels * pitch()), middle(pixels * g.channels) {
        std::memset(normal.at(0), 0, pixels * pitch() * 4);
    }
    int64_t pitch() const { return g.vectors * W; }  // from pixel to pixel, in whole vectors whose last numbers are zeros

    float* panel(int64_t y, int64_t p) const { return wide.at(((y + 3) % 3 * g.vectors + p) * pixels * PAIR); }

    void widen_row(const Tile& t, int64_t y) const {
        const int64_t from = std::max<int64_t>(t.left - 1, 0), end = std::min(t.right + 1, g.call.width);
        const int64_t skipped = from - (t.left - 1), count = end - from, wanted = t.right - t.left + 2;
        if (y < 0 || y >= g.call.height) {
            std::memset(panel(y, 0), 0, g.vectors * pixels * PAIR * 4);
            return;
        }
        const float* x = g.call.x + g.pixel(t.image, y, from);
        for (int64_t i = 0; i < count; ++i) g.norm1.apply(x + i * g.channels, normal.at(i * pitch()));
        multiply_pairs(normal.at(0), pitch(), count, g.widen1, [&](int64_t r, int64_t p, Vec left, Vec right) {
            float* to = panel(y, p) + (skipped + r) * PAIR;
            store(to, left), store(to + W, right);
        });
        for (int64_t p = 0; p < g.vectors; ++p) {
            if (skipped) std::memset(panel(y, p), 0, PAIR * 4);
            if (skipped + count < wanted) std::memset(panel(y, p) + (wanted - 1) * PAIR, 0, PAIR * 4);
        }
    }
    void finish_row(const Tile& t, int64_t y) const {
        const int64_t count = t.right - t.left, channels = g.channels;
        for (int64_t p = 0; p < g.vectors; ++p)
            convolve_panel(panel(y - 1, p), panel(y, p), panel(y + 1, p), count, g.taps.at(p * TAPS * PAIR),
                           g.tap_offsets.at(p * PAIR),
                           [&](int64_t x, const Vec* sums) { store(passed.at(x * pitch() + p * W), sums[0] * sums[1]); });
        const int64_t at = g.pixel(t.image, y, t.left);
        add_narrowed(g.narrow1, count, g.call.x + at, middle.at(0));

        for (int64_t i = 0; i < count; ++i) g.norm2.apply(middle.at(i * channels), normal.at(i * pitch()));
        multiply_pairs(normal.at(0), pitch(), count, g.widen2, [&](int64_t r, int64_t p, Vec left, Vec right) {
            store(passed.at(r * pitch() + p * W), left * right);
        });
        add_narrowed(g.narrow2, count, middle.at(0), g.call.out + at);
    }

    // out = x + what passed, narrowed.
    void add_narrowed(const Panels& m, int64_t count, const float* x, float* out) const {
        multiply(passed.at(0), pitch(), count, m, [&](int64_t r, int64_t v, Vec sum) {
            const int64_t at = r * g.channels + vector_at(v, g.channels);
            store(out + at, sum + load(x + at));
        });
    }
};

}  // namespace kithkin
