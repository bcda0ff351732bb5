// Gradients of the gated block.
//
// A first pass computes the block again, row by row, and goes back to the output of the convolution; a second one goes from
// there to X. Each group of tiles has sums of its own for the parameters, added up in their order, so that the result does not
// depend on the threads; within a group blocks of pixels are summed apart, for long sums in float32 lose digits.

#include "gated.hpp"

using namespace kithkin;

namespace {

constexpr int64_t MOST_GROUPS = 16, LEAST_ROWS = 32;
constexpr int64_t BLOCK = 64;  // pixels of a row that are summed together

// each(first pixel, how many)
template <typename Each>
inline void in_blocks(int64_t pixels, Each each) {
    for (int64_t i = 0; i < pixels; i += BLOCK) each(i, std::min(BLOCK, pixels - i));
}

// R rows and V vectors of the sum over pixels of (left row) times (right vector), added to `sums`.
template <int R, int V>
inline void outer_block(const float* left, int64_t left_row, const float* right, int64_t right_row, int64_t pixels, float* to,
                        int64_t pitch) {
    Vec sums[R][V];
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r)
#pragma GCC unroll 2
        for (int v = 0; v < V; ++v) sums[r][v] = Vec{};
    for (int64_t i = 0; i < pixels; ++i, left += left_row, right += right_row) {
        Vec b[V];
#pragma GCC unroll 2
        for (int v = 0; v < V; ++v) b[v] = load(right + v * W);
#pragma GCC unroll 16
        for (int r = 0; r < R; ++r)
#pragma GCC unroll 2
            for (int v = 0; v < V; ++v) sums[r][v] += left[r] * b[v];
    }
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r)
#pragma GCC unroll 2
        for (int v = 0; v < V; ++v) store(to + r * pitch + v * W, load(to + r * pitch + v * W) + sums[r][v]);
}

// sums (rows, columns) += the product over pixels of left (pixels, rows) and right (pixels, columns, whole vectors).
inline void add_outer(const float* left, int64_t left_row, int64_t rows, const float* right, int64_t columns, int64_t pixels,
                      float* sums) {
    constexpr int MOST = W == 16 ? 12 : 6;
    const auto rest = [&](int64_t first, int64_t count, int64_t c) {
        const float *x = left + first * left_row, *y = right + first * columns + c;
        for (int64_t r = 0; r < rows;) {
            const auto take = [&](auto size) {
                constexpr int R = decltype(size)::value;
                float* to = sums + r * columns + c;
                if (c + 2 * W <= columns) outer_block<R, 2>(x + r, left_row, y, columns, count, to, columns);
                else outer_block<R, 1>(x + r, left_row, y, columns, count, to, columns);
                r += R;
            };
            if (rows - r >= MOST) take(std::integral_constant<int, MOST>{});
            else if (rows - r >= 4) take(std::integral_constant<int, 4>{});
            else take(std::integral_constant<int, 1>{});
        }
    };
    in_blocks(pixels, [&](int64_t first, int64_t count) {
        for (int64_t c = 0; c < columns; c += 2 * W) rest(first, count, c);
    });
}

inline void add_pixels(const float* x, int64_t row, int64_t columns, int64_t pixels, float* sums) {
    for (int64_t c = 0; c < columns; c += W) {
        const int64_t at = std::min(c, columns - W), fresh = c - at;  // lanes before `fresh` have been summed
        in_blocks(pixels, [&](int64_t first, int64_t count) {
            Vec sum{};
            for (int64_t i = first; i < first + count; ++i) sum += load(x + i * row + at);
            for (int64_t i = fresh; i < W; ++i) sums[at + i] += sum[i];
        });
    }
}

// The matrices that lead back, and the order of the sums. Channels of a widened map are in the order of its panels.
struct Back {
    const Gated& g;
    int64_t channels, pitch, wide;
    Panels widen1, narrow1, widen2, narrow2;
    Aligned mirrored, zeros;

