// Squared maximum mean discrepancy with a polynomial kernel, over subsets of two sets of samples in fixed point. The
// mathematics: fastgan/kernels/polynomial_mmd.py.
#pragma once

#include <cstdint>

namespace fastgan {

// Samples q_i of int16, each in [-16383, 16383], and norms such that all inner products fit into 32 bits.
struct FixedSamples {
  const int16_t* values;  // [n, features]
  const int32_t* pairs;   // [n] sum over k of q_i[2k] q_i[2k + 1], modulo 2^32
  const float* base[2];   // [n] of pairs within the set, and with the other one
};

// Samples x: [n, d] about `centre`, in steps of `unit`: q_i = round((x_i - centre) / unit), and e_i what that leaves.
struct ToFixed {
  const float *x, *centre;
  int64_t n, d, features;
  float unit;
  const float* partners[2];  // [d] for pairs within the set, and with the other one
};

// k(i, j) = (square * (q_i . q_j) + base_i + base_j + middle)^degree - shift
//   out = mean of k over i != j within x + the same within y - 2 mean of k over all pairs across
struct PolynomialMmd {
  FixedSamples x, y;
  int64_t features;                   // a multiple of 16
  const int64_t *first, *second;      // [subsets, size] samples of x and of y
  int64_t subsets, size;              // size: 2 or more
  float square, middle, shift;
  int degree;  // 1 or more
  double* out;  // [subsets]
};

}  // namespace fastgan

extern "C" {
// Whether this processor can.
bool fastgan_polynomial_mmd_here();

// norms: [n] |x_i - centre|^2;  largest: [n] of the absolute values of x_i - centre. Reads x and centre.
void fastgan_fixed_range_cpu(const fastgan::ToFixed* from, float* norms, float* largest, int threads);

// values and pairs as in FixedSamples;  alone: [3, n] x_i . centre, unit e_i . partners[0], unit e_i . partners[1]
void fastgan_to_fixed_cpu(const fastgan::ToFixed* from, int16_t* values, int32_t* pairs, double* alone, int threads);

// The same bits with any number of threads. Each takes some 4 bytes of memory for each feature of a subset's samples.
void fastgan_polynomial_mmd_cpu(const fastgan::PolynomialMmd* mmd, int threads);
}
