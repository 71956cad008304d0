#include "polynomial_mmd.h"

#include <algorithm>

#include "avx2.h"
#include "large_pages.h"

#ifdef FASTGAN_AVX2
namespace {

using namespace fastgan;

// A subset lies in panels of 16 samples, cut into blocks of features: [block][panel][step][2][16] pairs of values, where a
// step is four features, of which the even ones (q[4s], q[4s + 2]) come first and the odd ones (q[4s + 1], q[4s + 3]) after.
constexpr int64_t kPanel = 16, kStep = 4, kStepBytes = 128;
constexpr int64_t kBlock = 128;   // features: two panels of as many stay in the first cache
constexpr int64_t kTogether = 4;  // panels of rows that take turns with one of columns
constexpr int64_t kColumns = 16;  // panels of columns whose sums, with those rows, stay in the second cache
constexpr int64_t kRows = 4;      // of a product that stay in registers
constexpr int64_t kTile = kPanel * kPanel;

struct Layout {
  int64_t features, size, panels;

  int64_t count(int64_t panel) const { return std::min(kPanel, size - panel * kPanel); }
  int64_t length(int64_t block) const { return std::min(kBlock, features - block * kBlock); }
  int64_t blocks() const { return (features + kBlock - 1) / kBlock; }
  int64_t bytes() const { return panels * kPanel * features * int64_t(sizeof(int16_t)); }
  // Where a panel's part of a block begins.
  int64_t at(int64_t block, int64_t panel) const {
    return (block * kBlock * panels + panel * length(block)) * kPanel * int64_t(sizeof(int16_t));
  }
};

// c[r][0..15] (+)= sum over steps and both halves of (a_even + b_odd)(a_odd + b_even), for four rows of a.
//
// Inner products by half the multiplications (Winograd 1968): the sum over k of (a[2k] + b[2k+1])(a[2k+1] + b[2k]) is a . b
// and what depends on a and on b alone, FixedSamples::pairs. In integers that is exact, and may overflow on the way. The
// additions can go to any of four units, products to two. In assembly, for GCC 12 keeps two of eight sums in memory.
FASTGAN_AVX2 void products(const char* b, const char* a, int64_t steps, const char* next, int32_t* c, bool add) {
  __m256i s00, s01, s10, s11, s20, s21, s30, s31;
  s00 = s01 = s10 = s11 = s20 = s21 = s30 = s31 = _mm256_setzero_si256();
#define FASTGAN_ROW(R, LEFT, RIGHT)                    \
  "vpbroadcastd 4*" #R "(%[a]), %%ymm12\n"             \
  "vpbroadcastd 64+4*" #R "(%[a]), %%ymm13\n"          \
  "vpaddw %%ymm12, %%ymm9, %%ymm14\n"                  \
  "vpaddw %%ymm13, %%ymm8, %%ymm15\n"                  \
  "vpaddw %%ymm12, %%ymm11, %%ymm12\n"                 \
  "vpaddw %%ymm13, %%ymm10, %%ymm13\n"                 \
  "vpmaddwd %%ymm14, %%ymm15, %%ymm14\n"               \
  "vpmaddwd %%ymm12, %%ymm13, %%ymm12\n"               \
  "vpaddd %%ymm14, %[" #LEFT "], %[" #LEFT "]\n"       \
  "vpaddd %%ymm12, %[" #RIGHT "], %[" #RIGHT "]\n"
  asm("1:\n"
      "vmovdqa (%[b]), %%ymm8\n"
      "vmovdqa 32(%[b]), %%ymm10\n"
      "vmovdqa 64(%[b]), %%ymm9\n"
      "vmovdqa 96(%[b]), %%ymm11\n"
      FASTGAN_ROW(0, s00, s01) FASTGAN_ROW(1, s10, s11) FASTGAN_ROW(2, s20, s21) FASTGAN_ROW(3, s30, s31)
      "prefetcht0 (%[next])\n"
      "add $32, %[next]\n"
      "add $128, %[b]\n"
      "add $128, %[a]\n"
      "dec %[steps]\n"
      "jnz 1b\n"
      : [a] "+r"(a), [b] "+r"(b), [steps] "+r"(steps), [next] "+r"(next), [s00] "+x"(s00), [s01] "+x"(s01),
        [s10] "+x"(s10), [s11] "+x"(s11), [s20] "+x"(s20), [s21] "+x"(s21), [s30] "+x"(s30), [s31] "+x"(s31)
      :
      : "ymm8", "ymm9", "ymm10", "ymm11", "ymm12", "ymm13", "ymm14", "ymm15", "cc", "memory");
#undef FASTGAN_ROW
  const __m256i made[2 * kRows] = {s00, s01, s10, s11, s20, s21, s30, s31};
  auto* const to = reinterpret_cast<__m256i*>(c);
  for (int i = 0; i < 2 * kRows; ++i) to[i] = add ? _mm256_add_epi32(to[i], made[i]) : made[i];
}

// Sixteen features of eight samples into four steps of a panel.
FASTGAN_AVX2 void pack_eight(const int16_t* const rows[8], int64_t feature, char* to) {
  const __m256i even_first = _mm256_setr_epi8(0, 1, 4, 5, 2, 3, 6, 7, 8, 9, 12, 13, 10, 11, 14, 15,  //
                                              0, 1, 4, 5, 2, 3, 6, 7, 8, 9, 12, 13, 10, 11, 14, 15);
  __m256i r[8], two[8], four[8];
  for (int i = 0; i < 8; ++i)
    r[i] = _mm256_shuffle_epi8(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(rows[i] + feature)), even_first);
  for (int i = 0; i < 8; i += 2) {
    two[i] = _mm256_unpacklo_epi32(r[i], r[i + 1]);
    two[i + 1] = _mm256_unpackhi_epi32(r[i], r[i + 1]);
  }
  for (int i = 0; i < 8; i += 4) {
    four[i] = _mm256_unpacklo_epi64(two[i], two[i + 2]);
    four[i + 1] = _mm256_unpackhi_epi64(two[i], two[i + 2]);
    four[i + 2] = _mm256_unpacklo_epi64(two[i + 1], two[i + 3]);
    four[i + 3] = _mm256_unpackhi_epi64(two[i + 1], two[i + 3]);
  }
  for (int i = 0; i < 4; ++i) {
    char* const place = to + i / 2 * kStepBytes + i % 2 * kStepBytes / 2;
    _mm256_store_si256(reinterpret_cast<__m256i*>(place), _mm256_permute2x128_si256(four[i], four[i + 4], 0x20));
    _mm256_store_si256(reinterpret_cast<__m256i*>(place + 2 * kStepBytes),
                       _mm256_permute2x128_si256(four[i], four[i + 4], 0x31));
  }
}

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

