// Scale per sample and channel, noise per pixel, bias, leaky ReLU and gain in one pass, and the derivatives in another.
//
// The mathematics and the meaning of every argument: fastgan/kernels/modulated_act.
#pragma once

#include "portable.h"

namespace fastgan {

enum class ModulatedActType : int {  // of x, grad and results; all else is double for double, else float
  kFloat = 0,
  kDouble = 1,
  kBFloat16 = 2,
  kHalf = 3,
};

// x: [samples, channels, pixels], or [samples, pixels, channels] where channels_last
// scale: [samples, channels];  bias: [channels] or null;  noise: [samples, pixels], or [pixels] for all samples where
// shared_noise, or null;  strength: what the noise is multiplied by, null with it
struct ModulatedAct {
  const void *x, *scale, *noise, *strength, *bias;
  int64_t samples, channels, pixels;
  bool channels_last, shared_noise;
  double slope, gain;
};

}  // namespace fastgan

extern "C" {

// out, like x, = gain * leaky_relu(x * scale + strength * noise + bias), with `threads` threads.
void fastgan_modulated_act_cpu(const fastgan::ModulatedAct* act, fastgan::ModulatedActType type, void* out,
                               int threads);

// dx, like x, and sums: [3, samples, channels] of dz x, of dz and of dz noise, where grad = d loss / d out.
void fastgan_modulated_act_backward_cpu(const fastgan::ModulatedAct* act, fastgan::ModulatedActType type,
                                        const void* grad, void* dx, void* sums, int threads);
}
