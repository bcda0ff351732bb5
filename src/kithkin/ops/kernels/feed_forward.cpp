// Eq. (4) over maps (B, H, W, C): X + FFN(LN(X)), and its gradients.
//
// Forward: normalised pixels are widened; the middle (depthwise.hpp) goes in strips, whose results are narrowed at once.
// Backward: gradients of the middle's results; the middle, which gives those results again; gradients of the matrices, from
// parts of the map whose shares are added up in their order, so that nothing depends on the threads; gradients of X.

#include <memory>
#include <vector>

#include "depthwise.hpp"

using namespace kithkin;

extern "C" {

// x, grad, out, d_x (B, H, W, channels); hidden, what the widening gives, (B, H, W, wide); matrices (outputs, inputs);
// stencils (wide, 9). d_parameters holds the gradients of the eight parameters in the order in which they stand here. native.py
// mirrors this struct.
struct KithkinFeedForward {
    const float *x, *norm_weight, *norm_bias, *widen, *widen_bias, *stencils, *stencil_bias, *narrow, *narrow_bias;
    float *hidden, *out;
    const float* grad;
    float *d_x, *d_parameters;
    void* team;
    int64_t threads, batch, height, width, channels, wide;
    double epsilon;
};
}

namespace {

constexpr int64_t BLOCK = 64;             // pixels that are normalised or narrowed together
constexpr int64_t PART_NUMBERS = 1 << 17; // numbers of a part of the maps, which a product over pixels reads again and again

struct FeedForward {
    const KithkinFeedForward& call;
    Norm norm;
    int64_t pixels;

    explicit FeedForward(const KithkinFeedForward& c)
        : call(c), norm{c.norm_weight, c.norm_bias, static_cast<float>(c.epsilon), Lanes(c.channels)},
          pixels(c.batch * c.height * c.width) {}

    template <typename Work>
    bool team(int64_t count, Work work) const {
        Loop loop{count, work};
        return loop.run(reinterpret_cast<Parallel>(call.team), static_cast<int>(call.threads));
    }
    // each(first pixel, how many, which block) for every block of `size` pixels; `scratch` numbers for each thread.
    template <typename Each>
    bool blocks(int64_t size, int64_t scratch, Each each) const {
        return team((pixels + size - 1) / size, [=](Loop& self) {
            std::vector<float> memory(scratch);
            self.take([&](int64_t i) { each(i * size, std::min(size, pixels - i * size), i, memory.data()); }, 1);
        });
    }
    Depthwise middle() const {
        return {call.hidden, call.stencils, call.stencil_bias, nullptr, nullptr, nullptr, nullptr, nullptr,
                call.team,   call.threads,  call.batch,        call.height, call.width, call.wide};
    }
    int64_t part() const { return std::max(BLOCK, PART_NUMBERS / (call.channels + call.wide) / BLOCK * BLOCK); }
};

bool forward(const KithkinFeedForward& c) {
    const FeedForward f(c);
    const std::vector<float> widen = turned(c.widen, c.wide, c.channels), narrow = turned(c.narrow, c.channels, c.wide);
    const bool widened = f.blocks(BLOCK, BLOCK * c.channels, [&](int64_t first, int64_t count, int64_t, float* normal) {
        for (int64_t i = 0; i < count; ++i) f.norm.apply(c.x + (first + i) * c.channels, normal + i * c.channels);
        float* out = c.hidden + first * c.wide;
        dense({normal, c.channels, 1}, count, widen.data(), c.wide, c.wide, c.channels,
              [&](int64_t r, int64_t lane, Vec sum) { store(out + r * c.wide + lane, sum + load(c.widen_bias + lane)); });
    });
    if (!widened) return false;
    const Depthwise middle = f.middle();
    const Strips strips(middle, 4 * c.threads, 4);
    const std::vector<float> taps = taps_first(middle);
    const int64_t together = std::max<int64_t>(1, BLOCK / c.width);  // rows
    return f.team(strips.count(), [&](Loop& self) {
        Rows rows(strips);
        std::vector<float> found(together * c.width * c.wide);
        const auto narrow_rows = [&](int64_t image, int64_t first, int64_t end) {
            const int64_t from = (image * c.height + first) * c.width * c.channels;
            dense({found.data(), c.wide, 1}, (end - first) * c.width, narrow.data(), c.channels, c.channels, c.wide,
                  [&](int64_t r, int64_t lane, Vec sum) {
                      const int64_t at = from + r * c.channels + lane;
                      store(c.out + at, sum + load(c.narrow_bias + lane) + load(c.x + at));
                  });
        };
        const auto each = [&](int64_t i) {
            const int64_t first = strips.first(i), end = strips.end(i);
            const auto place = [&](int64_t y) { return found.data() + (y - first) % together * c.width * c.wide; };
            forward_strip(
                strips, i, taps.data(), rows,
                [&](int64_t y, int64_t x, int64_t lane, Vec v) { store(place(y) + x * c.wide + lane, v); },
                [&](int64_t y) {
                    const int64_t done = (y - first) % together + 1;
                    if (done == together || y + 1 == end) narrow_rows(strips.image(i), y + 1 - done, y + 1);
                });
        };
        self.take(each, 1);
    });
}

// Where each parameter's gradient lies in d_parameters.
struct Gradients {
    float *norm, *widen, *widen_bias, *stencils, *stencil_bias, *narrow, *narrow_bias;