FASTGAN_AVX2 void to_fixed(const ToFixed& from, int64_t i, int16_t* values, int32_t* pairs, double* alone) {
  const float* const x = from.x + i * from.d;
  int16_t* const to = values + i * from.features;
  const __m256 per_unit = _mm256_set1_ps(1 / from.unit);
  __m256 with_centre = _mm256_setzero_ps(), seen[2] = {_mm256_setzero_ps(), _mm256_setzero_ps()};
  __m256i products = _mm256_setzero_si256();
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
      for (int s = 0; s < 2; ++s)
        seen[s] = _mm256_fmadd_ps(left, some_of(from.partners[s], first, from.d), seen[s]);
    }
    const __m256i sixteen = _mm256_permute4x64_epi64(_mm256_packs_epi32(whole[0], whole[1]), 0xD8);
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(to + k), sixteen);
    // Odd ones at the places of even ones, zeros elsewhere: each pair once.
    products = _mm256_add_epi32(products, _mm256_madd_epi16(sixteen, _mm256_srli_epi32(sixteen, 16)));
    if (k % 256 == 240 || k + 16 >= from.features) {  // few enough for fp32
      exact += sum_of(with_centre);
      with_centre = _mm256_setzero_ps();
    }
  }
  int32_t lanes[8];
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(lanes), products);
  uint32_t sum = 0;
  for (const int32_t lane : lanes) sum += uint32_t(lane);
  pairs[i] = int32_t(sum);
  alone[i] = exact;
  for (int s = 0; s < 2; ++s) alone[(1 + s) * from.n + i] = double(from.unit) * sum_of(seen[s]);
}

// Samples of one subset, and what belongs to each; the last panel is filled up with the last sample.
struct Subset {
  char* values;
  int32_t* pairs;
  float* base[2];
};

