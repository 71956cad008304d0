#include "masked_act.h"

#include <algorithm>
#include <numeric>
#include <type_traits>

#include "convert.h"

namespace {

using namespace fastgan;

constexpr int64_t kTile = 2048;    // elements that go through together: what is added to them stays in the first cache
constexpr int64_t kRow = 64;       // elements that are worth a call of their own
constexpr int64_t kGrain = 32768;  // elements that are worth a thread

// ---- one run of elements

// n of them at x, and what is added to them: the numbers at b, or the same number at b for all, or nothing (b is null);
// n / 8 bytes of mask, rounded up. Every function below has this argument, so that one table holds them all.
template <typename T>
struct Run {
  const T* x;
  const T* b;
  bool same;
  T* out;
  uint8_t* mask;
  int64_t n;
  T slope;
  bool relu;

  // The elements from i on, a multiple of 8.
  Run from(int64_t i) const { return {x + i, b && !same ? b + i : b, same, out + i, mask + i / 8, n - i, slope, relu}; }
};

template <typename T>
using Kernel = void (*)(const Run<T>& run);

// x where `on`, else y, in integers: a compiler that makes a jump of it mispredicts every other one.
template <typename T>
FASTGAN_HD T select(bool on, T x, T y) {
  using Bits = std::conditional_t<sizeof(T) == 8, uint64_t, uint32_t>;
  const Bits all = Bits(0) - Bits(on);
  return bit_cast<T>((bit_cast<Bits>(x) & all) | (bit_cast<Bits>(y) & ~all));
}

// One byte's elements, `count` of them. ReLU is not slope * y with slope 0, which would be -0 for negative numbers and
// NaN for -inf. It lets NaN through where the mask is made.
template <bool kApply, typename T>
FASTGAN_HD void byte_any(const Run<T>& r, int64_t i, int64_t count) {
  T y[8] = {};
  unsigned bits = kApply ? r.mask[i / 8] : 0;
  for (int64_t j = 0; j < count; ++j) y[j] = r.b ? r.x[i + j] + r.b[r.same ? 0 : i + j] : r.x[i + j];
  if (!kApply) {
    for (int64_t j = 0; j < count; ++j) bits |= unsigned(y[j] > 0) << j;
    r.mask[i / 8] = uint8_t(bits);
  }
  for (int64_t j = 0; j < count; ++j) {
    const bool on = bits >> j & 1u, kept = !kApply && r.relu ? !(y[j] <= 0) : on;
    r.out[i + j] = select(kept, y[j], r.relu ? T(0) : r.slope * y[j]);
  }
}

template <bool kApply, typename T>
void run_any(const Run<T>& run) {
  const Run<T> r = run;  // a local copy lives in registers
  int64_t i = 0;
  for (; i + 8 <= r.n; i += 8) byte_any<kApply>(r, i, 8);
  if (i < r.n) byte_any<kApply>(r, i, r.n - i);
}

#ifdef FASTGAN_X86

// The loop for vectors of kind S, compiled for TARGET. S has kLanes, a multiple of 8; `Where` is a predicate per lane,
// `only` gives zero where it is false, `put` and `get` are its bits in memory. A macro, because neither a template nor
// an inlined function can pass its target on.
#define FASTGAN_SIMD_LOOP(NAME, TARGET)                                                                      \
  template <class S, bool kApply, typename T = typename S::T>                                                \
  TARGET void NAME(const Run<T>& run) {                                                                      \
    const Run<T> r = run;                                                                                    \
    const auto factor = S::all(r.slope), constant = S::all(r.b ? *r.b : T(0));                               \
    int64_t i = 0;                                                                                           \
    for (; i + S::kLanes <= r.n; i += S::kLanes) {                                                           \
      auto y = S::load(r.x + i);                                                                             \
      if (r.b) y = S::add(y, r.same ? constant : S::load(r.b + i));                                          \
      const auto on = kApply ? S::get(r.mask + i / 8) : S::positive(y);                                      \
      if (!kApply) S::put(r.mask + i / 8, on);                                                               \
      const auto kept = kApply ? on : S::positive_or_nan(y);                                                 \
      S::store(r.out + i, r.relu ? S::only(kept, y) : S::select(on, y, S::multiply(factor, y)));             \
    }                                                                                                        \
    if (i < r.n) run_any<kApply>(r.from(i));                                                                 \
  }

#define FASTGAN_AVX2 __attribute__((target("avx2")))
#define FASTGAN_AVX512 __attribute__((target("avx512f")))
#define FASTGAN_METHOD(TARGET) TARGET __attribute__((always_inline)) static inline

struct Avx2Float {
  using T = float;
  using Vector = __m256;
  using Where = __m256;  // all bits of a lane, or none
  static constexpr int64_t kLanes = 8;
  FASTGAN_METHOD(FASTGAN_AVX2) Vector all(T x) { return _mm256_set1_ps(x); }
  FASTGAN_METHOD(FASTGAN_AVX2) Vector load(const T* from) { return _mm256_loadu_ps(from); }
  FASTGAN_METHOD(FASTGAN_AVX2) void store(T* to, Vector x) { _mm256_storeu_ps(to, x); }
  FASTGAN_METHOD(FASTGAN_AVX2) Vector add(Vector x, Vector y) { return _mm256_add_ps(x, y); }
  FASTGAN_METHOD(FASTGAN_AVX2) Vector multiply(Vector x, Vector y) { return _mm256_mul_ps(x, y); }
  FASTGAN_METHOD(FASTGAN_AVX2) Vector only(Where w, Vector x) { return _mm256_and_ps(w, x); }
  FASTGAN_METHOD(FASTGAN_AVX2) Vector select(Where w, Vector x, Vector y) { return _mm256_blendv_ps(y, x, w); }
  FASTGAN_METHOD(FASTGAN_AVX2) Where positive(Vector x) { return _mm256_cmp_ps(x, _mm256_setzero_ps(), _CMP_GT_OQ); }
  FASTGAN_METHOD(FASTGAN_AVX2) Where positive_or_nan(Vector x) {
    return _mm256_cmp_ps(x, _mm256_setzero_ps(), _CMP_NLE_UQ);
  }
  FASTGAN_METHOD(FASTGAN_AVX2) void put(uint8_t* to, Where w) { *to = uint8_t(_mm256_movemask_ps(w)); }
  FASTGAN_METHOD(FASTGAN_AVX2) Where get(const uint8_t* from) {
    const __m256i lane = _mm256_setr_epi32(1, 2, 4, 8, 16, 32, 64, 128);
    const __m256i bits = _mm256_and_si256(_mm256_set1_epi32(*from), lane);
    return _mm256_castsi256_ps(_mm256_cmpeq_epi32(bits, lane));
  }
};

struct Avx2Double {  // two registers, for the eight bits of a byte
  using T = double;
  struct Vector {
    __m256d low, high;
  };
  using Where = Vector;
  static constexpr int64_t kLanes = 8;
  FASTGAN_METHOD(FASTGAN_AVX2) Vector all(T x) { return {_mm256_set1_pd(x), _mm256_set1_pd(x)}; }
  FASTGAN_METHOD(FASTGAN_AVX2) Vector load(const T* from) { return {_mm256_loadu_pd(from), _mm256_loadu_pd(from + 4)}; }
  FASTGAN_METHOD(FASTGAN_AVX2) void store(T* to, Vector x) {
    _mm256_storeu_pd(to, x.low);
    _mm256_storeu_pd(to + 4, x.high);
  }
  FASTGAN_METHOD(FASTGAN_AVX2) Vector add(Vector x, Vector y) {
    return {_mm256_add_pd(x.low, y.low), _mm256_add_pd(x.high, y.high)};
  }
  FASTGAN_METHOD(FASTGAN_AVX2) Vector multiply(Vector x, Vector y) {
    return {_mm256_mul_pd(x.low, y.low), _mm256_mul_pd(x.high, y.high)};
  }
  FASTGAN_METHOD(FASTGAN_AVX2) Vector only(Where w, Vector x) {
    return {_mm256_and_pd(w.low, x.low), _mm256_and_pd(w.high, x.high)};
  }
  FASTGAN_METHOD(FASTGAN_AVX2) Vector select(Where w, Vector x, Vector y) {
    return {_mm256_blendv_pd(y.low, x.low, w.low), _mm256_blendv_pd(y.high, x.high, w.high)};
  }
  FASTGAN_METHOD(FASTGAN_AVX2) Where positive(Vector x) {
    const __m256d zero = _mm256_setzero_pd();
    return {_mm256_cmp_pd(x.low, zero, _CMP_GT_OQ), _mm256_cmp_pd(x.high, zero, _CMP_GT_OQ)};
  }
  FASTGAN_METHOD(FASTGAN_AVX2) Where positive_or_nan(Vector x) {
    const __m256d zero = _mm256_setzero_pd();
    return {_mm256_cmp_pd(x.low, zero, _CMP_NLE_UQ), _mm256_cmp_pd(x.high, zero, _CMP_NLE_UQ)};
  }
  FASTGAN_METHOD(FASTGAN_AVX2) void put(uint8_t* to, Where w) {
    *to = uint8_t(_mm256_movemask_pd(w.low) | _mm256_movemask_pd(w.high) << 4);
  }
  FASTGAN_METHOD(FASTGAN_AVX2) Where get(const uint8_t* from) {
    const __m256i low = _mm256_setr_epi64x(1, 2, 4, 8), high = _mm256_setr_epi64x(16, 32, 64, 128);
    const __m256i bits = _mm256_set1_epi64x(*from);
    return {_mm256_castsi256_pd(_mm256_cmpeq_epi64(_mm256_and_si256(bits, low), low)),
            _mm256_castsi256_pd(_mm256_cmpeq_epi64(_mm256_and_si256(bits, high), high))};
  }
};

struct Avx512Float {
  using T = float;
  using Vector = __m512;
  using Where = __mmask16;
  static constexpr int64_t kLanes = 16;
  FASTGAN_METHOD(FASTGAN_AVX512) Vector all(T x) { return _mm512_set1_ps(x); }
  FASTGAN_METHOD(FASTGAN_AVX512) Vector load(const T* from) { return _mm512_loadu_ps(from); }
  FASTGAN_METHOD(FASTGAN_AVX512) void store(T* to, Vector x) { _mm512_storeu_ps(to, x); }
  FASTGAN_METHOD(FASTGAN_AVX512) Vector add(Vector x, Vector y) { return _mm512_add_ps(x, y); }
  FASTGAN_METHOD(FASTGAN_AVX512) Vector multiply(Vector x, Vector y) { return _mm512_mul_ps(x, y); }
  FASTGAN_METHOD(FASTGAN_AVX512) Vector only(Where w, Vector x) { return _mm512_maskz_mov_ps(w, x); }
  FASTGAN_METHOD(FASTGAN_AVX512) Vector select(Where w, Vector x, Vector y) { return _mm512_mask_mov_ps(y, w, x); }
  FASTGAN_METHOD(FASTGAN_AVX512) Where positive(Vector x) {
    return _mm512_cmp_ps_mask(x, _mm512_setzero_ps(), _CMP_GT_OQ);
  }
  FASTGAN_METHOD(FASTGAN_AVX512) Where positive_or_nan(Vector x) {
    return _mm512_cmp_ps_mask(x, _mm512_setzero_ps(), _CMP_NLE_UQ);
  }
  FASTGAN_METHOD(FASTGAN_AVX512) void put(uint8_t* to, Where w) { memcpy(to, &w, sizeof(w)); }
  FASTGAN_METHOD(FASTGAN_AVX512) Where get(const uint8_t* from) {
    Where w;
    memcpy(&w, from, sizeof(w));
    return w;
  }
};

struct Avx512Double {
  using T = double;
  using Vector = __m512d;
  using Where = __mmask8;
  static constexpr int64_t kLanes = 8;
  FASTGAN_METHOD(FASTGAN_AVX512) Vector all(T x) { return _mm512_set1_pd(x); }
  FASTGAN_METHOD(FASTGAN_AVX512) Vector load(const T* from) { return _mm512_loadu_pd(from); }
  FASTGAN_METHOD(FASTGAN_AVX512) void store(T* to, Vector x) { _mm512_storeu_pd(to, x); }
  FASTGAN_METHOD(FASTGAN_AVX512) Vector add(Vector x, Vector y) { return _mm512_add_pd(x, y); }
  FASTGAN_METHOD(FASTGAN_AVX512) Vector multiply(Vector x, Vector y) { return _mm512_mul_pd(x, y); }
  FASTGAN_METHOD(FASTGAN_AVX512) Vector only(Where w, Vector x) { return _mm512_maskz_mov_pd(w, x); }
  FASTGAN_METHOD(FASTGAN_AVX512) Vector select(Where w, Vector x, Vector y) { return _mm512_mask_mov_pd(y, w, x); }
  FASTGAN_METHOD(FASTGAN_AVX512) Where positive(Vector x) {
    return _mm512_cmp_pd_mask(x, _mm512_setzero_pd(), _CMP_GT_OQ);
  }
  FASTGAN_METHOD(FASTGAN_AVX512) Where positive_or_nan(Vector x) {
    return _mm512_cmp_pd_mask(x, _mm512_setzero_pd(), _CMP_NLE_UQ);
  }
  FASTGAN_METHOD(FASTGAN_AVX512) void put(uint8_t* to, Where w) { *to = w; }
  FASTGAN_METHOD(FASTGAN_AVX512) Where get(const uint8_t* from) { return *from; }
};

FASTGAN_SIMD_LOOP(run_avx2, FASTGAN_AVX2)
FASTGAN_SIMD_LOOP(run_avx512, FASTGAN_AVX512)

template <bool kApply>
Kernel<float> kernel_of(SimdLevel level, float) {
  if (level == SimdLevel::kAvx512) return run_avx512<Avx512Float, kApply>;
  return level == SimdLevel::kAvx2 ? run_avx2<Avx2Float, kApply> : run_any<kApply, float>;
}

template <bool kApply>
Kernel<double> kernel_of(SimdLevel level, double) {
  if (level == SimdLevel::kAvx512) return run_avx512<Avx512Double, kApply>;
  return level == SimdLevel::kAvx2 ? run_avx2<Avx2Double, kApply> : run_any<kApply, double>;
}

#else

template <bool kApply, typename T>
Kernel<T> kernel_of(SimdLevel, T) {
  return run_any<kApply, T>;
}

#endif

// ---- what is added to the elements of a tile: bias, times scale

// A row: `inner` elements with one sample and one channel.
struct Row {
  int64_t sample, channel;
  void next(int64_t channels) {
    if (++channel == channels) channel = 0, ++sample;
  }
};

template <typename T>
class Addends {
 public:
  explicit Addends(const MaskedAct& act)
      : act_(act), bias_(static_cast<const T*>(act.bias)), scale_(static_cast<const T*>(act.scale)) {}