    explicit Back(const Gated& gated)
        : g(gated), channels(g.channels), pitch(g.vectors * W), wide(2 * pitch), widen1(turned_widen(g.call.widen1)),
          narrow1(turned_narrow(g.call.narrow1)), widen2(turned_widen(g.call.widen2)), narrow2(turned_narrow(g.call.narrow2)),
          mirrored(g.vectors * TAPS * PAIR), zeros(g.vectors * (g.call.width + 2) * PAIR) {
        std::memset(zeros.at(0), 0, g.vectors * (g.call.width + 2) * PAIR * 4);
        for (int64_t p = 0; p < g.vectors; ++p)
            for (int64_t t = 0; t < TAPS; ++t)
                std::memcpy(mirrored.at((p * TAPS + t) * PAIR), g.taps.at((p * TAPS + TAPS - 1 - t) * PAIR), PAIR * 4);
    }
    // each(place in the order of the panels, channel of the widened map)
    template <typename Each>
    void each_wide(Each each) const {
        for (int64_t v = 0; v < 2 * g.vectors; ++v) {
            const Chosen chosen = g.halves()(v);
            for (int64_t i = 0; i < chosen.count; ++i) each(v * W + i, chosen.first + i);
        }
    }
    Panels turned_widen(const float* weight) const {
        Panels made(wide, g.vectors);
        each_wide([&](int64_t place, int64_t channel) {
            for (int64_t v = 0; v < g.vectors; ++v)
                std::memcpy(made.number(place, v), weight + channel * channels + vector_at(v, channels), W * 4);
        });
        return made;
    }
    Panels turned_narrow(const float* weight) const {
        Panels made(channels, g.vectors);
        for (int64_t d = 0; d < channels; ++d)
            for (int64_t v = 0; v < g.vectors; ++v)
                std::memcpy(made.number(d, v), weight + d * channels + v * W, std::min(W, channels - v * W) * 4);
        return made;
    }
};

// Where the sums of a group lie.
struct Sums {
    float *norm1, *widen1, *widen1_bias, *taps, *tap_offsets, *narrow1, *narrow1_bias;
    float *norm2, *widen2, *widen2_bias, *narrow2, *narrow2_bias;

    Sums(const Back& b, float* next) {
        const auto take = [&](int64_t n) { return next += n, next - n; };
        norm1 = take(2 * b.channels), widen1 = take(b.wide * b.pitch), widen1_bias = take(b.wide);
        taps = take(b.wide * TAPS), tap_offsets = take(b.wide);
        narrow1 = take(b.channels * b.pitch), narrow1_bias = take(b.channels);
        norm2 = take(2 * b.channels), widen2 = take(b.wide * b.pitch), widen2_bias = take(b.wide);
        narrow2 = take(b.channels * b.pitch), narrow2_bias = take(b.channels);
    }
    static int64_t size(const Back& b) {
        return 2 * b.wide * (b.pitch + 1) + b.wide * (TAPS + 1) + 2 * b.channels * (b.pitch + 1) + 4 * b.channels;
    }
    // In the order of the parameters.
    void write(const Back& b, float* to) const {
        const int64_t c = b.channels;
        const auto plain = [&](const float* from, int64_t n) { std::memcpy(to, from, n * 4), to += n; };
        const auto widened = [&](const float* matrix, const float* offsets) {
            b.each_wide([&](int64_t place, int64_t channel) {
                std::memcpy(to + channel * c, matrix + place * b.pitch, c * 4);
                to[2 * c * c + channel] = offsets[place];
            });
            to += 2 * c * (c + 1);
        };
        const auto narrowed = [&](const float* matrix, const float* offsets) {
            for (int64_t i = 0; i < c; ++i) plain(matrix + i * b.pitch, c);
            plain(offsets, c);
        };
        plain(norm1, 2 * c), widened(widen1, widen1_bias);
        b.each_wide([&](int64_t place, int64_t channel) {
            for (int64_t t = 0; t < TAPS; ++t)
                to[channel * TAPS + t] = taps[(place / PAIR * TAPS + t) * PAIR + place % PAIR];
            to[2 * c * TAPS + channel] = tap_offsets[place];
        });
        to += 2 * c * (TAPS + 1);
        narrowed(narrow1, narrow1_bias);
        plain(norm2, 2 * c), widened(widen2, widen2_bias), narrowed(narrow2, narrow2_bias);
    }
};

// The gradients of a map between the two passes: of the convolution's output, row after row in panels with an empty pixel at both ends, and of
// Y.
struct Between {
    const Back& b;
    int64_t pixels;
    Aligned convolved, middle;

    explicit Between(const Back& back)
        : b(back), pixels(b.g.call.width + 2), convolved(b.g.call.batch * b.g.call.height * b.g.vectors * pixels * PAIR),
          middle(b.g.call.batch * b.g.call.height * b.g.call.width * b.channels) {}
    float* panel(int64_t image, int64_t y, int64_t p) const {
        if (y < 0 || y >= b.g.call.height) return b.zeros.at(p * pixels * PAIR);
        return convolved.at((((image * b.g.call.height + y) * b.g.vectors) + p) * pixels * PAIR);
    }
};

