// The loops over rounds and chunks, and the interface that Python calls through ctypes. No exception leaves it.

#include <atomic>
#include <exception>
#include <functional>
#include <thread>
#include <vector>

#include "chunk.hpp"

namespace {

using namespace kithkin;

using Parallel = void (*)(void (*)(void*), void*, unsigned, unsigned);

// Run `work` in a team of threads, each of which takes numbers from 0 to `count` - 1 until none is left. `team` is the GOMP_parallel of the
// OpenMP runtime that PyTorch has loaded, so that its sleeping threads are used and no second team is started.
struct Loop {
    int64_t count;
    std::function<void(Loop&)> work;
    std::atomic<int64_t> next{0};
    std::atomic<bool> failed{false};

    template <typename Each>
    void take(Each each) {
        constexpr int64_t GRAIN = 4;
        for (int64_t i; (i = next.fetch_add(GRAIN)) < count;)
            for (int64_t end = std::min(count, i + GRAIN); i < end; ++i) each(i);
    }

    static void enter(void* self) {
        auto* loop = static_cast<Loop*>(self);
        try {
            loop->work(*loop);
        } catch (const std::exception&) {
            loop->failed = true;
        }
    }

    bool run(Parallel team, int threads) {
        if (threads <= 1) {
            enter(this);
        } else if (team) {
            team(enter, this, static_cast<unsigned>(threads), 0);
        } else {
            std::vector<std::thread> others;
            for (int i = 1; i < threads; ++i) others.emplace_back(enter, this);
            enter(this);
            for (auto& other : others) other.join();
        }
        return !failed;
    }
};

}  // namespace

extern "C" {

// Pointers to contiguous numbers; shapes as in chunk.hpp with rows = batch * patches. native.py mirrors this struct.
struct KithkinCall {
    const void *query, *key, *value, *grad;
    const int64_t *queries, *candidates;  // (rounds, batch * chunks, kq), (rounds, batch * chunks, kc)
    float *out, *total, *top;
    const float *norm, *delta;
    float *d_query, *d_key, *d_value;
    void* team;
    int64_t threads, rounds, batch, chunks, kq, kc, pixels, channels, heads, paper, bfloat16;
};
}

namespace {

template <typename T>
Round<T> round_of(const KithkinCall& c, int64_t j) {
    const int64_t chunks = c.batch * c.chunks;
    const auto typed = [](const void* x) { return static_cast<const T*>(x); };
    return {Shape(c.pixels, c.channels, c.heads, c.kq, c.kc),
            typed(c.query), typed(c.key), typed(c.value), typed(c.grad),
            c.queries + j * chunks * c.kq, c.candidates + j * chunks * c.kc,
            c.out, c.total, c.top, c.norm, c.delta, c.d_query, c.d_key, c.d_value,
            c.paper != 0, j == 0};
}

template <typename T>
bool forward(const KithkinCall& c) {
    for (int64_t j = 0; j < c.rounds; ++j) {
        const Round<T> call = round_of<T>(c, j);
        Loop loop{c.batch * c.chunks, [&call](Loop& self) {
                      Scratch scratch(call.shape, false);
                      self.take([&](int64_t i) { forward_chunk(call, i, scratch); });
                  }};
        if (!loop.run(reinterpret_cast<Parallel>(c.team), static_cast<int>(c.threads))) return false;
    }
    return true;
}

// A chunk shares candidates with the chunks beside it, so even and odd chunks take turns; in a circular row of odd length
// the last comes alone. The order of additions, and so the result, does not depend on the threads.
template <typename T>
bool backward(const KithkinCall& c) {
    std::vector<int64_t> turns[3];
    for (int64_t b = 0; b < c.batch; ++b)
        for (int64_t g = 0; g < c.chunks; ++g) {
            const bool alone = c.chunks > 1 && c.chunks % 2 && g == c.chunks - 1;
            turns[alone ? 2 : g % 2].push_back(b * c.chunks + g);
        }
    for (int64_t j = 0; j < c.rounds; ++j) {
        const Round<T> call = round_of<T>(c, j);
        for (const auto& turn : turns) {
            Loop loop{static_cast<int64_t>(turn.size()), [&call, &turn](Loop& self) {
                          Scratch scratch(call.shape, true);
                          self.take([&](int64_t i) { backward_chunk(call, turn[i], scratch); });
                      }};
            if (!loop.run(reinterpret_cast<Parallel>(c.team), static_cast<int>(c.threads))) return false;
        }
    }
    return true;
}

}  // namespace

extern "C" {

// 0, or 1 where the memory did not suffice.
int kithkin_forward(const KithkinCall* c) { return !(c->bfloat16 ? forward<bfloat16>(*c) : forward<float>(*c)); }
int kithkin_backward(const KithkinCall* c) { return !(c->bfloat16 ? backward<bfloat16>(*c) : backward<float>(*c)); }
}
