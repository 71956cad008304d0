// Bias and (leaky) ReLU that keeps one bit per element, and the multiplication by the slopes that the bits stand for.
//
// The mathematics and the meaning of every argument: fastgan/kernels/masked_act.
#pragma once

#include "portable.h"

namespace fastgan {

enum class MaskedActType : int {  // of `in` and `out`; arithmetic, bias and scale are double for double, else float
  kFloat = 0,
  kDouble = 1,
  kBFloat16 = 2,
  kHalf = 3,
};

enum class SimdLevel : int { kNone = 0, kAvx2 = 1, kAvx512 = 2 };

// Element i, in the order of memory, gets bias[i / inner % channels], times scale[i / sample] where there is a scale,
// and is bit i % 8 of mask[i / 8]. `in` and `out` may be the same; bias and scale may be null.
struct MaskedAct {
  const void* in;
  void* out;
  uint8_t* mask;
  const void *bias, *scale;
  int64_t numel, channels, inner, sample;
  double slope;
};

}  // namespace fastgan

extern "C" {

// Writes `out` and `mask`, with `threads` threads and the instructions of `level`.
void fastgan_masked_act_cpu(const fastgan::MaskedAct* act, fastgan::MaskedActType type, int threads,
                            fastgan::SimdLevel level);

// Reads `mask` and writes `out`.
void fastgan_apply_mask_cpu(const fastgan::MaskedAct* act, fastgan::MaskedActType type, int threads,
                            fastgan::SimdLevel level);

// The highest level that this processor has.
fastgan::SimdLevel fastgan_simd_level();
}
