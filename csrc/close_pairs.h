// Which samples in fixed point are close: the nearest ones of each, and pairs within borders. The mathematics:
// fastgan/kernels/close_pairs.py.
#pragma once

#include "fixed_point.h"

namespace fastgan {

// base: squared norms less margins. A squared distance is at least base_i + base_j - 2 unit_i unit_j (q_i . q_j), and at most
// 2 (margin_i + margin_j) more.

// Of every sample the `count` others for which that is least, ascending; of equal ones those with a lower number.
struct Nearest {
  FixedSamples x;
  int64_t features;  // a multiple of 64
  int64_t count;     // at most n - 1
  float* least;      // [n, count]
  int64_t* who;      // [n, count]
};

// A pair for which it is not certain, and for which balls: bit 2 r that around x in rule r, bit 2 r + 1 that around y.
struct DoubtfulPair {
  int32_t x, y, balls;
};

// Which samples of y are in balls around those of x, and the other way round. Borders are squared radii: least > border is
// outside for certain, least + 2 (margin_i + margin_j) < border inside.
struct Within {
  FixedSamples x, y;
  int64_t features;
  const float *x_margin, *y_margin;  // [n], [m]
  int64_t rules;                     // at most 15
  const float *x_border, *y_border;  // [rules, n], [rules, m]
  // To which those that are certain are added: balls around x that have this y, samples y in the ball of this x, balls around y
  // that have this x.
  int32_t *around_y, *inside_x, *around_x;  // [rules, m], [rules, n], [rules, n]
  DoubtfulPair* doubtful;                   // [room]
  int64_t room;
};

// Pairs of samples that are not in fixed point.
struct PairDistances {
  const void *x, *y;  // [.., d] of float, or double
  bool wide;          // double
  int64_t d;
  const int64_t *i, *j;  // [count]
  int64_t count;
  double* out;  // [count]
};

}  // namespace fastgan

extern "C" {
// The same with any number of threads, each of which has a list of `count` for every sample, of 8 bytes an entry.
void fastgan_nearest_cpu(const fastgan::Nearest* of, int threads);

// Returns how many pairs are doubtful. Where they are more than there is room for, the rest is left undone.
int64_t fastgan_within_cpu(const fastgan::Within* of, int threads);

// Whether this processor can.
bool fastgan_pair_distances_here();

// Euclidean distances in double, the same for (i, j) and (j, i).
void fastgan_pair_distances_cpu(const fastgan::PairDistances* of, int threads);
}
