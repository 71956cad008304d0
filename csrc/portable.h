// What lets one function body serve the C++ and the CUDA compiler, and one C++ function several processors.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#ifdef __CUDACC__
#define FASTGAN_HD __host__ __device__ __forceinline__
#else
#define FASTGAN_HD inline __attribute__((always_inline))
#endif

#if defined(__CUDA_ARCH__)
#define FASTGAN_UNROLL _Pragma("unroll")
#elif defined(__CUDACC__)
#define FASTGAN_UNROLL
#else
#define FASTGAN_UNROLL _Pragma("GCC unroll 16")
#endif

// A function compiled for several x86 levels; the dynamic linker picks the best one that the processor has. (Of AVX-512
// the foundation alone: with its slow 64-bit multiplication the words of counter_noise.h took a quarter longer.)
#if defined(__x86_64__) && defined(__GLIBC__) && defined(__GNUC__) && !defined(__clang__)
#define FASTGAN_CLONES __attribute__((target_clones("avx512f", "avx2", "default")))
#else
#define FASTGAN_CLONES
#endif

namespace fastgan {

// The bits of `from` as a `To` of the same size.
template <typename To, typename From>
FASTGAN_HD To bit_cast(From from) {
  static_assert(sizeof(To) == sizeof(From), "same size");
  To to;
  memcpy(&to, &from, sizeof(to));
  return to;
}

// bfloat16 as stored: the upper half of a float.
struct BFloat16 {
  uint16_t bits;
  FASTGAN_HD operator float() const { return bit_cast<float>(uint32_t(bits) << 16); }
};

}  // namespace fastgan