FASTGAN_AVX2 void pack(const FixedSamples& from, const int64_t* chosen, int64_t size, const Layout& layout, Subset to) {
  for (int64_t panel = 0; panel < layout.panels; ++panel) {
    const int16_t* rows[kPanel];
    for (int64_t i = 0; i < kPanel; ++i) {
      const int64_t sample = chosen[std::min(panel * kPanel + i, size - 1)];
      rows[i] = from.values + sample * layout.features;
      to.pairs[panel * kPanel + i] = from.pairs[sample];
      for (int s = 0; s < 2; ++s) to.base[s][panel * kPanel + i] = from.base[s][sample];
    }
    for (int64_t block = 0; block < layout.blocks(); ++block) {
      char* const begin = to.values + layout.at(block, panel);
      for (int64_t k = 0; k < layout.length(block); k += 16)
        for (int half = 0; half < 2; ++half)
          pack_eight(rows + 8 * half, block * kBlock + k, begin + k / kStep * kStepBytes + half * 32);
    }
  }
}

// What belongs to each sample of a panel, for pairs with a panel of another one or of the same subset.
struct Part {
  const int32_t* pairs;
  const float* base;
  int64_t count;

  Part(const Subset& of, int64_t panel, bool same, const Layout& layout)
      : pairs(of.pairs + panel * kPanel), base(of.base[!same] + panel * kPanel), count(layout.count(panel)) {}
};

// The sum of k over sums of products [16][16], as far as both parts have samples; without the diagonal or with it.
FASTGAN_AVX2 double kernel_sum(const PolynomialMmd& mmd, const int32_t* sums, const Part& x, const Part& y, bool diagonal) {
  const __m256 square = _mm256_set1_ps(mmd.square), middle = _mm256_set1_ps(mmd.middle),
               shift = _mm256_set1_ps(mmd.shift);
  const __m256i lane = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
  double sum = 0;
  for (int half = 0; half < 2; ++half) {
    const __m256i column = _mm256_add_epi32(lane, _mm256_set1_epi32(8 * half));
    const __m256i known = _mm256_cmpgt_epi32(_mm256_set1_epi32(int(y.count)), column);
    const __m256i y_pairs = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(y.pairs + 8 * half));
    const __m256 y_base = _mm256_loadu_ps(y.base + 8 * half);
    __m256 total = _mm256_setzero_ps();
    for (int64_t r = 0; r < x.count; ++r) {
      const __m256i sum = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(sums + r * kPanel + 8 * half));
      const __m256i product = _mm256_sub_epi32(sum, _mm256_add_epi32(_mm256_set1_epi32(x.pairs[r]), y_pairs));
      const __m256 base = _mm256_add_ps(_mm256_set1_ps(x.base[r]), y_base);
      const __m256 value = _mm256_add_ps(_mm256_fmadd_ps(_mm256_cvtepi32_ps(product), square, base), middle);
      __m256 power = value;
      for (int i = 1; i < mmd.degree; ++i) power = _mm256_mul_ps(power, value);
      const __m256i itself = _mm256_cmpeq_epi32(column, _mm256_set1_epi32(diagonal ? -1 : int(r)));
      const __m256 counts = _mm256_castsi256_ps(_mm256_andnot_si256(itself, known));
      total = _mm256_add_ps(total, _mm256_and_ps(_mm256_sub_ps(power, shift), counts));
    }
    sum += sum_of(total);
  }
  return sum;
}

// Sums of products of `rows` panels of x from `first` on with `columns` panels of y from `from` on, [columns][kTogether] tiles.
// Of one subset with itself only those on and above the diagonal.
struct Patch {
  int64_t first, rows, from, columns;
  bool same;

  int64_t end(int64_t j) const { return same ? std::min(rows, from + j + 1 - first) : rows; }
};

FASTGAN_AVX2 void patch_products(const Layout& layout, const Subset& x, const Subset& y, const Patch& patch, int32_t* sums) {
  for (int64_t block = 0; block < layout.blocks(); ++block) {
    const int64_t steps = layout.length(block) / kStep, part = steps * kStepBytes;
    const char* const rows = x.values + layout.at(block, patch.first);
    const char* const columns = y.values + layout.at(block, patch.from);
    for (int64_t j = 0; j < patch.columns; ++j) {
      const int64_t end = patch.end(j);
      for (int64_t i = 0; i < end; ++i) {
        const char* const next = i + 1 < end ? rows + (i + 1) * part : columns + (j + 1) * part;
        int32_t* const tile = sums + (j * kTogether + i) * kTile;
        for (int64_t r = 0; r < layout.count(patch.first + i); r += kRows)
          products(columns + j * part, rows + i * part + 4 * r, steps, next + r / kRows * steps * 32, tile + r * kPanel,
                   block > 0);
      }
    }
  }
}

