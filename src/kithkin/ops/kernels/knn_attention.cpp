// The loops over rounds and chunks of the attention, and the interface that Python calls through ctypes.

#include <type_traits>
#include <vector>

#include "chunk.hpp"
#include "team.hpp"

using namespace kithkin;

extern "C" {

// Pointers to contiguous numbers but for query, key and value, whose pixels are `pitch` numbers apart; rows are batch *
// patches, and shapes are as in chunk.hpp. native.py mirrors this struct.
struct KithkinCall {
    const void *query, *key, *value, *grad;
    const int64_t *order, *neighbors;  // (batch, rounds, patches); (batch, patches, kc) or none
    float *out, *total, *top;
    const float *norm, *delta;
    float *d_query, *d_key, *d_value;
    void* team;
    int64_t threads, batch, rounds, patches, k, kc, pitch, pixels, channels, heads, paper, bfloat16;
};
}

namespace {

struct Chunks {
    const KithkinCall& call;
    int64_t per_image;  // chunks of a round

    explicit Chunks(const KithkinCall& c) : call(c), per_image((c.patches + c.k - 1) / c.k) {}
    int64_t count() const { return call.batch * per_image; }

    template <typename Each>
    void each_query(int64_t round, int64_t chunk, Each each) const {
        const int64_t image = chunk / per_image, g = chunk % per_image;
        const int64_t* order = call.order + (image * call.rounds + round) * call.patches;
        for (int64_t place = g * call.k; place < std::min((g + 1) * call.k, call.patches); ++place)
            each(image * call.patches + order[place]);
    }