  // To all elements of a row, where the layout has rows.
  T of_row(Row row) const { return times_scale(bias_[row.channel], row.sample); }

  // To each of elements [begin, begin + n), n <= kTile. What the last call gave is given again where it fits.
  const T* of_each(int64_t begin, int64_t n) {
    const int64_t phase = begin % (act_.inner * act_.channels), sample = scale_ ? begin / act_.sample : 0;
    const bool one_sample = !scale_ || (begin + n - 1) / act_.sample == sample;
    const bool fits = one_sample && phase == phase_ && sample == sample_ && n <= size_;
    if (!fits) fill(begin, n);
    phase_ = phase, sample_ = sample, size_ = n;
    return values_;
  }

 private:
  T times_scale(T b, int64_t sample) const { return scale_ ? scale_[sample] * b : b; }

  void fill(int64_t begin, int64_t n) {
    int64_t i = 0;
    if (act_.inner == 1) {  // channels follow each other, in channels-last for more than one row of a sample
      for (int64_t channel = begin % act_.channels; i < n; channel = 0) {
        const int64_t end = i + std::min(act_.channels - channel, n - i);
        const int64_t sample = scale_ ? (begin + i) / act_.sample : 0;
        for (const T* b = bias_ + channel; i < end; ++i, ++b) values_[i] = times_scale(*b, sample);
      }
      return;
    }
    const int64_t first = begin / act_.inner;
    Row row = {first / act_.channels, first % act_.channels};
    for (int64_t left = (first + 1) * act_.inner - begin; i < n; left = act_.inner, row.next(act_.channels)) {
      const int64_t end = i + std::min(left, n - i);
      for (const T b = of_row(row); i < end; ++i) values_[i] = b;
    }
  }

