#include "../modulated_act.h"

#include <algorithm>
#include <vector>

#ifdef _OPENMP
#include <omp.h>
#endif

#include "convert.h"

namespace {

using namespace fastgan;

constexpr int64_t kTile = 4096;    // elements that go through together: sums of so many are in single precision
constexpr int64_t kGrain = 32768;  // elements that are worth a thread

// A piece of one sample in the type of the arithmetic: `rows` rows of n elements, one after the other. Where `columns`,
// a row is a pixel and an element a channel; else a row is a channel and an element a pixel.
template <typename C>
struct Tile {
  const C *x, *grad;
  C* out;
  int64_t rows, n;
  const C *scale, *bias, *noise;  // from the first channel and pixel of the piece on; noise may be null
  C strength, high, low;          // slopes of the result above and below zero, with the gain
};

// Sums per channel of the piece, added to.
template <typename C>
struct TileSums {
  C *with_x, *alone, *with_noise;
};

template <typename C>
FASTGAN_HD void act_columns(const Tile<C>& tile) {
  const Tile<C> t = tile;  // a local copy lives in registers
  for (int64_t r = 0; r < t.rows; ++r) {
    const C *x = t.x + r * t.n, added = t.noise ? t.noise[r] * t.strength : C(0);
    C* out = t.out + r * t.n;
    FASTGAN_IVDEP
    for (int64_t i = 0; i < t.n; ++i) {
      const C z = x[i] * t.scale[i] + (t.bias[i] + added);
      out[i] = z * (z > 0 ? t.high : t.low);
    }
  }
}

template <bool kNoise, typename C>
FASTGAN_HD void act_rows(const Tile<C>& tile) {
  const Tile<C> t = tile;
  for (int64_t r = 0; r < t.rows; ++r) {
    const C *x = t.x + r * t.n, *noise = t.noise, scale = t.scale[r], bias = t.bias[r], strength = t.strength;
    C* out = t.out + r * t.n;
    FASTGAN_IVDEP
    for (int64_t i = 0; i < t.n; ++i) {
      const C z = x[i] * scale + (kNoise ? bias + noise[i] * strength : bias);
      out[i] = z * (z > 0 ? t.high : t.low);
    }
  }
}

template <typename C>
FASTGAN_HD void backward_columns(const Tile<C>& tile, const TileSums<C>& to) {
  const Tile<C> t = tile;
  const TileSums<C> sums = to;
  for (int64_t r = 0; r < t.rows; ++r) {
    const C *x = t.x + r * t.n, *grad = t.grad + r * t.n;
    const C noise = t.noise ? t.noise[r] : C(0), added = noise * t.strength;
    C* out = t.out + r * t.n;
    FASTGAN_IVDEP
    for (int64_t i = 0; i < t.n; ++i) {
      const C of_x = x[i], scale = t.scale[i], z = of_x * scale + (t.bias[i] + added);
      const C dz = grad[i] * (z > 0 ? t.high : t.low);
      out[i] = dz * scale;
      sums.with_x[i] += dz * of_x;
      sums.alone[i] += dz;
      sums.with_noise[i] += dz * noise;
    }
  }
}

template <bool kNoise, typename C>
FASTGAN_HD void backward_rows(const Tile<C>& tile, const TileSums<C>& sums) {
  const Tile<C> t = tile;
  for (int64_t r = 0; r < t.rows; ++r) {
    const C *x = t.x + r * t.n, *grad = t.grad + r * t.n, *noise = t.noise, scale = t.scale[r];
    const C bias = t.bias[r], strength = t.strength;
    C *out = t.out + r * t.n, with_x = 0, alone = 0, with_noise = 0;
#pragma omp simd reduction(+ : with_x, alone, with_noise)
    for (int64_t i = 0; i < t.n; ++i) {
      const C z = x[i] * scale + (kNoise ? bias + noise[i] * strength : bias);
      const C dz = grad[i] * (z > 0 ? t.high : t.low);
      out[i] = dz * scale;
      with_x += dz * x[i];
      alone += dz;
      if (kNoise) with_noise += dz * noise[i];
    }
    sums.with_x[r] += with_x;
    sums.alone[r] += alone;
    sums.with_noise[r] += with_noise;
  }
}

#define FASTGAN_LOOPS_OF(C)                                                                 \
  FASTGAN_CLONES void act_tile(const Tile<C>& tile, bool columns) {                         \
    if (columns) return act_columns(tile);                                                  \
    tile.noise ? act_rows<true>(tile) : act_rows<false>(tile);                              \
  }                                                                                         \
  FASTGAN_CLONES void backward_tile(const Tile<C>& tile, bool columns, const TileSums<C>& sums) { \
    if (columns) return backward_columns(tile, sums);                                       \
    tile.noise ? backward_rows<true>(tile, sums) : backward_rows<false>(tile, sums);        \
  }

FASTGAN_LOOPS_OF(float)
FASTGAN_LOOPS_OF(double)

// The tiles of one sample, elements in T, arithmetic in C.
template <typename T, typename C>
class Sample {
 public:
  explicit Sample(const ModulatedAct& act) : act_(act), zeros_(act.bias ? 0 : size_t(act.channels), C(0)) {
    if (sizeof(T) != sizeof(C)) buffer_.resize(size_t(3 * std::max(kTile, row())));
  }

