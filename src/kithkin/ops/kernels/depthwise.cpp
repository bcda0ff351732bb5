// The middle of the feed-forward network alone (depthwise.hpp), and the interface that Python calls through ctypes.

#include <vector>

#include "depthwise.hpp"
#include "team.hpp"

using namespace kithkin;

namespace {

bool forward(const KithkinDepthwise& c) {
    const Strips strips(c, 4 * c.threads, 4);
    const std::vector<float> weight = taps_first(c);
    Loop loop{strips.count(), [&](Loop& self) {
                  Rows rows(strips);
                  const auto each = [&](int64_t i) {
                      const auto put = [&](int64_t y, int64_t x, int64_t from, Vec found) {
                          store(c.out + strips.row(strips.image(i), y) + x * c.channels + from, found);
                      };
                      forward_strip(strips, i, weight.data(), rows, put, [](int64_t) {});
                  };
                  self.take(each, 1);
              }};
    return loop.run(reinterpret_cast<Parallel>(c.team), static_cast<int>(c.threads));
}

}  // namespace

// 0, or 1 where the memory did not suffice.
KITHKIN_API int kithkin_depthwise(const KithkinDepthwise* c) { return guarded([=] { return forward(*c); }); }
KITHKIN_API int kithkin_depthwise_backward(const KithkinDepthwise* c) { return guarded([=] { return differentiate_depthwise(*c); }); }
