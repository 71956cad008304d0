// The inner loops of winograd.cpp: transforms of one tile for 16 channels, and products of rows with 16 columns.
#pragma once

#include <cstdint>

#include "vectors.h"

#ifdef __clang__
#define FASTGAN_UNROLL_ALL _Pragma("clang loop unroll(full)")
#else
#define FASTGAN_UNROLL_ALL _Pragma("GCC unroll 36")  // of a tile: so that all of it is in registers, its factors in the code
#endif

namespace fastgan {
namespace {

constexpr int kLanes = 16;  // channels that are neighbours in every array: a line of the cache
constexpr int kRows = 6;    // of a product that stay in registers

// ---- the transforms: m outputs, r taps, t = m + r - 1 points

template <int rows, int columns>
struct Matrix {
  float at[rows][columns];
};

template <int rows, int columns>
constexpr Matrix<columns, rows> transposed(const Matrix<rows, columns>& of) {
  Matrix<columns, rows> made{};
  for (int i = 0; i < rows; ++i)
    for (int j = 0; j < columns; ++j) made.at[j][i] = of.at[i][j];
  return made;
}

// Points 0, 1 and infinity.
struct Two2 {
  static constexpr int m = 2, r = 2, t = 3, stride = 2;
  static constexpr Matrix<t, t> in = {{{1, -1, 0}, {0, 1, 0}, {0, -1, 1}}};
  static constexpr Matrix<t, r> taps = {{{1, 0}, {1, 1}, {0, 1}}};
  static constexpr Matrix<m, t> out = {{{1, 1, 0}, {0, 1, 1}}};
};

// Points 0, 1, -1, -2 and infinity.
struct Four2 {
  static constexpr int m = 4, r = 2, t = 5, stride = 2;
  static constexpr float a = 1.0f / 6, b = 1.0f / 3;
  static constexpr Matrix<t, t> in = {
      {{2, 1, -2, -1, 0}, {0, 2, 3, 1, 0}, {0, -2, 1, 1, 0}, {0, 1, 0, -1, 0}, {0, -2, -1, 2, 1}}};
  static constexpr Matrix<t, r> taps = {{{0.5f, 0}, {a, a}, {0.5f, -0.5f}, {a, -b}, {0, 1}}};
  static constexpr Matrix<m, t> out = {{{1, 1, 1, 1, 0}, {0, 1, -1, -2, 0}, {0, 1, 1, 4, 0}, {0, 1, -1, -8, 1}}};
};

// Points 0, 1, -1 and infinity.
struct Two3 {
  static constexpr int m = 2, r = 3, t = 4, stride = 1;
  static constexpr Matrix<t, t> in = {{{1, 0, -1, 0}, {0, 1, 1, 0}, {0, -1, 1, 0}, {0, -1, 0, 1}}};
  static constexpr Matrix<t, r> taps = {{{1, 0, 0}, {0.5f, 0.5f, 0.5f}, {0.5f, -0.5f, 0.5f}, {0, 0, 1}}};
  static constexpr Matrix<m, t> out = {{{1, 1, 1, 0}, {0, 1, -1, 1}}};
};

// Points 0, 1, -1, 2, -1/2 and infinity, which round less than 2 and -2.
struct Four3 {
  static constexpr int m = 4, r = 3, t = 6, stride = 1;
  static constexpr float a = 1.0f / 3, b = 1.0f / 15;
  static constexpr Matrix<t, t> in = {{{1, 1.5f, -2, -1.5f, 1, 0},
                                       {0, -1, -2.5f, -0.5f, 1, 0},
                                       {0, 1, 0.5f, -2.5f, 1, 0},
                                       {0, -0.5f, -1, 0.5f, 1, 0},
                                       {0, 2, -1, -2, 1, 0},
                                       {0, 1, 1.5f, -2, -1.5f, 1}}};
  static constexpr Matrix<t, r> taps = {
      {{1, 0, 0}, {-a, -a, -a}, {a, -a, a}, {b, 2 * b, 4 * b}, {-16 * b, 8 * b, -4 * b}, {0, 0, 1}}};
  static constexpr Matrix<m, t> out = {
      {{1, 1, 1, 1, 1, 0}, {0, 1, -1, 2, -0.5f, 0}, {0, 1, 1, 4, 0.25f, 0}, {0, 1, -1, 8, -0.125f, 1}}};
};

// The sum of matrix[i][j] x[j * step]; what is 0 is left out, what is 1 not multiplied.
template <int rows, int columns, typename V>
FASTGAN_HD V combined(const Matrix<rows, columns>& matrix, int i, const V* x, int step) {
  V sum = {};
  FASTGAN_UNROLL_ALL
  for (int j = 0; j < columns; ++j)
    if (matrix.at[i][j] != 0) sum += matrix.at[i][j] * x[j * step];
  return sum;
}

// matrix x matrix^T, of x [columns][columns] at `x`, into [rows][rows] at `to`.
template <int rows, int columns, typename V>
FASTGAN_HD void twice(const Matrix<rows, columns>& matrix, const V* x, V* to) {
  V half[rows * columns];
  FASTGAN_UNROLL_ALL
  for (int j = 0; j < columns; ++j)
    FASTGAN_UNROLL_ALL
    for (int i = 0; i < rows; ++i) half[i * columns + j] = combined(matrix, i, x + j, columns);
  FASTGAN_UNROLL_ALL
  for (int i = 0; i < rows; ++i)
    FASTGAN_UNROLL_ALL
    for (int j = 0; j < rows; ++j) to[i * rows + j] = combined(matrix, j, half + i * columns, 1);
}

// The same for kLanes channels: element e of x is at from(e), of the result at to(e).
template <typename V, int rows, int columns, typename From, typename To>
FASTGAN_HD void transform(const Matrix<rows, columns>& matrix, const From& from, const To& to) {
  constexpr int width = sizeof(V) / sizeof(float);
  FASTGAN_UNROLL_ALL
  for (int lane = 0; lane < kLanes; lane += width) {
    V x[columns * columns], made[rows * rows];
    FASTGAN_UNROLL_ALL
    for (int e = 0; e < columns * columns; ++e) x[e] = load<V>(from(e) + lane);
    twice(matrix, x, made);
    FASTGAN_UNROLL_ALL
    for (int e = 0; e < rows * rows; ++e) store(to(e) + lane, made[e]);
  }
}

// ---- the products

// c[i][0..15] (+)= the sum over `blocks` of `depth` terms of a[i * kRow + k * kStep] b[k][0..15], for R rows. b goes on
// from block to block, a is a_block further.
template <typename V, int R, int kRow, int kStep>
FASTGAN_HD void product(int64_t blocks, int64_t a_block, int64_t depth, const float* a, const float* b, float* c, bool add) {
  constexpr int width = sizeof(V) / sizeof(float), parts = kLanes / width;
  V sum[R][parts] = {};
  for (int64_t block = 0; block < blocks; ++block, a += a_block, b += depth * kLanes)
    for (int64_t k = 0; k < depth; ++k) {
      V column[parts];
      FASTGAN_UNROLL
      for (int p = 0; p < parts; ++p) column[p] = load<V>(b + k * kLanes + p * width);
      FASTGAN_UNROLL
      for (int i = 0; i < R; ++i) {
        const float x = a[i * kRow + k * kStep];
        FASTGAN_UNROLL
        for (int p = 0; p < parts; ++p) sum[i][p] += x * column[p];
      }
    }
  FASTGAN_UNROLL
  for (int i = 0; i < R; ++i) {
    FASTGAN_UNROLL
    for (int p = 0; p < parts; ++p) {
      float* to = c + i * kLanes + p * width;
      store<V>(to, add ? load<V>(to) + sum[i][p] : sum[i][p]);
    }
  }
}

// For any number of rows.
template <typename V, int kRow, int kStep>
FASTGAN_HD void products(int64_t rows, int64_t blocks, int64_t a_block, int64_t depth, const float* a, const float* b,
                         float* c, bool add) {
  for (; rows >= kRows + kRows / 2 || rows == kRows; rows -= kRows, a += kRows * kRow, c += kRows * kLanes)
    product<V, kRows, kRow, kStep>(blocks, a_block, depth, a, b, c, add);
  for (; rows >= 4; rows -= 4, a += 4 * kRow, c += 4 * kLanes)  // 8 of them are two of 4, 7 are 4 and 3
    product<V, 4, kRow, kStep>(blocks, a_block, depth, a, b, c, add);
  switch (rows) {
    case 3: return product<V, 3, kRow, kStep>(blocks, a_block, depth, a, b, c, add);
    case 2: return product<V, 2, kRow, kStep>(blocks, a_block, depth, a, b, c, add);
    case 1: return product<V, 1, kRow, kStep>(blocks, a_block, depth, a, b, c, add);
  }
}

}  // namespace
}  // namespace fastgan
