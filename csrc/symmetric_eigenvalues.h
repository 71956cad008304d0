// Eigenvalues of a real symmetric matrix, by way of a band: most of the arithmetic is products of matrices.
#pragma once

#include <cstdint>

namespace fastgan {

// a: [n, stride] double, of which the lower triangle is read;  values: [n], ascending.
struct SymmetricEigenvalues {
  const double* a;
  int64_t n, stride;
  double* values;
};

}  // namespace fastgan

extern "C" {
// 0, or 1 where a number is not finite or an eigenvalue did not converge.
int fastgan_symmetric_eigenvalues_cpu(const fastgan::SymmetricEigenvalues* of, int threads);
}
