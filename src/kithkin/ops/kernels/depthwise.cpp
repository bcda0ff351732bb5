// GELU, a 3 x 3 depth-wise convolution and a GELU over maps (B, H, W, C), in one pass over memory, and its gradients.
//
// A strip of rows is worked off at a time, with as many rows around it as its results depend on. Lanes are channels; the
// last vector of a pixel overlaps the one before it where C is no multiple of W, so C must be at least W.

#include <cstdlib>
#include <new>

#include "simd.hpp"
#include "team.hpp"

using namespace kithkin;

extern "C" {

// Maps (batch, height, width, channels), weight (channels, 9), bias (channels). native.py mirrors this struct.
struct KithkinDepthwise {
    const float *x, *weight, *bias, *grad;
    float *out, *d_x, *d_weight, *d_bias;
    void* team;
    int64_t threads, batch, height, width, channels;
};
}

namespace {

constexpr int64_t TAPS = 9, STRIP_BYTES = 1 << 18;

struct Gelu {
    Vec cumulative, density;
};

// The normal distribution's cumulative function and density. Error function by Abramowitz and Stegun 7.1.26, within 1.5e-7.
inline Gelu normal(Vec x) {
    const Vec size = larger(x, -x), t = 1.0f / (1.0f + 0.23164189f * size);
    const Vec fall = exp2_nonpositive(x * x * -0.72134752f);  // exp(-x^2 / 2)
    Vec p = Vec{} + 0.530702715f;
    p = p * t - 0.726576014f;
    p = p * t + 0.710706871f;
    p = p * t - 0.142248368f;
    p = p * t + 0.127414796f;
    const Vec tail = p * t * fall;
    return {x < 0.0f ? tail : 1.0f - tail, fall * 0.39894228f};
}
inline Vec gelu(Vec x) { return x * normal(x).cumulative; }
inline Vec gelu_slope(Vec x) {
    const Gelu g = normal(x);
    return g.cumulative + x * g.density;
}

// A strip of one map: its rows, and where each vector of channels starts.
struct Strips {
    const KithkinDepthwise& call;
    int64_t row, rows, per_map;  // numbers of a padded row, rows of a strip, strips of a map

    explicit Strips(const KithkinDepthwise& c) : call(c), row((c.width + 2) * c.channels) {
        rows = std::clamp<int64_t>(STRIP_BYTES / (row * 4) - 2, 4, 32);
        per_map = (c.height + rows - 1) / rows;
    }
    int64_t count() const { return call.batch * per_map; }
    int64_t vectors() const { return (call.channels + W - 1) / W; }
    int64_t channel(int64_t v) const { return std::min(v * W, call.channels - W); }
};

// Buffers of a thread: rows from `first` on, each with an empty pixel at both ends.
struct Rows {
    float* memory;
    int64_t row, channels, first;

