// A symmetric band to a tridiagonal matrix of the same eigenvalues (Murata and Horikoshi 1975; Lang 1993).
//
// A reflector of length kBand clears a column below its subdiagonal; applied from both sides it fills a block further
// down, of which the next reflector clears the first column, and so on to the end: each sweep leaves the rest banded.
#pragma once

#include <atomic>
#include <cmath>

#include "band_reduction.h"
#include "waiting.h"

namespace fastgan {
namespace {

constexpr int64_t kBandRows = 2 * kBand;  // column j of the band holds its rows j to j + kBandRows - 1

// Elements (i, j) of the band, i >= j: a block of it is a dense matrix with a column stride of one less.
FASTGAN_HD double* element(double* band, int64_t i, int64_t j) { return band + j * kBandRows + (i - j); }

// v, tau of x - v tau v^T x = (beta, 0, ...), v[0] = 1; x becomes that, `length` of kBand; the rest of v is 0
FASTGAN_HD double reflector(double* x, int64_t length, double* v) {
  double rest = 0;
  for (int64_t i = 1; i < length; ++i) rest += x[i] * x[i];
  for (int i = 0; i < kBand; ++i) v[i] = 0;
  v[0] = 1;
  if (!(rest > 0)) return 0;
  const double alpha = x[0], beta = -std::copysign(std::sqrt(alpha * alpha + rest), alpha), scale = 1 / (alpha - beta);
  for (int64_t i = 1; i < length; ++i) v[i] = x[i] * scale, x[i] = 0;
  x[0] = beta;
  return (beta - alpha) / beta;
}

template <typename V>
FASTGAN_HD double lanes(const V& v) {
  double sum = 0;
  for (unsigned i = 0; i < sizeof(V) / sizeof(double); ++i) sum += v[i];
  return sum;
}

// The diagonal block that starts at r: D -= v w^T + w v^T, p = tau D v, w = p - tau (p^T v) v / 2. Only what is on or
// below the diagonal is D; the rest of a column of kBand rows from r on belongs to other columns and stays as it is.
template <typename V>
FASTGAN_HD void both_sides(double* band, int64_t r, int64_t length, const double* v, double tau) {
  typedef long long Mask __attribute__((vector_size(sizeof(V))));
  constexpr int width = sizeof(V) / sizeof(double), parts = kBand / width;
  V sum[parts] = {};
  double w[kBand] = {};
  Mask place[parts];
  for (int p = 0; p < parts; ++p)
    for (int l = 0; l < width; ++l) place[p][l] = p * width + l;
  for (int64_t c = 0; c < length; ++c) {
    const double* column = element(band, r, r + c);
    V dot = {};
    FASTGAN_UNROLL
    for (int p = 0; p < parts; ++p) {
      const V x = load<V>(column + p * width);
      const Mask bits = (Mask)x;
      const Mask from = bits & (place[p] >= c), below = bits & (place[p] > c);
      sum[p] += v[c] * (V)from;
      dot += (V)below * load<V>(v + p * width);
    }
    w[c] = lanes<V>(dot);
  }
  double inner = 0;
  for (int p = 0; p < parts; ++p) {
    store<V>(w + p * width, tau * (load<V>(w + p * width) + sum[p]));
    inner += lanes<V>(V(load<V>(w + p * width) * load<V>(v + p * width)));
  }
  for (int c = 0; c < kBand; ++c) w[c] = c < length ? w[c] - tau / 2 * inner * v[c] : 0;
  for (int64_t c = 0; c < length; ++c) {
    double* column = element(band, r, r + c);
    FASTGAN_UNROLL
    for (int p = 0; p < parts; ++p) {
      const V change = w[c] * load<V>(v + p * width) + v[c] * load<V>(w + p * width);
      const Mask kept = (Mask)change & (place[p] >= c);
      store<V>(column + p * width, load<V>(column + p * width) - (V)kept);
    }
  }
}

// The block below: kBand columns from r on, `length` rows from r + kBand on. From the right by (v, tau), then from the
// left by the reflector that clears its first column, which replaces v and tau.
template <typename V>
FASTGAN_HD void next_block(double* band, int64_t r, int64_t length, double* v, double& tau) {
  constexpr int width = sizeof(V) / sizeof(double), parts = kBand / width;
  V q[parts] = {};
  for (int c = 0; c < kBand; ++c) {
    const double* column = element(band, r + kBand, r + c);
    FASTGAN_UNROLL
    for (int p = 0; p < parts; ++p) q[p] += v[c] * load<V>(column + p * width);
  }
  for (int p = 0; p < parts; ++p) q[p] *= tau;
  double* first = element(band, r + kBand, r);
  for (int p = 0; p < parts; ++p) store<V>(first + p * width, load<V>(first + p * width) - q[p] * v[0]);
  double of_columns[kBand];
  memcpy(of_columns, v, sizeof(of_columns));
  tau = reflector(first, length, v);
  V u[parts];
  for (int p = 0; p < parts; ++p) u[p] = load<V>(v + p * width);
  for (int c = 1; c < kBand; ++c) {
    double* column = element(band, r + kBand, r + c);
    V x[parts], dot = {};
    FASTGAN_UNROLL
    for (int p = 0; p < parts; ++p) {
      x[p] = load<V>(column + p * width) - q[p] * of_columns[c];
      dot += x[p] * u[p];
    }
    const double z = tau * lanes<V>(dot);
    FASTGAN_UNROLL
    for (int p = 0; p < parts; ++p) store<V>(column + p * width, x[p] - z * u[p]);
  }
}

// One sweep on its way down: the reflector that it applies next, to rows r to r + length - 1
struct Sweep {
  double v[kBand];
  double tau;
  int64_t r, length;
  bool going;

