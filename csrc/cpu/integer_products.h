// Inner products of all pairs of two groups of samples in integers of 13 bits, modulo 2^32: seven products for eight, twice over
// (Strassen 1969, "Gaussian elimination is not optimal"), and in each of the 49 half the multiplications (Winograd 1968, "A
// new algorithm for inner product"). Both are exact in integers, and what overflows on the way does not matter.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>

#include "avx2.h"

#ifdef FASTGAN_AVX2
namespace fastgan {
namespace {

constexpr int64_t kPanel = 16, kStep = 4, kStepBytes = 128;
constexpr int64_t kBlock = 128;  // features: some panels of as many stay in the first cache
constexpr int64_t kSlice = 64;   // features of all parts that stay in the first cache while operands are made of them
constexpr int64_t kSliceBytes = kSlice / kStep * kStepBytes;
constexpr int64_t kRows = 4;     // of a product that stay in registers
constexpr int64_t kTile = kPanel * kPanel;
constexpr int kOperands = 49, kParts = 16;

// A group's samples are cut into quarters, and so are their features. A part, a quarter of features of a quarter of samples, lies
// in panels of 16 samples and blocks of features: [block][panel][step][2][16] pairs of values, where a step is four features, of
// which the even ones (q[4s], q[4s + 2]) come first and the odd ones (q[4s + 1], q[4s + 3]) after.
struct GroupLayout {
  int64_t features;  // a multiple of 64
  int64_t panels;    // of a quarter

  int64_t quarter() const { return panels * kPanel; }
  int64_t samples() const { return 4 * quarter(); }
  int64_t part_features() const { return features / 4; }
  int64_t part_bytes() const { return quarter() * part_features() * int64_t(sizeof(int16_t)); }
  int64_t blocks() const { return (part_features() + kBlock - 1) / kBlock; }
  int64_t length(int64_t block) const { return std::min(kBlock, part_features() - block * kBlock); }
  // Where a panel's features of a block begin.
  int64_t at(int64_t block, int64_t panel) const {
    return (block * kBlock * panels + panel * length(block)) * kPanel * int64_t(sizeof(int16_t));
  }
};

// Strassen's seven products M of a = [a11 a12; a21 a22] and the transpose of b = [b11 b12; b21 b22], rows of samples and columns
// of features: factors of a11, a12, a21, a22 in each, of b11, b12, b21, b22, and of M in c11, c12, c21, c22.
using Factors = int8_t[7][4];
constexpr Factors kLeft = {{1, 0, 0, 1}, {0, 0, 1, 1}, {1, 0, 0, 0}, {0, 0, 0, 1}, {1, 1, 0, 0}, {-1, 0, 1, 0}, {0, 1, 0, -1}};
constexpr Factors kRight = {{1, 0, 0, 1}, {1, 0, 0, 0}, {0, 0, 1, -1}, {-1, 1, 0, 0}, {0, 0, 0, 1}, {1, 0, 1, 0}, {0, 1, 0, 1}};
constexpr Factors kOut = {{1, 0, 0, 1}, {0, 0, 1, -1}, {0, 1, 0, 1}, {1, 0, 1, 0}, {-1, 1, 0, 0}, {0, 0, 0, 1}, {1, 0, 0, 0}};

// Number of a quarter's part among all 16, four rows by four columns.
constexpr int part_of(int quarter, int part) { return (quarter / 2 * 2 + part / 2) * 4 + quarter % 2 * 2 + part % 2; }

// The parts that take part in one of the 49, by twice seven factors: at most four with either sign.
struct Terms {
  int plus[4] = {}, minus[4] = {}, pluses = 0, minuses = 0;
};

struct AllTerms {
  Terms of[kOperands];