    // Eq. (7), and the candidates N_p of its patches: the chunk and, where there are 2k, the one before it in a circular row.
    void find(int64_t round, int64_t chunk, Scratch& w) const {
        const int64_t image = chunk / per_image, g = chunk % per_image, first = image * call.patches;
        const int64_t* order = call.order + (image * call.rounds + round) * call.patches;
        const auto fill = [&](int64_t g, int64_t* to) {
            for (int64_t i = 0; i < call.k; ++i) {
                const int64_t place = g * call.k + i;
                to[i] = place < call.patches ? first + order[place] : -1;
            }
        };
        fill(g, w.queries);
        if (call.neighbors) {
            const int64_t* near = call.neighbors + w.queries[0] * call.kc;
            for (int64_t i = 0; i < call.kc; ++i) w.candidates[i] = near[i] < 0 ? -1 : first + near[i];
        } else {
            std::memcpy(w.candidates, w.queries, call.k * sizeof *w.queries);
            if (call.kc > call.k) fill((g + per_image - 1) % per_image, w.candidates + call.k);
        }
    }
};

// What the next chunk is the first to need.
template <typename T>
void look_ahead(const Chunks& chunks, const Round<T>& call, int64_t round, int64_t chunk, Ahead& ahead) {
    const Shape& s = call.shape;
    ahead.clear();
    if (chunk + 1 >= chunks.count()) return;
    chunks.each_query(round, chunk + 1, [&](int64_t patch) {
        for (const T* base : {call.query, call.key, call.value})
            ahead.add(base + patch * s.pixels * call.pitch, s.pixels, call.pitch * sizeof(T), s.channels * sizeof(T));
        if (!call.first) ahead.add(call.out + patch * s.patch(), s.pixels, s.channels * 4, s.channels * 4);
    });
    ahead.begin(2 * s.kc * s.heads * ((s.kq + s.per_block - 1) / s.per_block));
}

// The same for the backward pass, where the chunks before and after have been left out: all that the chunk meets is new.
template <typename T>
void look_ahead(const Chunks& chunks, const Round<T>& call, int64_t round, const int64_t* chunk, const int64_t* end,
                Scratch& w, Ahead& ahead) {
    const Shape& s = call.shape;
    ahead.clear();
    if (chunk + 1 == end) return;
    chunks.find(round, chunk[1], w);
    const auto add = [&](const auto* base, int64_t patch, int64_t pitch) {
        if (patch < 0) return;
        ahead.add(base + patch * s.pixels * pitch, s.pixels, pitch * sizeof *base, s.channels * sizeof *base);
    };
    for (int64_t i = 0; i < s.kq; ++i) {
        add(call.query, w.queries[i], call.pitch);
        add(call.grad, w.queries[i], s.channels);
        add(call.d_query, w.queries[i], s.channels);
    }
    for (int64_t j = 0; j < s.kc; ++j) {
        for (const T* base : {call.key, call.value}) add(base, w.candidates[j], call.pitch);
        for (const float* base : {call.d_key, call.d_value}) add(base, w.candidates[j], s.channels);
    }
    ahead.begin(5 * s.kc * s.heads);  // the products of a candidate
}

template <typename T>
Round<T> round_of(const KithkinCall& c, int64_t j, bool backward) {
    const auto typed = [](const void* x) { return static_cast<const T*>(x); };
    return {Shape(c.pixels, c.channels, c.heads, c.k, c.kc, backward), c.pitch,
            typed(c.query), typed(c.key), typed(c.value), typed(c.grad),
            c.out, c.total, c.top, c.norm, c.delta, c.d_query, c.d_key, c.d_value,
            c.paper != 0, j == 0, j == c.rounds - 1};
}

template <typename T>
constexpr bool converts = !std::is_same_v<T, float>;

template <typename Dot, typename T>
bool forward(const KithkinCall& c) {
    const Chunks chunks(c);
    for (int64_t j = 0; j < c.rounds; ++j) {
        const Round<T> call = round_of<T>(c, j, false);
        Loop loop{chunks.count(), [&](Loop& self) {
                      Scratch scratch(call.shape, false, converts<T>);
                      Ahead ahead;
                      self.take([&](int64_t i) {
                          look_ahead(chunks, call, j, i, ahead);
                          chunks.find(j, i, scratch);
                          forward_chunk<Dot>(call, scratch, ahead);
                      }, std::clamp<int64_t>(chunks.count() / (16 * c.threads), 4, 64));
                  }};
        if (!loop.run(reinterpret_cast<Parallel>(c.team), static_cast<int>(c.threads))) return false;
    }
    return true;
}

// A chunk shares candidates with the chunks beside it, so even and odd chunks take turns; in a circular row of odd length
// the last comes alone. Lists of neighbours may share any, so one thread works them off. The order of additions, and so
// the result, does not depend on the threads.
template <typename Dot, typename T>
bool backward(const KithkinCall& c) {
    const Chunks chunks(c);
    std::vector<int64_t> turns[3];
    for (int64_t i = 0; i < chunks.count(); ++i) {
        const int64_t g = i % chunks.per_image;
        const bool alone = chunks.per_image > 1 && chunks.per_image % 2 && g == chunks.per_image - 1;
        turns[c.neighbors ? 0 : alone ? 2 : g % 2].push_back(i);
    }
    for (int64_t j = 0; j < c.rounds; ++j) {
        const Round<T> call = round_of<T>(c, j, true);
        for (const auto& turn : turns) {
            Loop loop{static_cast<int64_t>(turn.size()), [&](Loop& self) {
                          Scratch scratch(call.shape, true, converts<T>);
                          Ahead ahead;
                          self.take([&](int64_t i) {
                              look_ahead(chunks, call, j, &turn[i], turn.data() + turn.size(), scratch, ahead);
                              chunks.find(j, turn[i], scratch);
                              backward_chunk<Dot>(call, scratch, ahead);
                          }, std::clamp<int64_t>(static_cast<int64_t>(turn.size()) / (16 * c.threads), 4, 64));
                      }};
            const int threads = c.neighbors ? 1 : static_cast<int>(c.threads);
            if (!loop.run(reinterpret_cast<Parallel>(c.team), threads)) return false;
        }
    }
    return true;
}

bool pairs_fit(const KithkinCall& c) { return c.pixels % 2 == 0 && c.pitch % 2 == 0 && c.channels / c.heads % 2 == 0; }

}  // namespace

// 0, or 1 where the work fails or memory runs out.
KITHKIN_API int kithkin_forward(const KithkinCall* c) {
    if (!c->bfloat16) return guarded([=] { return forward<Floats, float>(*c); });
#ifdef __AVX512BF16__
    if (pairs_fit(*c)) return guarded([=] { return forward<Pairs, bfloat16>(*c); });
#endif
    return guarded([=] { return forward<Floats, bfloat16>(*c); });
}
KITHKIN_API int kithkin_backward(const KithkinCall* c) {
    if (!c->bfloat16) return guarded([=] { return backward<Floats, float>(*c); });
#ifdef __AVX512BF16__
    if (pairs_fit(*c)) return guarded([=] { return backward<Pairs, bfloat16>(*c); });
#endif
    return guarded([=] { return backward<Floats, bfloat16>(*c); });
}