  FASTGAN_HD void start(double* band, int64_t n, int64_t s) {
    r = s + 1, length = std::min<int64_t>(kBand, n - r), going = true;
    tau = reflector(element(band, r, s), length, v);
  }

  // Changes kBand columns from r on, and no others
  template <typename V>
  FASTGAN_HD void step(double* band, int64_t n) {
    both_sides<V>(band, r, length, v, tau);
    const int64_t below = std::min<int64_t>(kBand, n - r - length);
    if (below > 0) next_block<V>(band, r, below, v, tau);
    going = below > 0, r += kBand, length = below;
  }
};

constexpr int kGroup = 3;     // sweeps that a thread takes down together, each two steps behind the one before
constexpr int kChasers = 16;  // threads at most

// How far each thread is: a number that only grows, in steps of its group, groups being `span` apart
struct Positions {
  struct alignas(64) Place {
    std::atomic<int64_t> at{0};
  };
  Place of[kChasers];

  void await(int64_t thread, int64_t at) const {
    fastgan::await([&] { return of[thread].at.load(std::memory_order_acquire) >= at; });
  }
  void reach(int64_t thread, int64_t at) { of[thread].at.store(at, std::memory_order_release); }
};

// band: [n + kBand][kBandRows], zero where the matrix ends. Its first two rows become the tridiagonal matrix.
// Groups of sweeps go to the threads in turn. A group follows the one before at a distance of one step more than its
// sweeps keep, so that no two change the same columns: the result is that of one sweep after the other, bit for bit.
template <typename V>
FASTGAN_HD void chase(double* band, int64_t n, Positions& positions, int thread, int threads) {
  Sweep sweeps[kGroup];
  const int64_t span = n / kBand + 4 * kGroup + 4;
  for (int64_t group = thread; group * kGroup + 2 < n; group += threads) {
    const int64_t first = group * kGroup, count = std::min<int64_t>(kGroup, n - 2 - first);
    bool going = true;
    for (int64_t time = 0; going; ++time) {
      if (group > 0) positions.await((group - 1) % threads, (group - 1) * span + time + 2 * kGroup);
      going = false;
      for (int64_t i = 0; i < count; ++i) {
        if (time == 2 * i) sweeps[i].start(band, n, first + i);
        if (time >= 2 * i && sweeps[i].going) sweeps[i].template step<V>(band, n);
        going |= time < 2 * i || sweeps[i].going;
      }
      positions.reach(thread, group * span + time + 1);
    }
    positions.reach(thread, (group + 1) * span);
  }
}

}  // namespace
}  // namespace fastgan