struct Rows {
    const Back& b;
    const Between& between;
    Buffers again;
    Aligned convolved, wide, second, slopes, shares;  // (width, wide) twice, (width, pitch), (width, channels), (2, channels)

    Rows(const Back& back, const Between& maps)
        : b(back), between(maps), again(b.g), convolved(b.g.call.width * b.wide), wide(b.g.call.width * b.wide),
          second(b.g.call.width * b.pitch), slopes(b.g.call.width * b.channels), shares(2 * b.channels) {}

    // From the gradient of the result to those of Y and of the convolution's output.
    void first_pass(const Tile& t, int64_t y, const Sums& sums) const {
        const Gated& g = b.g;
        const int64_t width = g.call.width, channels = b.channels, pitch = b.pitch, at = g.pixel(t.image, y, 0);
        const float *grad = g.call.grad + at, *middle = again.middle.at(0);
        float* d_middle = between.middle.at(at);
        for (int64_t p = 0; p < g.vectors; ++p)
            convolve_panel(again.panel(y - 1, p), again.panel(y, p), again.panel(y + 1, p), width, g.taps.at(p * TAPS * PAIR),
                           g.tap_offsets.at(p * PAIR), [&](int64_t x, const Vec* found) {
                               float* to = convolved.at(x * b.wide + p * PAIR);
                               store(to, found[0]), store(to + W, found[1]);
                               store(again.passed.at(x * pitch + p * W), found[0] * found[1]);
                           });
        again.add_narrowed(g.narrow1, width, g.call.x + at, again.middle.at(0));
        for (int64_t i = 0; i < width; ++i) g.norm2.apply(middle + i * channels, again.normal.at(i * pitch));
        multiply_pairs(again.normal.at(0), pitch, width, g.widen2, [&](int64_t r, int64_t p, Vec left, Vec right) {
            store(wide.at(r * b.wide + p * PAIR), left), store(wide.at(r * b.wide + p * PAIR + W), right);
            store(second.at(r * pitch + p * W), left * right);
        });
        multiply(grad, channels, width, b.narrow2, [&](int64_t r, int64_t v, Vec slope) {
            float* to = wide.at(r * b.wide + v * PAIR);
            const Vec left = load(to), right = load(to + W);
            store(to, slope * right), store(to + W, slope * left);
        });
        add_outer(grad, channels, channels, second.at(0), pitch, width, sums.narrow2);
        add_pixels(grad, channels, channels, width, sums.narrow2_bias);
        add_outer(wide.at(0), b.wide, b.wide, again.normal.at(0), pitch, width, sums.widen2);
        add_pixels(wide.at(0), b.wide, b.wide, width, sums.widen2_bias);
        put_slopes(wide.at(0), b.widen2);
        differentiate(g.norm2, middle, grad, d_middle, sums.norm2);
        add_outer(d_middle, channels, channels, again.passed.at(0), pitch, width, sums.narrow1);
        add_pixels(d_middle, channels, channels, width, sums.narrow1_bias);
        multiply(d_middle, channels, width, b.narrow1, [&](int64_t r, int64_t v, Vec slope) {
            const float* found = convolved.at(r * b.wide + v * PAIR);
            float* to = between.panel(t.image, y, v) + (r + 1) * PAIR;
            store(to, slope * load(found + W)), store(to + W, slope * load(found));
        });
        for (int64_t p = 0; p < g.vectors; ++p) {
            float* slope = between.panel(t.image, y, p);
            std::memset(slope, 0, PAIR * 4), std::memset(slope + (width + 1) * PAIR, 0, PAIR * 4);
            for (int64_t v = 0; v < 2; ++v) add_taps(y, p, v * W, slope + PAIR + v * W, sums);
        }
    }
    // From there to X.
    void second_pass(const Tile& t, int64_t y, const Sums& sums) const {
        const Gated& g = b.g;
        const int64_t width = g.call.width, channels = b.channels, at = g.pixel(t.image, y, 0);
        for (int64_t p = 0; p < g.vectors; ++p)
            convolve_panel(between.panel(t.image, y - 1, p), between.panel(t.image, y, p), between.panel(t.image, y + 1, p), width,
                           b.mirrored.at(p * TAPS * PAIR), b.zeros.at(0), [&](int64_t x, const Vec* found) {
                               float* to = wide.at(x * b.wide + p * PAIR);
                               store(to, found[0]), store(to + W, found[1]);
                           });
        for (int64_t i = 0; i < width; ++i) g.norm1.apply(g.call.x + at + i * channels, again.normal.at(i * b.pitch));
        add_outer(wide.at(0), b.wide, b.wide, again.normal.at(0), b.pitch, width, sums.widen1);
        add_pixels(wide.at(0), b.wide, b.wide, width, sums.widen1_bias);
        put_slopes(wide.at(0), b.widen1);
        differentiate(g.norm1, g.call.x + at, between.middle.at(at), g.call.d_x + at, sums.norm1);
    }

