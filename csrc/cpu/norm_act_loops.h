// The loops of norm_act over a piece of a tensor, compiled for several x86 levels. All of them give the same bits.
#pragma once

#include <algorithm>

#include "../norm_act.h"

namespace fastgan {
namespace {

constexpr int64_t kLanes = 16;  // partial sums of a row: element i goes to number i % kLanes, on every processor

// rows x n elements, row r from r * stride on. What is not needed is null.
template <typename C>
struct Piece {
  const C *x, *grad;
  C* out;
  int64_t rows, n, stride;
};

// NormActChannel and NormActInput as arrays, from the first row of a piece on where a row has one channel (`per_row`),
// else from its first column on.
template <typename C>
struct Factors {
  const C *center, *scale, *shift, *input_slope, *input_offset;
  NormActKind act;
  C slope;
  bool per_row;

  FASTGAN_HD C z(int64_t i, C x) const { return (x - center[i]) * scale[i] + shift[i]; }
};

// Two sums per row, of kLanes parts each, or per column.
template <typename C>
struct Sums {
  C *first, *second;
};

// ---- out = act(z)

template <NormActKind kAct, bool kPerRow, typename C>
FASTGAN_HD void normalise_rows(const Piece<C>& piece, const Factors<C>& factors) {
  const Piece<C> p = piece;  // local copies live in registers
  const Factors<C> f = factors;
  for (int64_t r = 0; r < p.rows; ++r) {
    const C* x = p.x + r * p.stride;
    C* out = p.out + r * p.stride;
    FASTGAN_IVDEP
    for (int64_t i = 0; i < p.n; ++i) out[i] = norm_act_value<kAct>(f.z(kPerRow ? r : i, x[i]), f.slope);
  }
}

// ---- dx from dz; the coefficients are 0 where the statistics are constants

template <NormActKind kAct, bool kPerRow, typename C>
FASTGAN_HD void input_rows(const Piece<C>& piece, const Factors<C>& factors) {
  const Piece<C> p = piece;
  const Factors<C> f = factors;
  for (int64_t r = 0; r < p.rows; ++r) {
    const C *x = p.x + r * p.stride, *grad = p.grad + r * p.stride;
    C* out = p.out + r * p.stride;
    FASTGAN_IVDEP
    for (int64_t i = 0; i < p.n; ++i) {
      const int64_t k = kPerRow ? r : i;
      const C d = x[i] - f.center[k], dz = norm_act_grad<kAct>(grad[i], d * f.scale[k] + f.shift[k], f.slope);
      out[i] = f.scale[k] * dz + (d * f.input_slope[k] + f.input_offset[k]);
    }
  }
}

// ---- sums: the two summands of an element come from `term(index of its factors, row, column, first&, second&)`

// Element i of `from` is added to lane i % kLanes. In vectors of the compiler: of a loop over lanes it makes a transpose.
template <typename C>
FASTGAN_HD void add_to_lanes(const C* from, int64_t n, C* lanes) {
  typedef C Lanes __attribute__((vector_size(kLanes * sizeof(C))));
  Lanes sum, more;
  memcpy(&sum, lanes, sizeof(sum));
  for (int64_t i = 0; i < n; i += kLanes) {
    memcpy(&more, from + i, sizeof(more));
    sum += more;
  }
  memcpy(lanes, &sum, sizeof(sum));
}

template <typename C, typename Term>
FASTGAN_HD void sum_in_lanes(int64_t rows, int64_t n, const Sums<C>& sums, Term term) {
  constexpr int64_t kBlock = 16 * kLanes;
  alignas(64) C first[kBlock], second[kBlock];
  for (int64_t r = 0; r < rows; ++r) {
    for (int64_t begin = 0; begin < n; begin += kBlock) {
      const int64_t count = std::min(kBlock, n - begin), full = (count + kLanes - 1) / kLanes * kLanes;
      FASTGAN_IVDEP
      for (int64_t i = 0; i < count; ++i) term(r, r, begin + i, first[i], second[i]);
      for (int64_t i = count; i < full; ++i) first[i] = second[i] = C(0);
      add_to_lanes(first, full, sums.first + r * kLanes);
      add_to_lanes(second, full, sums.second + r * kLanes);
    }
  }
}

template <int64_t kRows, typename C, typename Term>
FASTGAN_HD void sum_rows(int64_t row, int64_t n, const Sums<C>& sums, Term term) {
  C *first = sums.first, *second = sums.second;
  FASTGAN_IVDEP
  for (int64_t i = 0; i < n; ++i) {
    C a[kRows], b[kRows];
    for (int64_t k = 0; k < kRows; ++k) term(i, row + k, i, a[k], b[k]);
    if constexpr (kRows == 4) {  // four rows for one read and write of the sums
      first[i] += (a[0] + a[1]) + (a[2] + a[3]);
      second[i] += (b[0] + b[1]) + (b[2] + b[3]);
    } else {
      first[i] += a[0];
      second[i] += b[0];
    }
  }
}

// `light`: what a term computes is less than what it reads.
template <typename C, typename Term>
FASTGAN_HD void sum_in_columns(int64_t rows, int64_t n, const Sums<C>& sums, bool light, Term term) {
  int64_t r = 0;
  for (; light && r + 4 <= rows; r += 4) sum_rows<4>(r, n, sums, term);
  for (; r < rows; ++r) sum_rows<1>(r, n, sums, term);
}

// d = x - center and its square
template <bool kPerRow, typename C>
FASTGAN_HD void moments_rows(const Piece<C>& p, const Factors<C>& f, const Sums<C>& sums) {
  const C *x = p.x, *center = f.center;
  const int64_t stride = p.stride;
  const auto term = [=](int64_t k, int64_t r, int64_t i, C& first, C& second) __attribute__((always_inline)) {
    first = x[r * stride + i] - center[k];
    second = first * first;
  };
  kPerRow ? sum_in_lanes(p.rows, p.n, sums, term) : sum_in_columns(p.rows, p.n, sums, true, term);
}

// dz and dz (x - center)
template <NormActKind kAct, bool kPerRow, typename C>
FASTGAN_HD void gradients_rows(const Piece<C>& p, const Factors<C>& factors, const Sums<C>& sums) {
  const Factors<C> f = factors;
  const C *x = p.x, *grad = p.grad;
  const int64_t stride = p.stride;
  const auto term = [=](int64_t k, int64_t r, int64_t i, C& first, C& second) __attribute__((always_inline)) {
    const C d = x[r * stride + i] - f.center[k];
    first = norm_act_grad<kAct>(grad[r * stride + i], d * f.scale[k] + f.shift[k], f.slope);
    second = first * d;
  };
  constexpr bool kLight = kAct <= NormActKind::kLeakyRelu;
  kPerRow ? sum_in_lanes(p.rows, p.n, sums, term) : sum_in_columns(p.rows, p.n, sums, kLight, term);
}

// ---- one function per loop and type of the arithmetic, in which everything above is inlined

// Calls NAME<act, per_row> for what the factors say.
#define FASTGAN_EVERY_ACT(NAME, FACTORS, ...)                                                                   \
  switch ((FACTORS).act) {                                                                                      \
    case NormActKind::kNone: return FASTGAN_ONE_ACT(NAME, kNone, FACTORS, __VA_ARGS__);                         \
    case NormActKind::kRelu: return FASTGAN_ONE_ACT(NAME, kRelu, FACTORS, __VA_ARGS__);                         \
    case NormActKind::kLeakyRelu: return FASTGAN_ONE_ACT(NAME, kLeakyRelu, FACTORS, __VA_ARGS__);               \
    case NormActKind::kTanh: return FASTGAN_ONE_ACT(NAME, kTanh, FACTORS, __VA_ARGS__);                         \
    case NormActKind::kSigmoid: return FASTGAN_ONE_ACT(NAME, kSigmoid, FACTORS, __VA_ARGS__);                   \
    case NormActKind::kSilu: return FASTGAN_ONE_ACT(NAME, kSilu, FACTORS, __VA_ARGS__);                         \
    case NormActKind::kGelu: return FASTGAN_ONE_ACT(NAME, kGelu, FACTORS, __VA_ARGS__);                         \
  }
#define FASTGAN_ONE_ACT(NAME, ACT, FACTORS, ...) \
  (FACTORS).per_row ? NAME<NormActKind::ACT, true>(__VA_ARGS__) : NAME<NormActKind::ACT, false>(__VA_ARGS__)

#define FASTGAN_LOOPS(C)                                                                                   \
  FASTGAN_CLONES void normalise(const Piece<C>& p, const Factors<C>& f) {                                  \
    FASTGAN_EVERY_ACT(normalise_rows, f, p, f)                                                             \
  }                                                                                                        \
  FASTGAN_CLONES void input_gradient(const Piece<C>& p, const Factors<C>& f) {                             \
    FASTGAN_EVERY_ACT(input_rows, f, p, f)                                                                 \
  }                                                                                                        \
  FASTGAN_CLONES void add_moments(const Piece<C>& p, const Factors<C>& f, const Sums<C>& sums) {           \
    f.per_row ? moments_rows<true>(p, f, sums) : moments_rows<false>(p, f, sums);                          \
  }                                                                                                        \
  FASTGAN_CLONES void add_gradients(const Piece<C>& p, const Factors<C>& f, const Sums<C>& sums) {         \
    FASTGAN_EVERY_ACT(gradients_rows, f, p, f, sums)                                                       \
  }

FASTGAN_LOOPS(float)
FASTGAN_LOOPS(double)

// Means and sums of squared differences from them, of `count` channels: those of n elements so far, to which others
// come of which `count` channels have added sums s of d = x - shift and q of d^2 over `more` elements (Chan, Golub &
// LeVeque 1983).
FASTGAN_CLONES void merge_moments(int64_t count, double* mean, double* m2, double n, const double* shift,
                                  const double* s, const double* q, double more) {
  const double of_more = 1.0 / more, share = more / (n + more), weight = n * share;
  FASTGAN_IVDEP
  for (int64_t i = 0; i < count; ++i) {
    const double within = q[i] - s[i] * s[i] * of_more, delta = shift[i] + s[i] * of_more - mean[i];
    m2[i] += (within < 0.0 ? 0.0 : within) + delta * delta * weight;
    mean[i] += delta * share;
  }
}

}  // namespace
}  // namespace fastgan
