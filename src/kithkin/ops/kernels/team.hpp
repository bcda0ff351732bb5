// A team of threads that share out the numbers of a loop. No exception leaves it.

#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <exception>
#include <functional>
#include <thread>
#include <vector>

#include "api.hpp"

namespace kithkin {

using Parallel = void (*)(void (*)(void*), void*, unsigned, unsigned);

// Run `work` in a team of threads, each of which takes numbers from 0 to `count` - 1 until none is left. `team` is the
// GOMP_parallel of the OpenMP runtime that PyTorch has loaded, so that its sleeping threads are used and no second team is
// started; without one (Windows) each loop starts threads of its own.
struct Loop {
    int64_t count;
    std::function<void(Loop&)> work;
    std::atomic<int64_t> next{0};
    std::atomic<bool> failed{false};

    // In runs of `grain`: long ones, so that what a number leaves in a core's cache is there for the next, but several for
    // each thread, so that all end together.
    template <typename Each>
    void take(Each each, int64_t grain = 4) {
        for (int64_t i; (i = next.fetch_add(grain)) < count;)
            for (int64_t end = std::min(count, i + grain); i < end; ++i) each(i);
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
            try {
                for (int i = 1; i < threads; ++i) others.emplace_back(enter, this);
            } catch (const std::exception&) {  // the system gives no more threads: those that there are do the work
            }
            enter(this);
            for (auto& other : others) other.join();
        }
        return !failed;
    }
};

// 0, or 1 where the work fails or memory runs out.
template <typename Work>
int guarded(Work work) {
    try {
        return !work();
    } catch (const std::exception&) {
        return 1;
    }
}

}  // namespace kithkin
