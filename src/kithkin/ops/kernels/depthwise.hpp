// GELU, a 3 x 3 depth-wise convolution and a GELU over maps (B, H, W, C), in strips of rows, and its gradients.
//
// A strip is worked off row by row, and begins with the rows above it that its results depend on. Lanes are channels, as in
// dense.hpp.

#pragma once

#include <vector>

#include "dense.hpp"
#include "team.hpp"

namespace kithkin {

// Maps (batch, height, width, channels), weight (channels, 9), bias (channels). The backward pass computes `out` again.
struct Depthwise {
    const float *x, *weight, *bias, *grad;
    float *out, *d_x, *d_weight, *d_bias;
    void* team;
    int64_t threads, batch, height, width, channels;
};

constexpr int64_t TAPS = 9;

// x times the normal distribution's cumulative function, by a quotient of polynomials that is within 1e-8 of it up to 5.3,
// where it ends.
inline Vec gelu(Vec x) {
    const Vec most = Vec{} + 5.3f;
    x = larger(x, -most);
    const Vec y = x > most ? most : x, s = y * y;
    Vec p = Vec{} + 2.40503498e-08f, q = Vec{} + 1.23717061e-06f;
    p = p * s + 6.37907242e-06f, q = q * s + 7.13524258e-05f;
    p = p * s + 0.000160334654f, q = q * s + 0.00183657239f;
    p = p * s + 0.00462799453f, q = q * s + 0.0281388273f;
    p = p * s + 0.0329357849f, q = q * s + 0.249223999f;
    p = p * s + 0.398942254f, q = q * s + 1.0f;
    return x * (y * p / q + 0.5f);
}

struct Gelu {
    Vec value, slope;
};

// GELU and its derivative. Error function by Abramowitz and Stegun 7.1.26, within 1.5e-7.
inline Gelu gelu_and_slope(Vec x) {
    const Vec size = larger(x, -x), t = 1.0f / (1.0f + 0.23164189f * size);
    // exp(-x^2 / 2); not so small that products with it lose their leading bits, which takes long.
    const Vec fall = exp2_nonpositive(larger(x * x * -0.72134752f, Vec{} - 64.0f));
    Vec p = Vec{} + 0.530702715f;
    p = p * t - 0.726576014f;
    p = p * t + 0.710706871f;
    p = p * t - 0.142248368f;
    p = p * t + 0.127414796f;
    const Vec tail = p * t * fall, cumulative = x < 0.0f ? tail : 1.0f - tail;
    return {x * cumulative, cumulative + x * fall * 0.39894228f};
}

// Maps cut into strips of rows.
struct Strips {
    const Depthwise& call;
    int64_t per_map, pitch;  // strips of a map; from pixel to pixel in the buffers, so that most vectors lie on cache lines

    // About `wanted` strips of all maps, none of less than `least` rows.
    Strips(const Depthwise& c, int64_t wanted, int64_t least) : call(c), pitch(vectors(c.channels) * W) {
        const int64_t rows = std::max(least, (c.batch * c.height + wanted - 1) / wanted);
        per_map = std::max<int64_t>(1, c.height / rows);
    }
    int64_t count() const { return call.batch * per_map; }
    int64_t image(int64_t strip) const { return strip / per_map; }
    int64_t first(int64_t strip) const { return strip % per_map * call.height / per_map; }
    int64_t end(int64_t strip) const { return (strip % per_map + 1) * call.height / per_map; }
    int64_t row(int64_t image, int64_t y) const { return (image * call.height + y) * call.width * call.channels; }
    template <typename Each>
    void each_vector(Each each) const {
        for (int64_t v = 0; v < vectors(call.channels); ++v) each(vector_at(v, call.channels), v * W);
    }
};

// The last three rows of a map that were worked off, each with an empty pixel at both ends.
struct Rows {
    explicit Rows(const Strips& s) : row_((s.call.width + 2) * s.pitch), pitch_(s.pitch), memory_(3 * row_) {
        std::memset(memory_.at(0), 0, 3 * row_ * 4);
    }
    float* at(int64_t y) { return memory_.at((y + 3) % 3 * row_ + pitch_); }
    void clear(int64_t y) { std::memset(at(y), 0, (row_ - 2 * pitch_) * 4); }

