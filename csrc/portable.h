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

// The next loop may be vectorised: where its pointers meet, they are equal.
#if defined(__clang__)
#define FASTGAN_IVDEP _Pragma("clang loop vectorize(assume_safety)")
#elif defined(__GNUC__)
#define FASTGAN_IVDEP _Pragma("GCC ivdep")
#else
#define FASTGAN_IVDEP
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

  // To the nearest, ties to even. Without a branch, so that loops of it vectorise.
  FASTGAN_HD static BFloat16 from(float value) {
    const uint32_t full = bit_cast<uint32_t>(value);
    const uint32_t rounded = (full + 0x7FFFu + ((full >> 16) & 1u)) >> 16;
    return {uint16_t(value != value ? 0x7FC0u : rounded)};
  }
};

// IEEE 754 binary16 as stored, in integers and single precision: processors without an instruction for it have it too.
struct Half {
  uint16_t bits;
  FASTGAN_HD operator float() const {
    const uint32_t sign = uint32_t(bits & 0x8000u) << 16, rest = uint32_t(bits & 0x7FFFu) << 13;
    // A subnormal is the difference of two normal floats, so that flushing subnormals to zero leaves it alone.
    const float subnormal = bit_cast<float>(rest + (113u << 23)) - bit_cast<float>(113u << 23);
    const uint32_t normal = rest + (112u << 23), special = rest + (224u << 23);
    const uint32_t finite = rest < (0x0400u << 13) ? bit_cast<uint32_t>(subnormal) : normal;
    return bit_cast<float>(sign | (rest >= (0x7C00u << 13) ? special : finite));
  }

  // To the nearest, ties to even.
  FASTGAN_HD static Half from(float value) {
    const uint32_t full = bit_cast<uint32_t>(value), sign = (full >> 16) & 0x8000u, rest = full & 0x7FFFFFFFu;
    const uint32_t normal = (rest + 0xFFFu + ((rest >> 13) & 1u) - (112u << 23)) >> 13;
    const uint32_t subnormal = bit_cast<uint32_t>(bit_cast<float>(rest) + 0.5f) - 0x3F000000u;  // in units of 2^-24
    const uint32_t finite = rest < (113u << 23) ? subnormal : normal;
    const uint32_t special = rest > 0x7F800000u ? 0x7E00u : 0x7C00u;  // from 65520 on it rounds to infinity
    return {uint16_t(sign | (rest >= 0x477FF000u ? special : finite))};
  }
};

}  // namespace fastgan
