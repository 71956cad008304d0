// A symmetric product with a polynomial: half of the arithmetic of a general matrix product.
//
//   out = square aᵀ a + linear b + constant I        a: [rows, n], b and out: [n, n], b symmetric; all row-major
//
// The mathematics, and what it is for: fastgan/kernels/symmetric_product.py.
#pragma once

#include <cstdint>

namespace fastgan {

// `batch` matrices of each, one behind the other. b: null for none.
struct SymmetricProduct {
  const double *a, *b;
  double* out;
  int64_t batch, rows, n;
  double square, linear, constant;
};

}  // namespace fastgan

extern "C" {
// Returns a cudaError_t. out may be neither a nor b. It is exactly symmetric, and the same bits every time.
int fastgan_symmetric_product_cuda(const fastgan::SymmetricProduct* product, int device, void* stream);
}
