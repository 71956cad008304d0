// A symmetric matrix to a band of the same eigenvalues, panel by panel (Bischof, Lang and Sun 2000).
//
// Below the first kBand rows of a panel of kBand columns everything is eliminated by Q = I - V T V^T (Householder
// reflectors, gathered as by Schreiber and Van Loan 1989); what remains of the matrix becomes
//
//     A - V W^T - W V^T,   X = A V T,   W = X - V (T^T V^T X) / 2
//
// so that 4/3 n^3 operations are two products per panel: A V, which reads each half of A once, and the update.
#pragma once

#include <algorithm>
#include <cmath>
#include <vector>

#include "eigen_tile.h"

namespace fastgan {
namespace {

constexpr int kBand = 32;
constexpr int kBlock = 96;     // rows and columns of A that a product takes at once
constexpr int kColumns = 128;  // columns of A that an update takes at once

// The part of the matrix that a panel leaves: rows and columns from `first` on, m of them.
struct Panel {
  double* a;
  int64_t stride, first, m;
  double* left;    // [m][2 kBand]: V, W
  double* right;   // strips of the transpose of W, V: [m / 8][2 kBand][8]
  double* strips;  // V in strips: [kBand / 8][room][8]
  double* y;       // A V, a part per thread: [threads][room][kBand]
  int64_t room;    // m, rounded up
  double* t;       // T in strips: [kBand / 8][kBand][8]
  double* half;    // -M / 2 in strips, with M = T^T V^T A V T