  private:
    int64_t row_, pitch_;
    Aligned memory_;
};

// GELU of row y of the map, and its derivative where `slopes` is given; zeros beyond the border.
inline void activate_row(const Strips& s, int64_t image, int64_t y, Rows& rows, Rows* slopes) {
    if (y < 0 || y >= s.call.height) return rows.clear(y);
    const float* x = s.call.x + s.row(image, y);
    float *to = rows.at(y), *slope = slopes ? slopes->at(y) : nullptr;
    for (int64_t i = 0; i < s.call.width; ++i, x += s.call.channels, to += s.pitch)
        if (slopes) {
            s.each_vector([&](int64_t from, int64_t) {
                const Gelu gelu = gelu_and_slope(load(x + from));
                store(to + from, gelu.value), store(slope + from, gelu.slope);
            });
            slope += s.pitch;
        } else {
            s.each_vector([&](int64_t from, int64_t) { store(to + from, gelu(load(x + from))); });
        }
}

// For a vector of channels of every pixel of row y: put(pixel, bias + the weighted sum of its neighbours in `rows`, those
// neighbours). `weight` is (9, channels); the taps are mirrored for the gradient.
template <bool MIRRORED, typename Put>
inline void convolve_row(const Strips& s, Rows& rows, int64_t y, const float* weight, const float* bias, int64_t c, Put put) {
    Vec w[TAPS];
    for (int t = 0; t < TAPS; ++t) w[t] = load(weight + (MIRRORED ? TAPS - 1 - t : t) * s.call.channels + c);
    const float *above = rows.at(y - 1) + c, *here = rows.at(y) + c, *below = rows.at(y + 1) + c;
    const Vec start = bias ? load(bias + c) : Vec{};
    const int64_t next = s.pitch;
    for (int64_t x = 0; x < s.call.width; ++x, above += next, here += next, below += next) {
        const Vec near[TAPS] = {load(above - next), load(above), load(above + next), load(here - next), load(here),
                                load(here + next),  load(below - next), load(below), load(below + next)};
        const Vec a = start + w[0] * near[0] + w[1] * near[1] + w[2] * near[2];
        const Vec b = w[3] * near[3] + w[4] * near[4] + w[5] * near[5];
        put(x, a + (w[6] * near[6] + w[7] * near[7] + w[8] * near[8]) + b, near);
    }
}

inline std::vector<float> taps_first(const Depthwise& c) {
    std::vector<float> found(TAPS * c.channels);
    for (int64_t i = 0; i < c.channels; ++i)
        for (int64_t t = 0; t < TAPS; ++t) found[t * c.channels + i] = c.weight[i * TAPS + t];
    return found;
}

// The rows of a strip, one after the other: put(y, pixel, channel, a vector of the result), and done(y) after each row.
template <typename Put, typename Done>
inline void forward_strip(const Strips& s, int64_t strip, const float* weight, Rows& rows, Put put, Done done) {
    const int64_t image = s.image(strip), first = s.first(strip);
    for (int64_t y = first - 1; y <= first; ++y) activate_row(s, image, y, rows, nullptr);
    for (int64_t y = first; y < s.end(strip); ++y) {
        activate_row(s, image, y + 1, rows, nullptr);
        s.each_vector([&](int64_t from, int64_t) {
            convolve_row<false>(s, rows, y, weight, s.call.bias, from, [&](int64_t x, Vec sum, const Vec*) { put(y, x, from, gelu(sum)); });
        });
        done(y);
    }
}

// What a thread needs for the backward pass of a strip: activations, their derivatives, and the gradients of the
// convolution's output.
struct BackwardRows {
    Rows active, bends, grads;

