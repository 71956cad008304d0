// Eigenvalues of a real symmetric matrix, by way of a band: most of the arithmetic is products of matrices.
#pragma once

#include <cstdint>

namespace fastgan {

// a: [n, stride] double, of which the lower triangle is read and everything is overwritten; finite, at most about 1 in
// absolute value, so that squares neither overflow nor lose what matters. stride: n + 8 or more, no multiple of a page.
// values: [n], ascending.
struct SymmetricEigenvalues {
  double* a;
  int64_t n, stride;
  double* values;
};

}  // namespace fastgan

extern "C" {
// 0, or 1 where an eigenvalue did not converge.
int fastgan_symmetric_eigenvalues_cpu(const fastgan::SymmetricEigenvalues* of, int threads);
}
