// The product of a few rows with eight columns, on which the reduction of a symmetric matrix to a band is built.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <memory>

#include "vectors.h"

namespace fastgan {
namespace {

constexpr int kStrip = 8;  // columns of a product that stay in registers; matrices lie in strips [rows][kStrip]
constexpr int kRows = 6;   // rows that do

// c[r][0..7] (+)= sign * sum over k < depth of a[r * row + k * step] * strip[k][0..7], for R rows
template <typename V, int R, bool add>
FASTGAN_HD void tile(int64_t depth, const double* a, int64_t row, int64_t step, const double* strip, double* c,
                     int64_t ldc, double sign) {
  constexpr int width = sizeof(V) / sizeof(double), parts = kStrip / width;
  V sum[R][parts] = {};
  for (int64_t k = 0; k < depth; ++k) {
    V b[parts];
    FASTGAN_UNROLL
    for (int p = 0; p < parts; ++p) b[p] = load<V>(strip + k * kStrip + p * width);
    FASTGAN_UNROLL
    for (int r = 0; r < R; ++r) {
      const double x = a[r * row + k * step];
      FASTGAN_UNROLL
      for (int p = 0; p < parts; ++p) sum[r][p] += x * b[p];
    }
  }
  FASTGAN_UNROLL
  for (int r = 0; r < R; ++r) {
    FASTGAN_UNROLL
    for (int p = 0; p < parts; ++p) {
      double* to = c + r * ldc + p * width;
      const V made = sign * sum[r][p];
      store<V>(to, add ? load<V>(to) + made : made);
    }
  }
}

// The same for any number of rows
template <typename V, bool add>
FASTGAN_HD void tiles(int64_t rows, int64_t depth, const double* a, int64_t row, int64_t step, const double* strip,
                      double* c, int64_t ldc, double sign) {
  int64_t r = 0;
  for (; r + kRows <= rows; r += kRows)
    tile<V, kRows, add>(depth, a + r * row, row, step, strip, c + r * ldc, ldc, sign);
  for (; r < rows; ++r) tile<V, 1, add>(depth, a + r * row, row, step, strip, c + r * ldc, ldc, sign);
}

}  // namespace
}  // namespace fastgan