    explicit BackwardRows(const Strips& s) : active(s), bends(s), grads(s) {}
};

// Gradients of the convolution's output in row y. Where `sums` is given, the row's share in those of weight and bias is added
// to it and the row's result goes to c.out.
inline void backward_row(const Strips& s, int64_t image, int64_t y, const float* weight, BackwardRows& w, float* sums) {
    const Depthwise& c = s.call;
    if (y < 0 || y >= c.height) return w.grads.clear(y);
    const float* grad = c.grad + s.row(image, y);
    float *to = w.grads.at(y), *out = sums ? c.out + s.row(image, y) : nullptr;
    s.each_vector([&](int64_t from, int64_t place) {
        const auto differentiate = [&](int64_t x, Vec sum) {
            const Gelu gelu = gelu_and_slope(sum);
            const Vec slope = load(grad + x * c.channels + from) * gelu.slope;
            store(to + x * s.pitch + from, slope);
            if (out) store(out + x * c.channels + from, gelu.value);
            return slope;
        };
        if (!sums) {
            convolve_row<false>(s, w.active, y, weight, c.bias, from,
                                [&](int64_t x, Vec sum, const Vec*) { differentiate(x, sum); });
            return;
        }
        Vec totals[TAPS + 1] = {};
        convolve_row<false>(s, w.active, y, weight, c.bias, from, [&](int64_t x, Vec sum, const Vec* near) {
            const Vec slope = differentiate(x, sum);
            for (int t = 0; t < TAPS; ++t) totals[t] += slope * near[t];
            totals[TAPS] += slope;
        });
        for (int t = 0; t <= TAPS; ++t)
            for (int64_t i = place - from; i < W; ++i) sums[t * c.channels + from + i] += totals[t][i];
    });
}

inline void backward_strip(const Strips& s, int64_t strip, const float* weight, BackwardRows& w, float* sums) {
    const Depthwise& c = s.call;
    const int64_t image = s.image(strip), first = s.first(strip), end = s.end(strip);
    for (int64_t y = first - 2; y < first; ++y) activate_row(s, image, y, w.active, &w.bends);
    for (int64_t y = first - 1; y <= end; ++y) {
        activate_row(s, image, y + 1, w.active, &w.bends);
        backward_row(s, image, y, weight, w, y >= first && y < end ? sums : nullptr);
        if (y <= first) continue;
        const float* bends = w.bends.at(y - 1);
        float* out = c.d_x + s.row(image, y - 1);
        s.each_vector([&](int64_t from, int64_t) {
            convolve_row<true>(s, w.grads, y - 1, weight, nullptr, from, [&](int64_t x, Vec sum, const Vec*) {
                store(out + x * c.channels + from, sum * load(bends + x * s.pitch + from));
            });
        });
    }
}

// Each strip has sums of its own, added up in their order, so that the result does not depend on the threads.
inline bool differentiate_depthwise(const Depthwise& c) {
    const Strips strips(c, 16, 32);
    const std::vector<float> weight = taps_first(c);
    const int64_t size = (TAPS + 1) * c.channels;
    std::vector<float> sums(strips.count() * size);
    Loop loop{strips.count(), [&](Loop& self) {
                  BackwardRows rows(strips);
                  self.take([&](int64_t i) { backward_strip(strips, i, weight.data(), rows, &sums[i * size]); }, 1);
              }};
    if (!loop.run(reinterpret_cast<Parallel>(c.team), static_cast<int>(c.threads))) return false;
    for (int64_t i = 1; i < strips.count(); ++i) add(sums.data(), &sums[i * size], size);
    for (int64_t i = 0; i < c.channels; ++i) {
        for (int64_t t = 0; t < TAPS; ++t) c.d_weight[i * TAPS + t] = sums[t * c.channels + i];
        c.d_bias[i] = sums[TAPS * c.channels + i];
    }
    return true;
}

}  // namespace kithkin