  // Calls f(tile, first channel, channels) for every tile of sample n.
  template <typename F>
  void tiles(int64_t n, const T* grad, T* out, F f) {
    const int64_t rows = act_.channels_last ? act_.pixels : act_.channels, size = row();
    const int64_t many = std::max<int64_t>(1, kTile / std::max<int64_t>(1, size)), start = n * rows * size;
    const C* scale = static_cast<const C*>(act_.scale) + n * act_.channels;
    const C* bias = act_.bias ? static_cast<const C*>(act_.bias) : zeros_.data();
    const C* noise = act_.noise ? static_cast<const C*>(act_.noise) + (act_.shared_noise ? 0 : n * act_.pixels) : nullptr;
    const C strength = act_.noise ? *static_cast<const C*>(act_.strength) : C(0);
    for (int64_t r = 0; r < rows; r += many) {
      const int64_t count = std::min(many, rows - r), channel = act_.channels_last ? 0 : r, at = start + r * size;
      Tile<C> tile = {nullptr, nullptr,        nullptr,  count,          size, scale + channel, bias + channel, noise,
                      strength, C(act_.gain), C(act_.gain * act_.slope)};
      if (noise && act_.channels_last) tile.noise = noise + r;
      const int64_t channels = act_.channels_last ? act_.channels : count;
      run(tile, static_cast<const T*>(act_.x) + at, grad ? grad + at : nullptr, out + at,
          [&] { f(tile, channel, channels); });
    }
  }

 private:
  int64_t row() const { return act_.channels_last ? act_.channels : act_.pixels; }

  template <typename F>
  void run(Tile<C>& tile, const T* x, const T* grad, T* out, F f) {
    const int64_t n = tile.rows * tile.n;
    if constexpr (sizeof(T) == sizeof(C)) {
      tile.x = x, tile.grad = grad, tile.out = out;
      f();
    } else {
      C* const buffer = buffer_.data();
      const int64_t size = int64_t(buffer_.size()) / 3;
      convert(x, n, buffer, SimdLevel::kAvx512);
      if (grad) convert(grad, n, buffer + size, SimdLevel::kAvx512);
      tile.x = buffer, tile.grad = buffer + size, tile.out = buffer + 2 * size;
      f();
      convert(tile.out, n, out, SimdLevel::kAvx512);
    }
  }

  const ModulatedAct& act_;
  std::vector<C> zeros_, buffer_;
};

int threads_for(const ModulatedAct& act, int threads) {
  const int64_t numel = act.samples * act.channels * act.pixels;
  return int(std::max<int64_t>(1, std::min<int64_t>({threads, act.samples, (numel + kGrain - 1) / kGrain})));
}

template <typename T, typename C>
void forward(const ModulatedAct& act, void* out, int threads) {
  threads = threads_for(act, threads);
#pragma omp parallel num_threads(threads) if (threads > 1)
  {
    Sample<T, C> sample(act);
#pragma omp for schedule(static)
    for (int64_t n = 0; n < act.samples; ++n)
      sample.tiles(n, nullptr, static_cast<T*>(out),
                   [&](const Tile<C>& tile, int64_t, int64_t) { act_tile(tile, act.channels_last); });
  }
}

// Sums of a tile in C, those of tiles in double.
template <typename T, typename C>
void backward(const ModulatedAct& act, const void* grad, void* dx, void* sums, int threads) {
  threads = threads_for(act, threads);
  const int64_t size = act.channels, stride = act.samples * size;
#pragma omp parallel num_threads(threads) if (threads > 1)
  {
    Sample<T, C> sample(act);
    std::vector<C> part(size_t(3 * size));
    std::vector<double> whole(size_t(3 * size));
#pragma omp for schedule(static)
    for (int64_t n = 0; n < act.samples; ++n) {
      std::fill(whole.begin(), whole.end(), 0.0);
      sample.tiles(n, static_cast<const T*>(grad), static_cast<T*>(dx),
                   [&](const Tile<C>& tile, int64_t channel, int64_t channels) {
                     std::fill(part.begin(), part.end(), C(0));
                     backward_tile(tile, act.channels_last, {part.data(), part.data() + size, part.data() + 2 * size});
                     for (int64_t k = 0; k < 3; ++k)
                       for (int64_t c = 0; c < channels; ++c) whole[k * size + channel + c] += double(part[k * size + c]);
                   });
      for (int64_t k = 0; k < 3; ++k)
        for (int64_t c = 0; c < size; ++c) static_cast<C*>(sums)[k * stride + n * size + c] = C(whole[k * size + c]);
    }
  }
}

}  // namespace

void fastgan_modulated_act_cpu(const ModulatedAct* act, ModulatedActType type, void* out, int threads) {
  switch (type) {
    case ModulatedActType::kFloat: return forward<float, float>(*act, out, threads);
    case ModulatedActType::kDouble: return forward<double, double>(*act, out, threads);
    case ModulatedActType::kBFloat16: return forward<BFloat16, float>(*act, out, threads);
    case ModulatedActType::kHalf: return forward<Half, float>(*act, out, threads);
  }
}

void fastgan_modulated_act_backward_cpu(const ModulatedAct* act, ModulatedActType type, const void* grad, void* dx,
                                        void* sums, int threads) {
  switch (type) {
    case ModulatedActType::kFloat: return backward<float, float>(*act, grad, dx, sums, threads);
    case ModulatedActType::kDouble: return backward<double, double>(*act, grad, dx, sums, threads);
    case ModulatedActType::kBFloat16: return backward<BFloat16, float>(*act, grad, dx, sums, threads);
    case ModulatedActType::kHalf: return backward<Half, float>(*act, grad, dx, sums, threads);
  }
}