  explicit constexpr AllTerms(const Factors& factors) : of{} {
    for (int i = 0; i < kOperands; ++i)
      for (int outer = 0; outer < 4; ++outer)
        for (int inner = 0; inner < 4; ++inner) {
          const int sign = factors[i / 7][outer] * factors[i % 7][inner];
          const int part = part_of(outer, inner);
          if (sign > 0) of[i].plus[of[i].pluses++] = part;
          if (sign < 0) of[i].minus[of[i].minuses++] = part;
        }
  }
};
constexpr AllTerms kLeftTerms(kLeft), kRightTerms(kRight);

// One side of 49 products, and what they have too much of because of it.
struct Operands {
  char* values;    // [49] of part_bytes()
  int32_t* pairs;  // [16 parts of the result, by quarters of rows and columns][quarter]
};

// Sixteen features of eight samples into four steps of a panel.
FASTGAN_AVX2 inline void pack_eight(const int16_t* const rows[8], int64_t feature, char* to) {
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

// Brings a line of eight samples near, for nothing foresees that their next features are wanted.
FASTGAN_AVX2 inline void fetch_eight(const int16_t* const rows[8], int64_t feature) {
  for (int i = 0; i < 8; ++i) _mm_prefetch(reinterpret_cast<const char*>(rows[i] + feature), _MM_HINT_T1);
}

// A slice, some features of a panel of each of the 16 parts: the sum of some parts less the sum of others. sums: [panel] to which
// the sums over k of q[2k] q[2k + 1] are added.
template <int kPluses, int kMinuses>
FASTGAN_AVX2 void operand(const char* slices, const Terms& terms, int64_t steps, char* to, int32_t* sums) {
  const __m256i* plus[kPluses];
  const __m256i* minus[kMinuses + 1];
  for (int i = 0; i < kPluses; ++i) plus[i] = reinterpret_cast<const __m256i*>(slices + terms.plus[i] * kSliceBytes);
  for (int i = 0; i < kMinuses; ++i) minus[i] = reinterpret_cast<const __m256i*>(slices + terms.minus[i] * kSliceBytes);
  auto *const out = reinterpret_cast<__m256i*>(to), *const pairs = reinterpret_cast<__m256i*>(sums);
  __m256i low = pairs[0], high = pairs[1];
  for (int64_t v = 0; v < 4 * steps; v += 4) {
    __m256i four[4];
    for (int i = 0; i < 4; ++i) {
      four[i] = plus[0][v + i];
      for (int t = 1; t < kPluses; ++t) four[i] = _mm256_add_epi16(four[i], plus[t][v + i]);
      for (int t = 0; t < kMinuses; ++t) four[i] = _mm256_sub_epi16(four[i], minus[t][v + i]);
      out[v + i] = four[i];
    }
    low = _mm256_add_epi32(low, _mm256_madd_epi16(four[0], four[2]));
    high = _mm256_add_epi32(high, _mm256_madd_epi16(four[1], four[3]));
  }
  pairs[0] = low;
  pairs[1] = high;
}

FASTGAN_AVX2 void one_operand(const char* slices, const Terms& terms, int64_t steps, char* to, int32_t* sums) {
  const auto make = terms.pluses == 4    ? operand<4, 0>
                    : terms.minuses == 2 ? operand<2, 2>
                    : terms.pluses == 2  ? operand<2, 0>
                    : terms.minuses == 1 ? operand<1, 1>
                                         : operand<1, 0>;
  make(slices, terms, steps, to, sums);
}

// Whether no product before this one goes to a quarter of the result.
constexpr bool is_first(int product, int quarter) {
  for (int i = 0; i < product; ++i)
    if (kOut[i][quarter] != 0) return false;
  return true;
}

// Of 49 products, those number 7 kOuter to 7 kOuter + 6, or what belongs to them, to the parts of the result that have them:
// added, or put there where none came before. inner: [7][count];  out: [16][count];  count: a multiple of 16
//
// The seven are a quarter's four parts first: 144 sums one by one would each pass through the second cache.
template <int kOuter>
FASTGAN_AVX2 void seven_to_result(const int32_t* inner, int64_t count, int32_t* out) {
  for (int64_t i = 0; i < count; i += 16) {  // whole lines: those of all parts compete for one place in the first cache
    __m256i c[4][2];
    for (int v = 0; v < 2; ++v) {
      __m256i m[7];
      for (int t = 0; t < 7; ++t) m[t] = _mm256_load_si256(reinterpret_cast<const __m256i*>(inner + t * count + i + 8 * v));
      for (int part = 0; part < 4; ++part) {
        c[part][v] = _mm256_setzero_si256();
        for (int t = 0; t < 7; ++t) {
          if (kOut[t][part] > 0) c[part][v] = _mm256_add_epi32(c[part][v], m[t]);
          if (kOut[t][part] < 0) c[part][v] = _mm256_sub_epi32(c[part][v], m[t]);
        }
      }
    }
    for (int quarter = 0; quarter < 4; ++quarter) {
      const int factor = kOut[kOuter][quarter];
      if (factor == 0) continue;
      for (int part = 0; part < 4; ++part)
        for (int v = 0; v < 2; ++v) {
          auto* const to = reinterpret_cast<__m256i*>(out + part_of(quarter, part) * count + i + 8 * v);
          const __m256i before = is_first(kOuter, quarter) ? _mm256_setzero_si256() : *to;
          *to = factor > 0 ? _mm256_add_epi32(before, c[part][v]) : _mm256_sub_epi32(before, c[part][v]);
        }
    }
  }
}

constexpr decltype(&seven_to_result<0>) kSevenToResult[7] = {
    seven_to_result<0>, seven_to_result<1>, seven_to_result<2>, seven_to_result<3>,
    seven_to_result<4>, seven_to_result<5>, seven_to_result<6>};

// rows: [samples()] of a group;  slices: room for [16] of kSliceBytes;  own: for [49][quarter]
FASTGAN_AVX2 void make_operands(const GroupLayout& layout, const int16_t* const* rows, const AllTerms& terms,
                                const Operands& made, char* slices, int32_t* own) {
  std::memset(own, 0, kOperands * layout.quarter() * sizeof(int32_t));
  for (int64_t panel = 0; panel < layout.panels; ++panel)
    for (int64_t first = 0; first < layout.part_features(); first += kSlice) {
      const int64_t features = std::min(kSlice, layout.part_features() - first);
      const bool last = first + kSlice >= layout.part_features();
      const int64_t after = last ? 0 : first + kSlice, next = std::min(panel + last, layout.panels - 1) * kPanel;
      for (int64_t part = 0; part < kParts; ++part)
        for (int half = 0; half < 2; ++half) {
          const int16_t* const* const samples = rows + part / 4 * layout.quarter() + 8 * half;
          const int64_t feature = part % 4 * layout.part_features();
          for (int64_t f = 0; f < features; f += 16) {
            pack_eight(samples + panel * kPanel, feature + first + f,
                       slices + part * kSliceBytes + f / kStep * kStepBytes + half * 32);
            if (f % 32 == 0) fetch_eight(samples + next, feature + after + f);
          }
        }
      const int64_t block = first / kBlock;
      const int64_t place = layout.at(block, panel) + (first - block * kBlock) / kStep * kStepBytes;
      for (int i = 0; i < kOperands; ++i)
        one_operand(slices, terms.of[i], features / kStep, made.values + i * layout.part_bytes() + place,
                    own + i * layout.quarter() + panel * kPanel);
    }
  for (int outer = 0; outer < 7; ++outer)
    kSevenToResult[outer](own + 7 * outer * layout.quarter(), layout.quarter(), made.pairs);
}

// c[r][0..15] (+)= sum over steps and both halves of (a_even + b_odd)(a_odd + b_even), for four rows of a.
//
// The sum over k of (a[2k] + b[2k + 1])(a[2k + 1] + b[2k]) is a . b and what depends on a and on b alone, Operands::pairs. The
// additions can go to any of four units, products to two. In assembly, for GCC 12 keeps two of eight sums in memory.
// steps: a multiple of four;  next: memory to have at hand next, 32 bytes a step
template <bool kNext>
FASTGAN_AVX2 void row_products(const char* b, const char* a, int64_t steps, const char* next, int32_t* c, bool add) {
  auto* const to = reinterpret_cast<__m256i*>(c);
  __m256i s00, s01, s10, s11, s20, s21, s30, s31;
  s00 = s01 = s10 = s11 = s20 = s21 = s30 = s31 = _mm256_setzero_si256();
  if (add) {
    s00 = to[0], s01 = to[1], s10 = to[2], s11 = to[3];
    s20 = to[4], s21 = to[5], s30 = to[6], s31 = to[7];
  }
#define FASTGAN_ROW(AT, R, LEFT, RIGHT)                \
  "vpbroadcastd " #AT "+4*" #R "(%[a]), %%ymm12\n"     \
  "vpbroadcastd " #AT "+64+4*" #R "(%[a]), %%ymm13\n"  \
  "vpaddw %%ymm12, %%ymm9, %%ymm14\n"                  \
  "vpaddw %%ymm13, %%ymm8, %%ymm15\n"                  \
  "vpaddw %%ymm12, %%ymm11, %%ymm12\n"                 \
  "vpaddw %%ymm13, %%ymm10, %%ymm13\n"                 \
  "vpmaddwd %%ymm14, %%ymm15, %%ymm14\n"               \
  "vpmaddwd %%ymm12, %%ymm13, %%ymm12\n"               \
  "vpaddd %%ymm14, %[" #LEFT "], %[" #LEFT "]\n"       \
  "vpaddd %%ymm12, %[" #RIGHT "], %[" #RIGHT "]\n"
#define FASTGAN_STEP(AT)                 \
  "vmovdqa " #AT "(%[b]), %%ymm8\n"      \
  "vmovdqa " #AT "+32(%[b]), %%ymm10\n"  \
  "vmovdqa " #AT "+64(%[b]), %%ymm9\n"   \
  "vmovdqa " #AT "+96(%[b]), %%ymm11\n"  \
  FASTGAN_ROW(AT, 0, s00, s01) FASTGAN_ROW(AT, 1, s10, s11) FASTGAN_ROW(AT, 2, s20, s21) FASTGAN_ROW(AT, 3, s30, s31)
#define FASTGAN_LOOP(FIRST, SECOND, NEXT)                                                                           \
  asm(".p2align 5\n"                                                                                                \
      "1:\n" FASTGAN_STEP(0) FIRST FASTGAN_STEP(128) FASTGAN_STEP(256) SECOND FASTGAN_STEP(384) NEXT                \
      "add $512, %[b]\n"                                                                                            \
      "add $512, %[a]\n"                                                                                            \
      "sub $4, %[steps]\n"                                                                                          \
      "jnz 1b\n"                                                                                                    \
      : [a] "+r"(a), [b] "+r"(b), [steps] "+r"(steps), [next] "+r"(next), [s00] "+x"(s00), [s01] "+x"(s01),         \
        [s10] "+x"(s10), [s11] "+x"(s11), [s20] "+x"(s20), [s21] "+x"(s21), [s30] "+x"(s30), [s31] "+x"(s31)        \
      :                                                                                                             \
      : "ymm8", "ymm9", "ymm10", "ymm11", "ymm12", "ymm13", "ymm14", "ymm15", "cc", "memory")
  if (kNext)
    FASTGAN_LOOP("prefetcht0 (%[next])\n", "prefetcht0 64(%[next])\n", "add $128, %[next]\n");
  else
    FASTGAN_LOOP("", "", "");
#undef FASTGAN_LOOP
#undef FASTGAN_STEP
#undef FASTGAN_ROW
  to[0] = s00, to[1] = s01, to[2] = s10, to[3] = s11;
  to[4] = s20, to[5] = s21, to[6] = s30, to[7] = s31;
}

// A tile, [16 samples of a][16 of b].
template <bool kNext>
FASTGAN_AVX2 void tile_products(const char* b, const char* a, int64_t steps, const char* next, int32_t* tile, bool add) {
  for (int64_t r = 0; r < kPanel; r += kRows, a += 4 * kRows, next += steps * 32, tile += kRows * kPanel)
    row_products<kNext>(b, a, steps, next, tile, add);
}

// [panel of b][panel of a][16][16]
FASTGAN_AVX2 void part_products(const GroupLayout& of_a, const char* a, const GroupLayout& of_b, const char* b, int32_t* out) {
  for (int64_t block = 0; block < of_a.blocks(); ++block) {
    const int64_t steps = of_a.length(block) / kStep, bytes = steps * kStepBytes;
    const char *const rows = a + of_a.at(block, 0), *column = b + of_b.at(block, 0);
    int32_t* tile = out;
    for (int64_t j = 0; j < of_b.panels; ++j, column += bytes)
      for (int64_t i = 0; i < of_a.panels; ++i, tile += kTile) {
        const char* const row = rows + i * bytes;
        if (i == 0)  // meanwhile the next panel of b
          tile_products<true>(column, row, steps, column + bytes, tile, block > 0);
        else if (i == 1)  // one of a for the next block
          tile_products<true>(column, row, steps, rows + (of_a.panels + j) * bytes, tile, block > 0);
        else
          tile_products<false>(column, row, steps, column, tile, block > 0);
      }
  }
}

// All products of two groups. out: [16 parts of the result][panel of b][panel of a][16][16];  inner: room for seven parts
FASTGAN_AVX2 void group_products(const GroupLayout& of_a, const Operands& a, const GroupLayout& of_b, const Operands& b,
                                 int32_t* out, int32_t* inner) {
  const int64_t count = of_a.quarter() * of_b.quarter();
  for (int outer = 0; outer < 7; ++outer) {
    for (int i = 7 * outer; i < 7 * outer + 7; ++i)
      part_products(of_a, a.values + i * of_a.part_bytes(), of_b, b.values + i * of_b.part_bytes(), inner + i % 7 * count);
    kSevenToResult[outer](inner, count, out);
  }
}

}  // namespace
}  // namespace fastgan
#endif