// The sum of k over all pairs of two subsets or, where they are the same one, over those of different samples. sums: room for
// a patch.
FASTGAN_AVX2 double pair_sum(const PolynomialMmd& mmd, const Layout& layout, const Subset& x, const Subset& y,
                             int32_t* sums) {
  const bool same = x.values == y.values;
  double total = 0;
  for (int64_t first = 0; first < layout.panels; first += kTogether)
    for (int64_t from = same ? first : 0; from < layout.panels; from += kColumns) {
      const Patch patch = {first, std::min(kTogether, layout.panels - first), from,
                           std::min(kColumns, layout.panels - from), same};
      patch_products(layout, x, y, patch, sums);
      for (int64_t j = 0; j < patch.columns; ++j)
        for (int64_t i = 0; i < patch.end(j); ++i) {
          const bool on_diagonal = same && first + i == from + j;
          const Part of_x(x, first + i, same, layout), of_y(y, from + j, same, layout);
          const double sum = kernel_sum(mmd, sums + (j * kTogether + i) * kTile, of_x, of_y, !on_diagonal);
          total += same && !on_diagonal ? 2 * sum : sum;
        }
    }
  return total;
}

void run(const PolynomialMmd& mmd, int threads) {
  const Layout layout = {mmd.features, mmd.size, (mmd.size + kPanel - 1) / kPanel};
  const int64_t padded = layout.panels * kPanel;
#pragma omp parallel num_threads(threads)
  {
    const LargePages<char> values(2 * layout.bytes());
    const LargePages<int32_t> pairs(2 * padded), sums(kTogether * kColumns * kTile);
    const LargePages<float> bases(4 * padded);
    float* const base = bases.begin();
    const Subset x = {values.begin(), pairs.begin(), {base, base + padded}};
    const Subset y = {values.begin() + layout.bytes(), pairs.begin() + padded, {base + 2 * padded, base + 3 * padded}};
    const double within = double(mmd.size) * double(mmd.size - 1), across = double(mmd.size) * double(mmd.size);
#pragma omp for schedule(dynamic, 1)
    for (int64_t s = 0; s < mmd.subsets; ++s) {
      pack(mmd.x, mmd.first + s * mmd.size, mmd.size, layout, x);
      pack(mmd.y, mmd.second + s * mmd.size, mmd.size, layout, y);
      const double alike = pair_sum(mmd, layout, x, x, sums.begin()) + pair_sum(mmd, layout, y, y, sums.begin());
      mmd.out[s] = alike / within - 2 * pair_sum(mmd, layout, x, y, sums.begin()) / across;
    }
  }
}

}  // namespace

bool fastgan_polynomial_mmd_here() {
  // Where vectors are wider, products in floating point are as fast; not measured there.
  return has_avx2() && !__builtin_cpu_supports("avx512f");
}

void fastgan_fixed_range_cpu(const ToFixed* from, float* norms, float* largest, int threads) {
#pragma omp parallel for num_threads(threads) schedule(static)
  for (int64_t i = 0; i < from->n; ++i) range(*from, i, norms + i, largest + i);
}

void fastgan_to_fixed_cpu(const ToFixed* from, int16_t* values, int32_t* pairs, double* alone, int threads) {
#pragma omp parallel for num_threads(threads) schedule(static)
  for (int64_t i = 0; i < from->n; ++i) to_fixed(*from, i, values, pairs, alone);
}

void fastgan_polynomial_mmd_cpu(const PolynomialMmd* mmd, int threads) { run(*mmd, threads); }
#else
bool fastgan_polynomial_mmd_here() { return false; }

void fastgan_fixed_range_cpu(const fastgan::ToFixed*, float*, float*, int) {}
void fastgan_to_fixed_cpu(const fastgan::ToFixed*, int16_t*, int32_t*, double*, int) {}
void fastgan_polynomial_mmd_cpu(const fastgan::PolynomialMmd*, int) {}
#endif
