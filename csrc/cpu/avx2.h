// Functions for processors with AVX2 and fused multiply-add, in a library for all: FASTGAN_AVX2 is defined where the
// compiler can make them, and has_avx2 says whether the processor can run them.
#pragma once

#if defined(__x86_64__) && defined(__GNUC__)
#include <immintrin.h>
#define FASTGAN_AVX2 __attribute__((target("avx2,fma")))

namespace fastgan {

inline bool has_avx2() {
  static const bool has = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  return has;
}

}  // namespace fastgan
#endif
