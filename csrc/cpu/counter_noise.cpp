#include "counter_noise.h"

#include <algorithm>

namespace {

using namespace fastgan;

constexpr int kLanes = 256;  // blocks of four elements that go through each loop together

// Blocks of four elements, numbered through all samples: where each one's counter is and where its numbers go.
struct Tile {
  int lanes;
  uint32_t index_low[kLanes], index_high[kLanes];
  uint32_t block[kLanes];
  int64_t out[kLanes];  // of the first element
  int room[kLanes];     // 4, and fewer at the end of a sample
};

struct WordLanes {
  uint32_t w[4][kLanes];
};

Tile tile_at(const CounterNoise& noise, int64_t first, int64_t end) {
  const int64_t blocks = (noise.elements + 3) / 4;
  Tile tile;
  tile.lanes = int(end - first);
  int64_t n = first / blocks, block = first % blocks;
  for (int lane = 0; lane < tile.lanes; ++lane) {
    tile.index_low[lane] = uint32_t(noise.index[n]);
    tile.index_high[lane] = uint32_t(uint64_t(noise.index[n]) >> 32);
    tile.block[lane] = uint32_t(block);
    tile.out[lane] = n * noise.elements + 4 * block;
    tile.room[lane] = int(std::min<int64_t>(4, noise.elements - 4 * block));
    if (++block == blocks) block = 0, ++n;
  }
  for (int lane = tile.lanes; lane < kLanes; ++lane)
    tile.index_low[lane] = tile.index_high[lane] = tile.block[lane] = 0;
  return tile;
}

// The loops below have a fixed count and no branches, so that they vectorise; the lanes past the end are thrown away.

FASTGAN_CLONES void words_of(const CounterNoise& noise, const Tile& __restrict__ tile, bool low,
                             WordLanes& __restrict__ words) {
  const CounterNoise from = noise;  // a local copy lives in registers
  for (int lane = 0; lane < kLanes; ++lane) {
    const Words four = counter_words(from, tile.index_low[lane], tile.index_high[lane], tile.block[lane], low);
    words.w[0][lane] = four.w[0];
    words.w[1][lane] = four.w[1];
    words.w[2][lane] = four.w[2];
    words.w[3][lane] = four.w[3];
  }
}

FASTGAN_CLONES void uniform_floats(const WordLanes& high, float (*values)[kLanes]) {
  for (int j = 0; j < 4; ++j)
    for (int lane = 0; lane < kLanes; ++lane) values[j][lane] = uniform_float(high.w[j][lane]);
}

FASTGAN_CLONES void uniform_doubles(const WordLanes& high, const WordLanes& low, double (*values)[kLanes]) {
  for (int j = 0; j < 4; ++j)
    for (int lane = 0; lane < kLanes; ++lane) values[j][lane] = uniform_double(high.w[j][lane], low.w[j][lane]);
}

FASTGAN_CLONES void normal_floats(const WordLanes& high, float (*values)[kLanes]) {
  for (int j = 0; j < 4; j += 2)
    for (int lane = 0; lane < kLanes; ++lane) {
      const Pair pair = normal_float(high.w[j][lane], high.w[j + 1][lane]);
      values[j][lane] = float(pair.first);
      values[j + 1][lane] = float(pair.second);
    }
}

FASTGAN_CLONES void normal_doubles(const WordLanes& high, const WordLanes& low, double (*values)[kLanes]) {
  for (int j = 0; j < 4; j += 2)
    for (int lane = 0; lane < kLanes; ++lane) {
      const Pair pair = normal_double(high.w[j][lane], low.w[j][lane], high.w[j + 1][lane], low.w[j + 1][lane]);
      values[j][lane] = pair.first;
      values[j + 1][lane] = pair.second;
    }
}

void integers(const WordLanes& high, const WordLanes& low, int64_t below, int64_t (*values)[kLanes]) {
  for (int j = 0; j < 4; ++j)
    for (int lane = 0; lane < kLanes; ++lane) values[j][lane] = integer_below(high.w[j][lane], low.w[j][lane], below);
}

template <typename T>
void store(const Tile& tile, const T (*values)[kLanes], T* out) {
  for (int lane = 0; lane < tile.lanes; ++lane) {
    T* to = out + tile.out[lane];
    if (tile.room[lane] == 4) {
      for (int j = 0; j < 4; ++j) to[j] = values[j][lane];  // unrolled
    } else {
      for (int j = 0; j < tile.room[lane]; ++j) to[j] = values[j][lane];
    }
  }
}

// `fill(high, low, values)` makes a tile's numbers of its words.
template <typename T, bool kLow, typename Fill>
void run(const CounterNoise& noise, int threads, Fill fill) {
  const int64_t blocks = noise.samples * ((noise.elements + 3) / 4);
#pragma omp parallel for schedule(static) num_threads(threads) if (blocks > 4 * kLanes && threads > 1)
  for (int64_t first = 0; first < blocks; first += kLanes) {
    const Tile tile = tile_at(noise, first, std::min(first + kLanes, blocks));
    WordLanes high, low;
    T values[4][kLanes];
    words_of(noise, tile, false, high);
    if (kLow) words_of(noise, tile, true, low);
    fill(high, low, values);
    store<T>(tile, values, static_cast<T*>(noise.out));
  }
}

}  // namespace

void fastgan_counter_noise_cpu(const CounterNoise* noise, CounterNoiseKind kind, int threads) {
  switch (kind) {
    case CounterNoiseKind::kUniformFloat:
      return run<float, false>(*noise, threads, [](auto& high, auto&, auto* values) { uniform_floats(high, values); });
    case CounterNoiseKind::kUniformDouble:
      return run<double, true>(*noise, threads, uniform_doubles);
    case CounterNoiseKind::kNormalFloat:
      return run<float, false>(*noise, threads, [](auto& high, auto&, auto* values) { normal_floats(high, values); });
    case CounterNoiseKind::kNormalDouble:
      return run<double, true>(*noise, threads, normal_doubles);
    case CounterNoiseKind::kIntegers:
      return run<int64_t, true>(*noise, threads, [noise](auto& high, auto& low, auto* values) {
        integers(high, low, noise->high, values);
      });
  }
}
