// Squared maximum mean discrepancy with a polynomial kernel, over subsets of two sets of samples in fixed point. The
// mathematics: fastgan/kernels/polynomial_mmd.py.
#pragma once

#include "fixed_point.h"

namespace fastgan {

// out = mean of k over i != j within x + the same within y - 2 mean of k over all pairs across
struct PolynomialMmd {
  FixedSamples x, y;
  int64_t features;               // a multiple of 64
  const int64_t *first, *second;  // [subsets, size] samples of x and of y, in each subset different ones
  int64_t subsets, size;          // size: 2 or more
  PairFunction k;
  bool shared;  // whether each pair of samples is multiplied once, not once for each subset that has it
  double* out;  // [subsets]
};

}  // namespace fastgan

extern "C" {
// The same bits with any number of threads. A thread takes whole subsets or, of shared pairs, blocks of 2048 by 256, with up to
// 15 KB of memory for each feature.
void fastgan_polynomial_mmd_cpu(const fastgan::PolynomialMmd* mmd, int threads);
}