    explicit Gradients(const KithkinFeedForward& c) {
        float* next = c.d_parameters;
        const auto take = [&](int64_t n) { return next += n, next - n; };
        norm = take(2 * c.channels), widen = take(c.wide * c.channels), widen_bias = take(c.wide);
        stencils = take(c.wide * TAPS), stencil_bias = take(c.wide);
        narrow = take(c.channels * c.wide), narrow_bias = take(c.channels);
    }
};

// The gradients of a matrix of (channels, wide) and of the offsets beside it, from the factors over all pixels: sums of x
// and g, and of what `offsets` has. Parts of the map give shares, which are added up in their order; within a part, blocks of
// pixels are summed apart, for long sums in float32 lose digits.
struct MatrixSums {
    const FeedForward& f;
    const float *x, *g, *offsets;  // (pixels, channels), (pixels, wide), one of the two
    int64_t size, parts;
    std::vector<float> shares;

    MatrixSums(const FeedForward& feed, const float* left, const float* right, const float* summed)
        : f(feed), x(left), g(right), offsets(summed), parts((feed.pixels + feed.part() - 1) / feed.part()) {
        size = f.call.channels * f.call.wide + (offsets == x ? f.call.channels : f.call.wide);
        shares.resize(parts * size);
    }
    int64_t groups() const { return (f.call.channels + 23) / 24; }
    int64_t tasks() const { return parts * groups(); }
    void run(int64_t task) {
        const int64_t channels = f.call.channels, wide = f.call.wide, part = task / groups(), group = task % groups();
        const int64_t first = part * f.part(), count = std::min(f.part(), f.pixels - first);
        const int64_t from = group * channels / groups(), rows = (group + 1) * channels / groups() - from;
        float* out = &shares[part * size];
        const int64_t width = offsets == x ? channels : wide;
        std::vector<float> some(rows * wide), sums(width);
        for (int64_t start = first; start < first + count; start += BLOCK) {
            const int64_t end = std::min(start + BLOCK, first + count);
            dense({x + start * channels + from, 1, channels}, rows, g + start * wide, wide, wide, end - start,
                  [&](int64_t r, int64_t lane, Vec sum) { store(&some[r * wide + lane], sum); });
            add(out + from * wide, some.data(), rows * wide);
            if (group) continue;
            std::fill(sums.begin(), sums.end(), 0.0f);
            for (int64_t i = start; i < end; ++i) add(sums.data(), offsets + i * width, width);
            add(out + channels * wide, sums.data(), width);
        }
    }
    const float* total() {
        for (int64_t p = 1; p < parts; ++p) add(shares.data(), &shares[p * size], size);
        return shares.data();
    }
};

bool backward(const KithkinFeedForward& c) {
    const FeedForward f(c);
    const Gradients d(c);
    const int64_t wide = f.pixels * c.wide;
    const auto numbers = [](int64_t n) { return std::unique_ptr<float[]>(new float[n]); };
    const auto normal = numbers(f.pixels * c.channels), d_result = numbers(wide), result = numbers(wide), d_hidden = numbers(wide);
    if (!f.blocks(BLOCK, 0, [&](int64_t first, int64_t count, int64_t, float*) {
            for (int64_t i = first; i < first + count; ++i) f.norm.apply(c.x + i * c.channels, &normal[i * c.channels]);
            float* out = &d_result[first * c.wide];
            dense({c.grad + first * c.channels, c.channels, 1}, count, c.narrow, c.wide, c.wide, c.channels,
                  [&](int64_t r, int64_t lane, Vec sum) { store(out + r * c.wide + lane, sum); });
        }))
        return false;

    Depthwise middle = f.middle();
    middle.grad = d_result.get(), middle.out = result.get();
    middle.d_x = d_hidden.get(), middle.d_weight = d.stencils, middle.d_bias = d.stencil_bias;
    if (!differentiate_depthwise(middle)) return false;

    MatrixSums narrow(f, c.grad, result.get(), c.grad), widen(f, normal.get(), d_hidden.get(), d_hidden.get());
    if (!f.team(2 * narrow.tasks(), [&](Loop& self) {
            self.take([&](int64_t i) { (i % 2 ? widen : narrow).run(i / 2); }, 1);
        }))
        return false;
    const int64_t size = c.channels * c.wide;
    const float *narrowed = narrow.total(), *widened = widen.total();
    std::memcpy(d.narrow, narrowed, size * 4), std::memcpy(d.narrow_bias, narrowed + size, c.channels * 4);
    const std::vector<float> back = turned(widened, c.channels, c.wide);
    std::memcpy(d.widen, back.data(), size * 4), std::memcpy(d.widen_bias, widened + size, c.wide * 4);

    const int64_t parts = (f.pixels + f.part() - 1) / f.part();
    std::vector<float> sums(parts * 2 * c.channels);
    if (!f.blocks(f.part(), (BLOCK + 2) * c.channels, [&](int64_t first, int64_t count, int64_t part, float* slopes) {
            float* shares = slopes + BLOCK * c.channels;
            for (int64_t i = 0; i < count; i += BLOCK) {
                const int64_t start = first + i, some = std::min(BLOCK, count - i);
                dense({&d_hidden[start * c.wide], c.wide, 1}, some, c.widen, c.channels, c.channels, c.wide,
                      [&](int64_t r, int64_t lane, Vec sum) { store(slopes + r * c.channels + lane, sum); });
                std::fill(shares, shares + 2 * c.channels, 0.0f);
                for (int64_t r = 0; r < some; ++r) {
                    const int64_t at = (start + r) * c.channels;
                    f.norm.differentiate(c.x + at, slopes + r * c.channels, c.grad + at, c.d_x + at, shares);
                }
                add(&sums[part * 2 * c.channels], shares, 2 * c.channels);
            }
        }))
        return false;
    for (int64_t p = 1; p < parts; ++p) add(sums.data(), &sums[p * 2 * c.channels], 2 * c.channels);
    std::memcpy(d.norm, sums.data(), 2 * c.channels * 4);
    return true;
}

}  // namespace

// 0, or 1 where the memory did not suffice.
KITHKIN_API int kithkin_feed_forward(const KithkinFeedForward* c) { return guarded([=] { return forward(*c); }); }
KITHKIN_API int kithkin_feed_forward_backward(const KithkinFeedForward* c) { return guarded([=] { return backward(*c); }); }