    Rows(const Strips& s, int64_t count) : row(s.row), channels(s.call.channels), first(0) {
        memory = static_cast<float*>(std::aligned_alloc(64, (count * row * 4 + 63) / 64 * 64));
        if (!memory) throw std::bad_alloc();
        std::memset(memory, 0, count * row * 4);
    }
    ~Rows() { std::free(memory); }
    Rows(const Rows&) = delete;
    Rows& operator=(const Rows&) = delete;
    float* at(int64_t y) { return memory + (y - first) * row + channels; }
};

void activate_row(const Strips& s, int64_t image, int64_t y, Rows& rows) {
    const int64_t n = s.call.width * s.call.channels;
    float* to = rows.at(y);
    if (y < 0 || y >= s.call.height) {
        std::memset(to, 0, n * 4);
        return;
    }
    const float* x = s.call.x + (image * s.call.height + y) * n;
    int64_t i = 0;
    for (; i + W <= n; i += W) store(to + i, gelu(load(x + i)));
    if (i < n) store(to + n - W, gelu(load(x + n - W)));
}

// For a vector of channels of every pixel of row y: put(pixel, bias + the weighted sum of its neighbours in `rows`).
// `weight` is (9, channels); the taps are mirrored for the gradient.
template <bool MIRRORED, typename Put>
inline void convolve_row(const Strips& s, Rows& rows, int64_t y, const float* weight, const float* bias, int64_t c, Put put) {
    const int64_t channels = s.call.channels;
    Vec w[TAPS];
    for (int t = 0; t < TAPS; ++t) w[t] = load(weight + (MIRRORED ? TAPS - 1 - t : t) * channels + c);
    const float* above = rows.at(y - 1) + c - channels;
    const Vec start = bias ? load(bias + c) : Vec{};
    for (int64_t x = 0; x < s.call.width; ++x, above += channels) {
        const float *here = above + s.row, *below = here + s.row;
        Vec a = start + w[0] * load(above), b = w[3] * load(here), d = w[6] * load(below);
        a += w[1] * load(above + channels), b += w[4] * load(here + channels), d += w[7] * load(below + channels);
        a += w[2] * load(above + 2 * channels), b += w[5] * load(here + 2 * channels), d += w[8] * load(below + 2 * channels);
        put(x, a + b + d);
    }
}

std::vector<float> taps_first(const KithkinDepthwise& c) {
    std::vector<float> found(TAPS * c.channels);
    for (int64_t i = 0; i < c.channels; ++i)
        for (int64_t t = 0; t < TAPS; ++t) found[t * c.channels + i] = c.weight[i * TAPS + t];
    return found;
}

void forward_strip(const Strips& s, int64_t strip, const float* weight, Rows& rows) {
    const KithkinDepthwise& c = s.call;
    const int64_t image = strip / s.per_map, first = strip % s.per_map * s.rows, end = std::min(first + s.rows, c.height);
    rows.first = first - 1;
    for (int64_t y = first - 1; y <= end; ++y) activate_row(s, image, y, rows);
    for (int64_t y = first; y < end; ++y) {
        float* out = c.out + (image * c.height + y) * c.width * c.channels;
        for (int64_t v = 0; v < s.vectors(); ++v) {
            const int64_t from = s.channel(v);
            convolve_row<false>(s, rows, y, weight, c.bias, from,
                                [&](int64_t x, Vec sum) { store(out + x * c.channels + from, gelu(sum)); });
        }
    }
}

// Gradients of the convolution's output in row y, and where `count` is set the row's share in those of weight and bias, which
// is added to `sums` (10, channels).
void backward_row(const Strips& s, int64_t image, int64_t y, const float* weight, Rows& rows, Rows& slopes, float* sums) {
    const KithkinDepthwise& c = s.call;
    float* to = slopes.at(y);
    if (y < 0 || y >= c.height) {
        std::memset(to, 0, c.width * c.channels * 4);
        return;
    }
    const float* grad = c.grad + (image * c.height + y) * c.width * c.channels;
    for (int64_t v = 0; v < s.vectors(); ++v) {
        const int64_t from = s.channel(v), skip = v * W - from;
        convolve_row<false>(s, rows, y, weight, c.bias, from, [&](int64_t x, Vec sum) {
            const int64_t i = x * c.channels + from;
            store(to + i, load(grad + i) * gelu_slope(sum));
        });
        if (!sums) continue;
        Vec totals[TAPS + 1] = {};
        for (int64_t x = 0; x < c.width; ++x) {
            const Vec slope = load(to + x * c.channels + from);
            const float* near = rows.at(y - 1) + (x - 1) * c.channels + from;
            for (int t = 0; t < TAPS; ++t) totals[t] += slope * load(near + t / 3 * s.row + t % 3 * c.channels);
            totals[TAPS] += slope;
        }
        for (int t = 0; t <= TAPS; ++t)
            for (int64_t i = skip; i < W; ++i) sums[t * c.channels + from + i] += totals[t][i];
    }
}

void backward_strip(const Strips& s, int64_t strip, const float* weight, Rows& rows, Rows& slopes, float* sums) {
    const KithkinDepthwise& c = s.call;
    const int64_t image = strip / s.per_map, first = strip % s.per_map * s.rows, end = std::min(first + s.rows, c.height);
    rows.first = first - 2, slopes.first = first - 1;
    for (int64_t y = first - 2; y <= end + 1; ++y) activate_row(s, image, y, rows);
    for (int64_t y = first - 1; y <= end; ++y)
        backward_row(s, image, y, weight, rows, slopes, y >= first && y < end ? sums : nullptr);
    for (int64_t y = first; y < end; ++y) {
        const int64_t row = (image * c.height + y) * c.width * c.channels;
        for (int64_t v = 0; v < s.vectors(); ++v) {
            const int64_t from = s.channel(v);
            convolve_row<true>(s, slopes, y, weight, nullptr, from, [&](int64_t x, Vec sum) {
                const int64_t i = row + x * c.channels + from;
                store(c.d_x + i, sum * gelu_slope(load(c.x + i)));
            });
        }
    }
}

bool forward(const KithkinDepthwise& c) {
    const Strips strips(c);
    const std::vector<float> weight = taps_first(c);
    Loop loop{strips.count(), [&](Loop& self) {
                  Rows rows(strips, strips.rows + 2);
                  self.take([&](int64_t i) { forward_strip(strips, i, weight.data(), rows); }, 1);
              }};
    return loop.run(reinterpret_cast<Parallel>(c.team), static_cast<int>(c.threads));
}

// Each strip has sums of its own, added up in their order, so that the result does not depend on the threads.
bool backward(const KithkinDepthwise& c) {
    const Strips strips(c);
    const std::vector<float> weight = taps_first(c);
    const int64_t size = (TAPS + 1) * c.channels;
    std::vector<float> sums(strips.count() * size);
    Loop loop{strips.count(), [&](Loop& self) {
                  Rows rows(strips, strips.rows + 4), slopes(strips, strips.rows + 2);
                  self.take([&](int64_t i) { backward_strip(strips, i, weight.data(), rows, slopes, &sums[i * size]); }, 1);
              }};
    if (!loop.run(reinterpret_cast<Parallel>(c.team), static_cast<int>(c.threads))) return false;
    for (int64_t i = 1; i < strips.count(); ++i) add(sums.data(), &sums[i * size], size);
    for (int64_t i = 0; i < c.channels; ++i) {
        for (int64_t t = 0; t < TAPS; ++t) c.d_weight[i * TAPS + t] = sums[t * c.channels + i];
        c.d_bias[i] = sums[TAPS * c.channels + i];
    }
    return true;
}

template <typename Work>
int guarded(Work work) {
    try {
        return !work();
    } catch (const std::exception&) {
        return 1;
    }
}

}  // namespace

extern "C" {

// 0, or 1 where the memory did not suffice.
int kithkin_depthwise(const KithkinDepthwise* c) { return guarded([=] { return forward(*c); }); }
int kithkin_depthwise_backward(const KithkinDepthwise* c) { return guarded([=] { return backward(*c); }); }
}
