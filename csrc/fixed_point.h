// Samples in fixed point: integers of 13 bits, each sample in steps of its own.
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

// k(i, j) = (gamma unit_i unit_j (q_i . q_j) + base_i + base_j + middle)^degree - shift
struct PairFunction {
  float gamma, middle, shift;
  int degree;  // 1 or more
};

// Samples x: [n, d] about `centre`, each in steps of its unit: q_i = round((x_i - centre) / unit_i), and e_i what that leaves.
struct ToFixed {
  const float *x, *centre;
  int64_t n, d, features;    // features: a multiple of 64
  const float* units;        // [n]
  const float* partners[2];  // [d] for pairs within the set, and with the other one
};

}  // namespace fastgan

extern "C" {
// Whether this processor can compute with such samples, and is faster with them.
bool fastgan_fixed_point_here();

// norms: [n] |x_i - centre|^2;  largest: [n] of the absolute values of x_i - centre. Reads x and centre.
void fastgan_fixed_range_cpu(const fastgan::ToFixed* from, float* norms, float* largest, int threads);

// values: [n, features];  alone: [4, n] x_i . centre, e_i . partners[0], e_i . partners[1], |e_i|^2
void fastgan_to_fixed_cpu(const fastgan::ToFixed* from, int16_t* values, double* alone, int threads);
}