  const MaskedAct& act_;
  const T *bias_, *scale_;
  int64_t phase_ = -1, sample_ = 0, size_ = 0;
  alignas(64) T values_[kTile];
};

// Elements per tile: at most kTile, a multiple of 8, so that no two threads share a byte of the mask, and where that is
// possible of the length after which the bias repeats, so that Addends::of_each does not have to start anew.
int64_t tile_of(const MaskedAct& act) {
  const int64_t period = act.bias ? std::lcm(int64_t(8), act.inner * act.channels) : 8;
  return period > kTile ? kTile : kTile / period * period;
}

// ---- a whole tensor

// One tile in the type of the arithmetic: `tile` says all but what is added; its first element is number `begin`.
template <typename C>
void run_tile(const MaskedAct& act, Addends<C>& addends, Kernel<C> kernel, Run<C> tile, int64_t begin) {
  if (!act.bias) return kernel(tile);
  if (act.inner < kRow || act.inner % 8 != 0) {
    tile.b = addends.of_each(begin, tile.n);
    return kernel(tile);
  }
  const int64_t first = begin / act.inner;  // rows begin with a byte of the mask
  Row row = {first / act.channels, first % act.channels};
  for (int64_t left = (first + 1) * act.inner - begin, i = 0; i < tile.n; left = act.inner, row.next(act.channels)) {
    const C b = addends.of_row(row);
    Run<C> part = tile.from(i);
    part.n = std::min(left, part.n);
    part.b = &b;
    part.same = true;
    kernel(part);
    i += part.n;
  }
}

// Elements in T, arithmetic in C.
template <typename T, typename C>
void run(const MaskedAct& act, int threads, SimdLevel level, Kernel<C> kernel) {
  if (act.numel == 0) return;
  constexpr bool kConverts = sizeof(T) != sizeof(C);
  const T* in = static_cast<const T*>(act.in);
  T* out = static_cast<T*>(act.out);
  const int64_t tile = tile_of(act);
  threads = int(std::min<int64_t>(threads, (act.numel + kGrain - 1) / kGrain));
#pragma omp parallel num_threads(threads) if (threads > 1)
  {
    Addends<C> addends(act);
    alignas(64) C values[kConverts ? kTile : 1];
#pragma omp for schedule(static)
    for (int64_t begin = 0; begin < act.numel; begin += tile) {
      const int64_t n = std::min(tile, act.numel - begin);
      Run<C> run = {values, nullptr, false, values, act.mask + begin / 8, n, C(act.slope), act.slope == 0};
      if constexpr (kConverts) {
        convert(in + begin, n, values, level);
        run_tile(act, addends, kernel, run, begin);
        convert(values, n, out + begin, level);
      } else {
        run.x = in + begin;
        run.out = out + begin;
        run_tile(act, addends, kernel, run, begin);
      }
    }
  }
}

template <bool kApply>
void run(const MaskedAct& act, MaskedActType type, int threads, SimdLevel level) {
  const Kernel<float> singles = kernel_of<kApply>(level, 0.0f);
  const Kernel<double> doubles = kernel_of<kApply>(level, 0.0);
  switch (type) {
    case MaskedActType::kFloat: return run<float, float>(act, threads, level, singles);
    case MaskedActType::kDouble: return run<double, double>(act, threads, level, doubles);
    case MaskedActType::kBFloat16: return run<BFloat16, float>(act, threads, level, singles);
    case MaskedActType::kHalf: return run<Half, float>(act, threads, level, singles);
  }
}

}  // namespace

void fastgan_masked_act_cpu(const MaskedAct* act, MaskedActType type, int threads, SimdLevel level) {
  run<false>(*act, type, threads, std::min(level, fastgan_simd_level()));
}

void fastgan_apply_mask_cpu(const MaskedAct* act, MaskedActType type, int threads, SimdLevel level) {
  run<true>(*act, type, threads, std::min(level, fastgan_simd_level()));
}

SimdLevel fastgan_simd_level() {
#ifdef FASTGAN_X86
  __builtin_cpu_init();
  if (__builtin_cpu_supports("avx512f")) return SimdLevel::kAvx512;
  if (__builtin_cpu_supports("avx2")) return SimdLevel::kAvx2;
#endif
  return SimdLevel::kNone;
}
