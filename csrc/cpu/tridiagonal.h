// Eigenvalues of a symmetric tridiagonal matrix by QL steps without square roots, on the squares of what is beside the
// diagonal (Ortega and Kaiser 1963; Reinsch 1971; the stable order of operations: Parlett 1980, section 8-14).
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>

namespace fastgan {
namespace {

constexpr double kProductsHold = 1e-60;  // above this a product of two, and of such products, does not underflow

// d: [n] the diagonal, becomes the eigenvalues, ascending;  e: [n - 1] beside it. Returns whether all converged.
inline bool tridiagonal_eigenvalues(double* d, double* e, int64_t n) {
  const double eps = std::numeric_limits<double>::epsilon() / 2;
  for (int64_t i = 0; i + 1 < n; ++i) e[i] *= e[i];
  const auto small = [&](int64_t i) {
    return e[i] <= eps * eps * std::fabs(d[i]) * std::fabs(d[i + 1]) || e[i] < std::numeric_limits<double>::min();
  };
  int64_t steps = 30 * n;
  for (int64_t low = 0; low < n;) {
    int64_t high = low;
    while (high + 1 < n && !small(high)) ++high;
    if (high + 1 < n) e[high] = 0;
    if (high > low && std::fabs(d[high]) < std::fabs(d[low])) {  // the small end comes first
      std::reverse(d + low, d + high + 1);
      std::reverse(e + low, e + high);
    }
    int64_t left = low;
    while (left < high) {
      int64_t end = left;  // of the part that begins at `left` and does not fall apart
      while (end < high && !small(end)) ++end;
      if (end < high) e[end] = 0;
      if (end == left) {
        ++left;
        continue;
      }
      if (end == left + 1) {  // two by two
        const double half = (d[end] - d[left]) / 2, root = std::sqrt(half * half + e[left]);
        const double sum = d[left] + d[end], big = sum / 2 + std::copysign(root, sum);
        const double det = d[left] * d[end] - e[left], other = big != 0 ? det / big : 0;
        // det loses digits only where the smaller one is small beside the larger, whose rounding counts
        d[left] = std::min(big, other), d[end] = std::max(big, other), e[left] = 0;
        left += 2;
        continue;
      }
      if (--steps < 0) return false;
      // Wilkinson's shift, from the two by two corner at `left`
      const double beside = std::sqrt(e[left]), half = (d[left + 1] - d[left]) / (2 * beside);
      const double shift = d[left] - beside / (half + std::copysign(std::sqrt(half * half + 1), half));
      double c = 1, s = 0, gamma = d[end] - shift, p = gamma * gamma;
      for (int64_t i = end - 1; i >= left; --i) {
        const double b = e[i], r = p + b, inverse = 1 / r, before = c, gamma_before = gamma, alpha = d[i];
        if (i != end - 1) e[i + 1] = s * r;
        const double scaled = p * (alpha - shift) - b * gamma_before;
        gamma = scaled * inverse;
        d[i + 1] = gamma_before + (alpha - gamma);
        c = p * inverse, s = b * inverse;
        // gamma * gamma / c, so that the next step waits for one division and not for two in a row
        if (p > kProductsHold)
          p = scaled * scaled * (1 / (r * p));
        else
          p = c != 0 ? gamma * gamma / c : before * b;
      }
      e[left] = s * p, d[left] = shift + gamma;
    }
    low = high + 1;
  }
  std::sort(d, d + n);
  return true;
}

}  // namespace
}  // namespace fastgan
