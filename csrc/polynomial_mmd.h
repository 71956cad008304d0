// Squared maximum mean discrepancy with a polynomial kernel, over subsets of two sets of samples in fixed point. The
// mathematics: fastgan/kernels/polynomial_mmd.py.
#pragma once

#include <cstdint>

namespace fastgan {

// Samples q_i of int16, each in [-4095, 4095], and norms such that all inner products fit into 32 bits.
struct FixedSamples {
  const int16_t* values;  // [n, features]
  const float* units;     // [n]
  const float* base[2];   // [n] of pairs within the set, and with the other one
  int64_t n;
};

// Samples x: [n, d] about `centre`, each in steps of its unit: q_i = round((x_i - centre) / unit_i), and e_i what that leaves.
struct ToFixed {
  const float *x, *centre;
  int64_t n, d, features;
  const float* units;        // [n]
  const float* partners[2];  // [d] for pairs within the set, and with the other one
};

// k(i, j) = (gamma unit_i unit_j (q_i . q_j) + base_i + base_j + middle)^degree - shift
//   out = mean of k over i != j within x + the same within y - 2 mean of k over all pairs across
struct PolynomialMmd {
  FixedSamples x, y;
  int64_t features;               // a multiple of 64
  const int64_t *first, *second;  // [subsets, size] samples of x and of y, in each subset different ones
  int64_t subsets, size;          // size: 2 or more
  float gamma, middle, shift;
  int degree;   // 1 or more
  bool shared;  // whether each pair of samples is multiplied once, not once for each subset that has it
  double* out;  // [subsets]
};

}  // namespace fastgan

extern "C" {
// Whether this processor can.
bool fastgan_polynomial_mmd_here();

// norms: [n] |x_i - centre|^2;  largest: [n] of the absolute values of x_i - centre. Reads x and centre.
void fastgan_fixed_range_cpu(const fastgan::ToFixed* from, float* norms, float* largest, int threads);

// values: [n, features];  alone: [3, n] x_i . centre, e_i . partners[0], e_i . partners[1]
void fastgan_to_fixed_cpu(const fastgan::ToFixed* from, int16_t* values, double* alone, int threads);

// The same bits with any number of threads. A thread takes whole subsets or, of shared pairs, blocks of 2048 by 256, with up to
// 15 KB of memory for each feature.
void fastgan_polynomial_mmd_cpu(const fastgan::PolynomialMmd* mmd, int threads);
}
