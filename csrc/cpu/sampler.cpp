#include "sampler.h"

#include <algorithm>
#include <cmath>

namespace {

// As in fastgan/data/sampler.py
constexpr uint64_t kGolden = 0x9E3779B97F4A7C15u, kFlips = 0xD1B54A32D192ED03u, kBlocks = 0xE7037ED1A0B428DBu;
constexpr int64_t kSmall = 1000;
constexpr int kRounds = 8, kSmallRounds = 24;

uint64_t mix(uint64_t x) {
  x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9u;
  x = (x ^ (x >> 27)) * 0x94D049BB133111EBu;
  return x ^ (x >> 31);
}

uint64_t shift(uint64_t x, uint64_t salt, uint64_t modulus) {
  const uint64_t total = x + (((mix(salt) >> 32) * modulus) >> 32);
  return std::min(total, total - modulus);  // a negative difference wraps to a huge one
}

// A permutation of [0, count) for each key.
struct Permutation {
  uint64_t count, rows, columns;
  int rounds;

  explicit Permutation(int64_t count_) : count(uint64_t(count_)) {
    uint64_t root = uint64_t(std::sqrt(double(count - 1)));
    while (root * root > count - 1) --root;
    while ((root + 1) * (root + 1) <= count - 1) ++root;
    rows = root + 1;
    rows += rows % 2;
    columns = (count + rows - 1) / rows;
    rounds = count_ < kSmall ? kSmallRounds : kRounds;
  }

  uint64_t operator()(uint64_t x, uint64_t key) const {
    do {
      uint64_t row = x / columns, column = x - row * columns;
      for (int step = 0; step < rounds; step += 2) {
        row = shift(row, key + uint64_t(step + 1) * kGolden + column, rows);
        column = shift(column, key + uint64_t(step + 2) * kGolden + row, columns);
      }
      x = row * columns + column;
    } while (x >= count);
    return x;
  }
};

}  // namespace

void fastgan_image_order_cpu(uint64_t seed, int64_t count, int64_t block, const int64_t* samples, int64_t n,
                             int64_t* out) {
  const uint64_t hash = mix(seed + kGolden);
  if (block <= 0 || block >= count) {
    const Permutation all(count);
    for (int64_t i = 0; i < n; ++i) {
      const int64_t epoch = samples[i] / count;
      out[i] = int64_t(all(uint64_t(samples[i] - epoch * count), mix(hash + uint64_t(epoch))));
    }
    return;
  }
  const int64_t blocks = count / block;
  const Permutation whole(blocks), within(block), rest(std::max<int64_t>(count - blocks * block, 1));
  for (int64_t i = 0; i < n; ++i) {
    const int64_t epoch = samples[i] / count, position = samples[i] - epoch * count;
    uint64_t key = mix(hash + uint64_t(epoch)), number = uint64_t(position / block);
    const uint64_t image = uint64_t(position % block);
    const bool is_rest = int64_t(number) == blocks;
    if (!is_rest) number = whole(number, mix(key + kBlocks));
    key = mix(key + number);
    out[i] = int64_t(number * uint64_t(block) + (is_rest ? rest : within)(image, key));
  }
}

void fastgan_flips_cpu(uint64_t seed, const int64_t* samples, int64_t n, uint8_t* out) {
  const uint64_t hash = mix((seed ^ kFlips) + kGolden);
  for (int64_t i = 0; i < n; ++i) out[i] = uint8_t(mix(hash + uint64_t(samples[i])) >> 63);
}
