// How norm_act divides a tensor: which elements share their factors, which are summed in single precision before the
// sums go on in double, and what is worth a thread. Nothing of it depends on the number of threads.
#pragma once

#include <algorithm>
#include <numeric>

#include "../norm_act.h"

namespace fastgan {
namespace {

constexpr int64_t kRun = 4096;      // elements of a channel that are summed in the type of the arithmetic, in 16 lanes
constexpr int64_t kTileRows = 256;  // the same for columns
constexpr int64_t kBuffer = 4096;   // elements that are converted at once
constexpr int64_t kGroup = 1024;    // elements of a row, or columns, that go together
constexpr int64_t kChunk = 32768;   // elements that are worth a partial result of their own
constexpr int64_t kChunks = 64;     // at most

// With long rows of a channel (`per_row`), the tensor is [outer, channels, inner], and the factors are those of the
// channels. Otherwise it is [rows, width] and the factors are those of the columns, of which each has one channel:
// width is a multiple of channels * inner that suits vectors. What remains of the tensor is a last row of `tail`.
//
// Tiles: ranges of outer (and of inner, `parts` of them), or of rows; what remains is the last one. Chunks: ranges of
// tiles; what remains is the last one. Groups: ranges of channels, or of columns.
struct Grid {
  int64_t outer, channels, inner;
  bool per_row;
  int64_t width, rows, tail, parts;
  int64_t tile_rows, tiles, chunk_tiles, chunks, group, groups;

  struct Tile {
    int64_t first, count;  // outer or rows
    int64_t begin, end;    // of inner, or of columns
  };

  explicit Grid(const NormAct& norm) : outer(norm.outer), channels(norm.channels), inner(norm.inner) {
    per_row = inner >= 64 || (inner >= 16 && inner % 16 == 0);
    per_row ? make_rows() : make_columns();
    groups = (width + group - 1) / group;
    chunks = (tiles + chunk_tiles - 1) / chunk_tiles + (tail > 0);
    tiles += tail > 0;
  }

  void make_rows() {
    width = channels, rows = tail = 0;
    parts = (inner + kRun - 1) / kRun;
    tile_rows = std::max<int64_t>(1, kRun / inner);
    tiles = (outer + tile_rows - 1) / tile_rows * parts;
    chunk_tiles = per_chunk(tiles, std::min(outer, tile_rows) * std::min(inner, kRun) * channels);
    group = std::max<int64_t>(1, kGroup / inner);
  }

  void make_columns() {
    const int64_t period = channels * inner;
    int64_t periods = 16 / std::gcd(period, int64_t(16));
    if (period * periods > kGroup) periods = 1;
    while (period * periods < 64) periods *= 2;
    width = period * periods, rows = outer / periods, tail = outer % periods * period, parts = 1;
    tile_rows = std::min(kTileRows, std::max<int64_t>(4, kChunk / width));
    tiles = (rows + tile_rows - 1) / tile_rows;
    chunk_tiles = per_chunk(tiles, tile_rows * width);
    group = std::min(width, kGroup);
  }

  static int64_t per_chunk(int64_t tiles, int64_t elements_per_tile) {
    return std::max({int64_t(1), (tiles + kChunks - 1) / kChunks, kChunk / std::max<int64_t>(1, elements_per_tile)});
  }

  int64_t chunk_begin(int64_t chunk) const {
    return std::min(chunk * chunk_tiles, chunk == chunks ? tiles : tiles - (tail > 0));
  }

  Tile tile(int64_t t) const {
    if (per_row) {
      const int64_t first = t / parts * tile_rows, begin = t % parts * kRun;
      return {first, std::min(tile_rows, outer - first), begin, std::min(begin + kRun, inner)};
    }
    if (tail > 0 && t == tiles - 1) return {rows, 1, 0, tail};
    return {t * tile_rows, std::min(tile_rows, rows - t * tile_rows), 0, width};
  }

  // Elements of a tile that share one factor, where they have any.
  int64_t shared(const Tile& t) const { return per_row ? t.count * (t.end - t.begin) : t.count; }

  int64_t group_begin(int64_t g) const { return g * group; }
  int64_t group_end(int64_t g, const Tile& t) const { return std::min(g * group + group, per_row ? width : t.end); }

  // Calls f(offset, rows, n, stride) for every piece of group g of tile t: at most kBuffer elements where `small`.
  template <typename F>
  void pieces(const Tile& t, int64_t g, bool small, F f) const {
    const int64_t begin = group_begin(g), n = group_end(g, t) - begin;
    if (n <= 0) return;
    if (per_row) {
      for (int64_t o = t.first; o < t.first + t.count; ++o)
        f((o * channels + begin) * inner + t.begin, n, t.end - t.begin, inner);
      return;
    }
    const int64_t step = small ? std::max<int64_t>(1, kBuffer / n) : t.count;
    for (int64_t r = 0; r < t.count; r += step)
      f((t.first + r) * width + begin, std::min(step, t.count - r), n, width);
  }

  // Calls f(i) for the factors of channel c: i is the channel itself, or each of its columns.
  template <typename F>
  void factors(int64_t c, F f) const {
    if (per_row) return f(c);
    for (int64_t first = c * inner; first < width; first += channels * inner)
      for (int64_t i = first; i < first + inner; ++i) f(i);
  }

  // Elements that factor i has in all.
  int64_t elements(int64_t i) const { return per_row ? outer * inner : rows + (i < tail); }
};

}  // namespace
}  // namespace fastgan
