#include "fixed_point.h"

#include <algorithm>

#include "avx2.h"
#include "large_pages.h"

#ifdef FASTGAN_AVX2
namespace {

using namespace fastgan;

FASTGAN_AVX2 double sum_of(__m256 v) {
  float lanes[8];
  _mm256_storeu_ps(lanes, v);
  double sum = 0;
  for (const float value : lanes) sum += value;
  return sum;
}

// Eight features from k on, of which only the first d are there: zeros behind them.
FASTGAN_AVX2 __m256 some_of(const float* from, int64_t k, int64_t d) {
  if (k + 8 <= d) return _mm256_loadu_ps(from + k);
  float eight[8] = {};
  for (int64_t i = k; i < d; ++i) eight[i - k] = from[i];
  return _mm256_loadu_ps(eight);
}

FASTGAN_AVX2 void range(const ToFixed& from, int64_t i, float* norm, float* largest) {
  const float* const x = from.x + i * from.d;
  const __m256 sign = _mm256_set1_ps(-0.0f);
  __m256 squares = _mm256_setzero_ps(), most = _mm256_setzero_ps();
  for (int64_t k = 0; k < from.d; k += 8) {
    const __m256 apart = _mm256_sub_ps(some_of(x, k, from.d), some_of(from.centre, k, from.d));
    squares = _mm256_fmadd_ps(apart, apart, squares);
    most = _mm256_max_ps(most, _mm256_andnot_ps(sign, apart));
  }
  float lanes[8];
  _mm256_storeu_ps(lanes, most);
  *norm = float(sum_of(squares));
  *largest = *std::max_element(lanes, lanes + 8);
}

FASTGAN_AVX2 void to_fixed(const ToFixed& from, int64_t i, int16_t* values, double* alone) {
  const float* const x = from.x + i * from.d;
  int16_t* const to = values + i * from.features;
  const __m256 per_unit = _mm256_set1_ps(1 / from.units[i]);
  __m256 with_centre = _mm256_setzero_ps(), seen[2] = {_mm256_setzero_ps(), _mm256_setzero_ps()};
  __m256 squares = _mm256_setzero_ps();
  double exact = 0;
  for (int64_t k = 0; k < from.features; k += 16) {
    __m256i whole[2];
    for (int half = 0; half < 2; ++half) {
      const int64_t first = k + 8 * half;
      const __m256 sample = some_of(x, first, from.d), centre = some_of(from.centre, first, from.d);
      const __m256 steps = _mm256_mul_ps(_mm256_sub_ps(sample, centre), per_unit);
      whole[half] = _mm256_cvtps_epi32(steps);
      const __m256 left = _mm256_sub_ps(steps, _mm256_cvtepi32_ps(whole[half]));
      with_centre = _mm256_fmadd_ps(sample, centre, with_centre);
      squares = _mm256_fmadd_ps(left, left, squares);
      for (int s = 0; s < 2; ++s)
        seen[s] = _mm256_fmadd_ps(left, some_of(from.partners[s], first, from.d), seen[s]);
    }
    const __m256i sixteen = _mm256_permute4x64_epi64(_mm256_packs_epi32(whole[0], whole[1]), 0xD8);
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(to + k), sixteen);
    if (k % 256 == 240 || k + 16 >= from.features) {  // few enough for fp32
      exact += sum_of(with_centre);
      with_centre = _mm256_setzero_ps();
    }
  }
  alone[i] = exact;
  for (int s = 0; s < 2; ++s) alone[(1 + s) * from.n + i] = double(from.units[i]) * sum_of(seen[s]);
  alone[3 * from.n + i] = double(from.units[i]) * from.units[i] * sum_of(squares);
}

}  // namespace

bool fastgan_fixed_point_here() {
  // Where vectors are wider, products in floating point are as fast; not measured there.
  return has_avx2() && !__builtin_cpu_supports("avx512f");
}

void fastgan_fixed_range_cpu(const ToFixed* from, float* norms, float* largest, int threads) {
#pragma omp parallel for num_threads(threads) schedule(static)
  for (int64_t i = 0; i < from->n; ++i) range(*from, i, norms + i, largest + i);
}

void fastgan_to_fixed_cpu(const ToFixed* from, int16_t* values, double* alone, int threads) {
  in_large_pages(values, from->n * from->features * int64_t(sizeof(int16_t)));
#pragma omp parallel for num_threads(threads) schedule(static)
  for (int64_t i = 0; i < from->n; ++i) to_fixed(*from, i, values, alone);
}
#else
bool fastgan_fixed_point_here() { return false; }
void fastgan_fixed_range_cpu(const fastgan::ToFixed*, float*, float*, int) {}
void fastgan_to_fixed_cpu(const fastgan::ToFixed*, int16_t*, double*, int) {}
#endif