  double* row(int64_t i) const { return a + (first + i) * stride + first; }
};

// QR of left[0..m)[0..kBand): R into `r` [kBand][kBand], V in its place, the reflectors' factors into tau. Each pass
// over the rows applies one reflector and gathers the products that the next one needs.
template <typename V>
FASTGAN_HD void factor_panel(const Panel& panel, double* r, double* tau) {
  constexpr int width = sizeof(V) / sizeof(double), parts = kBand / width, ld = 2 * kBand;
  const int64_t m = panel.m, reflectors = std::min<int64_t>(kBand, m - 1);
  double* rows = panel.left;
  double products[kBand], w[kBand];
  {
    V sum[parts] = {};
    for (int64_t i = 1; i < m; ++i)
      for (int p = 0; p < parts; ++p) sum[p] += rows[i * ld] * load<V>(rows + i * ld + p * width);
    for (int p = 0; p < parts; ++p) store<V>(products + p * width, sum[p]);
  }
  for (int64_t j = 0; j < reflectors; ++j) {
    double* top = rows + j * ld;
    const double alpha = top[j], rest = products[j];
    double scale = 0;
    tau[j] = 0;
    if (rest > 0) {
      const double beta = -std::copysign(std::sqrt(alpha * alpha + rest), alpha);
      tau[j] = (beta - alpha) / beta, scale = 1 / (alpha - beta);
      top[j] = beta;
    }
    for (int c = 0; c < kBand; ++c) {
      w[c] = c > j ? tau[j] * (top[c] + scale * products[c]) : 0;
      top[c] -= w[c];
    }
    V sum[parts] = {};
    const int64_t next = std::min<int64_t>(j + 1, kBand - 1);
    for (int64_t i = j + 1; i < m; ++i) {
      double* row = rows + i * ld;
      const double v = row[j] * scale;
      FASTGAN_UNROLL
      for (int p = 0; p < parts; ++p) store<V>(row + p * width, load<V>(row + p * width) - v * load<V>(w + p * width));
      row[j] = v;
      if (i == j + 1) continue;
      const double x = row[next];
      FASTGAN_UNROLL
      for (int p = 0; p < parts; ++p) sum[p] += x * load<V>(row + p * width);
    }
    for (int p = 0; p < parts; ++p) store<V>(products + p * width, sum[p]);
  }
  for (int64_t i = 0; i < std::min<int64_t>(m, kBand); ++i)
    for (int c = 0; c < kBand; ++c) {
      if (i <= c) r[i * kBand + c] = rows[i * ld + c], rows[i * ld + c] = i == c;
    }
  for (int64_t c = reflectors; c < kBand; ++c) {
    tau[c] = 0;
    for (int64_t i = 0; i < m; ++i) rows[i * ld + c] = 0;
  }
}

// V into strips, and T from it: T[0..j)[j] = -tau_j T[0..j)[0..j) (V^T V)[0..j)[j]
template <typename V>
FASTGAN_HD void gather_reflectors(const Panel& panel, const double* tau, double* t) {
  const int64_t m = panel.m;
  for (int s = 0; s < kBand / kStrip; ++s)
    for (int64_t i = 0; i < m; ++i)
      memcpy(panel.strips + (s * panel.room + i) * kStrip, panel.left + i * 2 * kBand + s * kStrip, 64);
  double gram[kBand * kBand];
  for (int s = 0; s < kBand / kStrip; ++s)
    tiles<V, false>(kBand, m, panel.left, 1, 2 * kBand, panel.strips + s * panel.room * kStrip, gram + s * kStrip,
                    kBand, 1);
  memset(t, 0, kBand * kBand * sizeof(double));
  for (int j = 0; j < kBand; ++j) {
    for (int i = 0; i < j; ++i) {
      double sum = 0;
      for (int k = i; k < j; ++k) sum += t[i * kBand + k] * gram[k * kBand + j];
      t[i * kBand + j] = -tau[j] * sum;
    }
    t[j * kBand + j] = tau[j];
  }
}

// y of one thread: A V over the blocks of rows that are its, each used as it is and transposed
template <typename V>
FASTGAN_HD void multiply(const Panel& panel, int thread, int threads) {
  const int64_t m = panel.m, ld = panel.stride;
  double* y = panel.y + thread * panel.room * kBand;
  memset(y, 0, panel.room * kBand * sizeof(double));
  double whole[kBlock * kBlock];
  for (int64_t block = 0; block * kBlock < m; ++block) {
    const int64_t turn = block % (2 * threads);  // 0 1 1 0 0 1 1 0: later blocks are longer
    if (std::min(turn, 2 * threads - 1 - turn) != thread) continue;
    const int64_t i = block * kBlock;
    const int64_t rows = std::min<int64_t>(kBlock, m - i);
    for (int64_t j = 0; j < i; j += kBlock)
      for (int s = 0; s < kBand / kStrip; ++s) {
        const double* strip = panel.strips + s * panel.room * kStrip;
        tiles<V, true>(rows, kBlock, panel.row(i) + j, ld, 1, strip + j * kStrip, y + i * kBand + s * kStrip, kBand, 1);
        tiles<V, true>(kBlock, rows, panel.row(i) + j, 1, ld, strip + i * kStrip, y + j * kBand + s * kStrip, kBand, 1);
      }
    for (int64_t p = 0; p < rows; ++p)
      for (int64_t q = 0; q <= p; ++q) whole[p * kBlock + q] = whole[q * kBlock + p] = panel.row(i + p)[i + q];
    for (int s = 0; s < kBand / kStrip; ++s)
      tiles<V, true>(rows, rows, whole, kBlock, 1, panel.strips + (s * panel.room + i) * kStrip,
                     y + i * kBand + s * kStrip, kBand, 1);
  }
}

// From y: T and -M / 2 in strips. M = T^T (V^T A V) T
template <typename V>
FASTGAN_HD void middle(const Panel& panel, const double* t, int threads) {
  const int64_t m = panel.m;
  for (int other = 1; other < threads; ++other)
    for (int64_t i = 0; i < m * kBand; ++i) panel.y[i] += panel.y[other * panel.room * kBand + i];
  double s[kBand * kBand], st[kBand * kBand];
  for (int p = 0; p < kBand / kStrip; ++p)
    tiles<V, false>(kBand, m, panel.y, 1, kBand, panel.strips + p * panel.room * kStrip, s + p * kStrip, kBand, 1);
  for (int i = 0; i < kBand; ++i)
    for (int j = 0; j < kBand; ++j) {
      double sum = 0;
      for (int k = 0; k <= j; ++k) sum += (s[i * kBand + k] + s[k * kBand + i]) * t[k * kBand + j];
      st[i * kBand + j] = sum / 2;
    }
  for (int i = 0; i < kBand; ++i)
    for (int j = 0; j < kBand; ++j) {
      double sum = 0;
      for (int k = 0; k <= i; ++k) sum += t[k * kBand + i] * st[k * kBand + j];
      const int64_t at = (j / kStrip * kBand + i) * kStrip + j % kStrip;
      panel.half[at] = -sum / 2, panel.t[at] = t[i * kBand + j];
    }
}

// W = Y T - V M / 2 for some rows, and both factors of the update as it reads them
template <typename V>
FASTGAN_HD void finish(const Panel& panel, int thread, int threads) {
  const int64_t strips = (panel.m + kStrip - 1) / kStrip, from = strips * thread / threads * kStrip;
  const int64_t end = std::min(panel.m, strips * (thread + 1) / threads * kStrip);
  for (int64_t i = from; i < end; i += kBlock) {
    const int64_t rows = std::min<int64_t>(kBlock, end - i);
    double* left = panel.left + i * 2 * kBand;
    for (int s = 0; s < kBand / kStrip; ++s) {
      double* w = left + kBand + s * kStrip;
      tiles<V, false>(rows, kBand, panel.y + i * kBand, kBand, 1, panel.t + s * kBand * kStrip, w, 2 * kBand, 1);
      tiles<V, true>(rows, kBand, left, 2 * kBand, 1, panel.half + s * kBand * kStrip, w, 2 * kBand, 1);
    }
    for (int64_t r = 0; r < rows; ++r) {
      double* right = panel.right + (i + r) / kStrip * 2 * kBand * kStrip + (i + r) % kStrip;
      for (int l = 0; l < kBand; ++l) {
        right[l * kStrip] = left[r * 2 * kBand + kBand + l];
        right[(kBand + l) * kStrip] = left[r * 2 * kBand + l];
      }
    }
  }
}

// A -= V W^T + W V^T in the lower triangle (and up to the end of a strip beyond it), in some rows and columns
template <typename V>
FASTGAN_HD void update(const Panel& panel, int64_t i, int64_t rows, int64_t from, int64_t to) {
  for (int64_t columns = from; columns < std::min(to, i + rows); columns += kColumns)
    for (int64_t r = 0; r < rows; r += kRows) {
      const int64_t here = std::min<int64_t>(kRows, rows - r);
      const int64_t end = std::min({columns + kColumns, to, i + r + here});
      for (int64_t j = columns; j < end; j += kStrip)
        tiles<V, true>(here, 2 * kBand, panel.left + (i + r) * 2 * kBand, 2 * kBand, 1, panel.right + j * 2 * kBand,
                       panel.row(i + r) + j, panel.stride, -1);
    }
}

}  // namespace
}  // namespace fastgan
