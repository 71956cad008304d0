// Vectors of the compiler, for loops that are compiled for several processors. Whoever includes this may have products and
// sums fused: for sums that need not be bit-stable.
#pragma once

#include <cstring>

#include "../portable.h"

#pragma GCC diagnostic ignored "-Wpsabi"  // vectors are passed between functions that are always inlined alone
#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC optimize("fp-contract=fast")  // from here on: half the instructions
#endif

namespace fastgan {
namespace {

template <typename T, int bytes>
struct Vector {
  typedef T Type __attribute__((vector_size(bytes)));
};

template <typename V, typename T>
FASTGAN_HD V load(const T* from) {
  V v;
  memcpy(&v, from, sizeof(V));
  return v;
}

template <typename V, typename T>
FASTGAN_HD void store(T* to, const V& v) {
  memcpy(to, &v, sizeof(V));
}

}  // namespace
}  // namespace fastgan
