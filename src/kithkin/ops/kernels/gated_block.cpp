// The gated block, forward: from three rows of a tile of the widened map comes a finished row of the result.

#include "gated.hpp"

using namespace kithkin;

namespace {

constexpr int64_t TILE_NUMBERS = 12288;  // pixels of a tile's row times channels, of which the buffers hold ten times as many
constexpr int64_t LEAST_COLUMNS = 36, LEAST_ROWS = 8;

bool forward(const KithkinGatedBlock& c) {
    const int64_t columns = std::max(LEAST_COLUMNS, TILE_NUMBERS / c.channels), across = (c.width + columns - 1) / columns;
    const int64_t wanted = c.threads == 1 ? 1 : (4 * c.threads + c.batch * across - 1) / (c.batch * across);
    const Gated g(c, {across, std::max<int64_t>(1, std::min(wanted, c.height / LEAST_ROWS))});
    Loop loop{g.tiles(), [&](Loop& self) {
                  const Buffers buffers(g);
                  const auto each = [&](int64_t i) {
                      const Tile tile(g, i);
                      for (int64_t y = tile.top - 1; y <= tile.top; ++y) buffers.widen_row(tile, y);
                      for (int64_t y = tile.top; y < tile.bottom; ++y) {
                          buffers.widen_row(tile, y + 1);
                          buffers.finish_row(tile, y);
                      }
                  };
                  self.take(each, 1);
              }};
    return loop.run(reinterpret_cast<Parallel>(c.team), static_cast<int>(c.threads));
}

}  // namespace

// 0, or 1 where the memory did not suffice.
KITHKIN_API int kithkin_gated_block(const KithkinGatedBlock* c) { return guarded([=] { return forward(*c); }); }