  private:
    void put_slopes(const float* x, const Panels& m) const {
        multiply(x, b.wide, b.g.call.width, m,
                 [&](int64_t r, int64_t v, Vec sum) { store(slopes.at(r * b.channels + vector_at(v, b.channels)), sum); });
    }
    // A row of gradients back through a LayerNorm, from `slopes`.
    void differentiate(const Norm& norm, const float* x, const float* passed, float* d_x, float* sums) const {
        const int64_t c = b.channels;
        in_blocks(b.g.call.width, [&](int64_t first, int64_t count) {
            std::memset(shares.at(0), 0, 2 * c * 4);
            for (int64_t i = first; i < first + count; ++i)
                norm.differentiate(x + i * c, slopes.at(i * c), passed + i * c, d_x + i * c, shares.at(0));
            add(sums, shares.at(0), 2 * c);
        });
    }
    // The share of a row in the gradients of a vector's taps and offsets.
    void add_taps(int64_t y, int64_t p, int64_t lane, const float* slope, const Sums& sums) const {
        in_blocks(b.g.call.width, [&](int64_t first, int64_t count) {
            Vec totals[TAPS + 1] = {};
            for (int64_t x = first; x < first + count; ++x) {
                const Vec one = load(slope + x * PAIR);
#pragma GCC unroll 9
                for (int t = 0; t < TAPS; ++t) totals[t] += one * load(again.panel(y - 1 + t / 3, p) + (x + t % 3) * PAIR + lane);
                totals[TAPS] += one;
            }
            for (int t = 0; t <= TAPS; ++t) {
                float* to = (t < TAPS ? sums.taps + (p * TAPS + t) * PAIR : sums.tap_offsets + p * PAIR) + lane;
                store(to, load(to) + totals[t]);
            }
        });
    }
};

bool backward(const KithkinGatedBlock& c) {
    const int64_t wanted = (MOST_GROUPS + c.batch - 1) / c.batch;
    const Gated g(c, {1, std::max<int64_t>(1, std::min(wanted, c.height / LEAST_ROWS))});
    const Back back(g);
    const Between between(back);
    const int64_t size = Sums::size(back), groups = std::min(g.tiles(), MOST_GROUPS);
    std::vector<float> sums(groups * size);
    const auto pass = [&](auto row) {
        Loop loop{groups, [&](Loop& self) {
                      const Rows rows(back, between);
                      const auto each = [&](int64_t i) {
                          const Sums found(back, &sums[i * size]);
                          for (int64_t k = i * g.tiles() / groups; k < (i + 1) * g.tiles() / groups; ++k) row(rows, Tile(g, k), found);
                      };
                      self.take(each, 1);
                  }};
        return loop.run(reinterpret_cast<Parallel>(c.team), static_cast<int>(c.threads));
    };
    if (!pass([](const Rows& rows, const Tile& t, const Sums& found) {
            for (int64_t y = t.top - 1; y <= t.top; ++y) rows.again.widen_row(t, y);
            for (int64_t y = t.top; y < t.bottom; ++y) {
                rows.again.widen_row(t, y + 1);
                rows.first_pass(t, y, found);
            }
        }))
        return false;
    if (!pass([](const Rows& rows, const Tile& t, const Sums& found) {
            for (int64_t y = t.top; y < t.bottom; ++y) rows.second_pass(t, y, found);
        }))
        return false;
    for (int64_t i = 1; i < groups; ++i) add(sums.data(), &sums[i * size], size);
    Sums(back, sums.data()).write(back, c.d_parameters);
    return true;
}

}  // namespace

// 0, or 1 where the memory did not suffice.
KITHKIN_API int kithkin_gated_block_backward(const KithkinGatedBlock* c) { return guarded([=] { return backward(*c); }); }
