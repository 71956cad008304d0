// Batch normalisation with given or computed statistics, then an activation, and the derivatives of both.
//
// The mathematics: fastgan/kernels/batch_norm_act. For channel c, with absent mean and var: x^ = x:
//
//     x^ = (x - mean) / sqrt(var + eps)      z = x^ weight + bias      out = act(z)      dz = grad act'(z)
//
// Every floating-point operation of the functions below is one that IEEE 754 defines, so that the C++ and the CUDA
// compiler make the same bits of them (but for the activations in double, which are the library's).
#pragma once

#include "portable.h"

namespace fastgan {

enum class NormActType : int {  // of x, out and grad; arithmetic, weight and bias are double for double, else float
  kFloat = 0,
  kDouble = 1,
  kBFloat16 = 2,
  kHalf = 3,
};

enum class NormActKind : int { kNone = 0, kRelu = 1, kLeakyRelu = 2, kTanh = 3, kSigmoid = 4, kSilu = 5, kGelu = 6 };

// Element (o, c, i) lies at (o * channels + c) * inner + i: contiguous images have outer = N and inner = H W,
// channels-last ones outer = N H W and inner = 1. mean and var (biased) are both there or both null; weight (1) and
// bias (0) may be null. `slope` is that of the leaky ReLU.
struct NormAct {
  const void* x;
  int64_t outer, channels, inner;
  const double *mean, *var;
  const void *weight, *bias;
  double eps;
  NormActKind act;
  double slope;
};

// ---- what is the same for all elements of a channel

// z = (x - center) * scale + shift: `center` is the mean rounded, so that a large mean cancels before anything else is
// rounded, and `shift` makes up for what the rounding left, `rest`.
template <typename C>
struct NormActChannel {
  C center, scale, shift;
  double inverse, rest;  // 1 / sqrt(var + eps), mean - center

  FASTGAN_HD NormActChannel(const NormAct& norm, int64_t c) {
    const double mean = norm.mean ? norm.mean[c] : 0.0;
    const double weight = norm.weight ? double(static_cast<const C*>(norm.weight)[c]) : 1.0;
    const double bias = norm.bias ? double(static_cast<const C*>(norm.bias)[c]) : 0.0;
    inverse = norm.var ? 1.0 / std::sqrt(norm.var[c] + norm.eps) : 1.0;
    center = C(mean);
    rest = mean - double(center);
    scale = C(weight * inverse);
    shift = C(bias - rest * (weight * inverse));
  }

  // sum dz x^, from sum dz and sum dz (x - center).
  FASTGAN_HD double sum_normalised(double sum, double centered_sum) const {
    return inverse * (centered_sum - rest * sum);
  }
};

// dx = scale * dz + ((x - center) * slope + offset): from s0 = sum dz and s1 = sum dz x^ over `count` elements, or with
// both zero where the statistics are constants.
template <typename C>
struct NormActInput {
  C slope, offset;

  FASTGAN_HD NormActInput(const NormActChannel<C>& channel, double s0, double s1, double count) {
    const double k = channel.inverse * (s1 / count);
    slope = C(-double(channel.scale) * k);
    offset = C(-double(channel.scale) * (s0 / count - channel.rest * k));
  }
};

// ---- elementary functions in single precision, without a branch, so that loops of them vectorise

// exp(x) = power * (1 + rest): 1 + rest is exp of what x / log 2 rounded leaves over, by its Taylor series (the next
// term is below 2^-27). x is clamped such that the power of two and the product are normal numbers; NaN passes.
struct ExpParts {
  float power, rest;

  FASTGAN_HD explicit ExpParts(float x) {
    x = x < -87.3f ? -87.3f : x;
    x = x > 88.3f ? 88.3f : x;
    const float shifted = x * 1.44269504f + 12582912.0f;  // 1.5 * 2^23: the integer is in the last bits
    const float n = shifted - 12582912.0f;
    const float r = (x - n * 0.693359375f) - n * -2.12194440e-4f;  // the first product is exact
    float series = 1.0f / 5040;
    series = series * r + 1.0f / 720;
    series = series * r + 1.0f / 120;
    series = series * r + 1.0f / 24;
    series = series * r + 1.0f / 6;
    series = series * r + 0.5f;
    rest = series * (r * r) + r;
    power = bit_cast<float>((bit_cast<uint32_t>(shifted) << 23) + 0x3F800000u);
  }
};

FASTGAN_HD float exp_of(float x) {
  const ExpParts e(x);
  return e.power * e.rest + e.power;
}

// (e^2y - 1) / (e^2y + 1) for y = |x|, where e^2y - 1 does not cancel for small y.
FASTGAN_HD float tanh_of(float x) {
  const uint32_t bits = bit_cast<uint32_t>(x), sign = bits & 0x80000000u;
  const float y = bit_cast<float>(bits ^ sign);
  const ExpParts e(2.0f * (y > 10.0f ? 10.0f : y));  // 1 from 9.02 on
  const float minus_one = e.power * e.rest + (e.power - 1.0f);
  return bit_cast<float>(bit_cast<uint32_t>(minus_one / (minus_one + 2.0f)) | sign);
}

FASTGAN_HD float sigmoid_of(float x) {
  const float a = 1.0f / (1.0f + exp_of(-x));
  return x < -88.3f ? 0.0f : a;
}

// Distribution function and density of the standard normal distribution. With x = |z| / sqrt 2 and t = 1 / (1 + x / 2),
// erfc(x) = exp(-x^2) t Q(t), where Q is the polynomial that fits erfcx(x) / t on t in [0.115, 1] to 4e-9.
template <typename T>
struct Normal {
  T below, density;
};

FASTGAN_HD Normal<float> normal_of(float z) {
  const float y = bit_cast<float>(bit_cast<uint32_t>(z) & 0x7FFFFFFFu);
  const float bounded = y > 14.0f ? 14.0f : y;
  const float t = 1.0f / (1.0f + 0.353553391f * bounded);
  float q = 0.0398758892f;
  q = q * t - 0.215707895f;
  q = q * t + 0.446243260f;
  q = q * t - 0.387423614f;
  q = q * t + 0.0716741326f;
  q = q * t - 0.0237753189f;
  q = q * t + 0.0798024050f;
  q = q * t + 0.178714349f;
  q = q * t + 0.246366350f;
  q = q * t + 0.282137156f;
  q = q * t + 0.282093289f;
  const float bell = y > 14.0f ? 0.0f : exp_of(-0.5f * (bounded * bounded));  // beyond 14, below is 0 or 1 in float
  const float tail = 0.5f * (bell * (t * q));
  return {z < 0.0f ? tail : 1.0f - tail, 0.398942280f * bell};
}

FASTGAN_HD double tanh_of(double x) { return tanh(x); }
FASTGAN_HD double sigmoid_of(double x) { return 1.0 / (1.0 + exp(-x)); }
FASTGAN_HD Normal<double> normal_of(double z) {
  return {0.5 * erfc(-0.70710678118654752 * z), 0.39894228040143268 * exp(-0.5 * (z * z))};
}

// ---- one element

// act(z). NaN stays NaN.
template <NormActKind kKind, typename T>
FASTGAN_HD T norm_act_value(T z, T slope) {
  if constexpr (kKind == NormActKind::kRelu) return z <= T(0) ? T(0) : z;
  if constexpr (kKind == NormActKind::kLeakyRelu) return z > T(0) ? z : z * slope;
  if constexpr (kKind == NormActKind::kTanh) return tanh_of(z);
  if constexpr (kKind == NormActKind::kSigmoid) return sigmoid_of(z);
  if constexpr (kKind == NormActKind::kSilu) return z * sigmoid_of(z);
  if constexpr (kKind == NormActKind::kGelu) return z * normal_of(z).below;
  return z;
}

// grad act'(z). At 0 as PyTorch: 0 for ReLU, the slope for the leaky one.
template <NormActKind kKind, typename T>
FASTGAN_HD T norm_act_grad(T grad, T z, T slope) {
  if constexpr (kKind == NormActKind::kRelu) return z <= T(0) ? T(0) : grad;
  if constexpr (kKind == NormActKind::kLeakyRelu) return z > T(0) ? grad : grad * slope;
  if constexpr (kKind == NormActKind::kTanh) {
    const T a = tanh_of(z);
    return grad * (T(1) - a * a);
  }
  if constexpr (kKind == NormActKind::kSigmoid) {
    const T a = sigmoid_of(z);
    return grad * (a * (T(1) - a));
  }
  if constexpr (kKind == NormActKind::kSilu) {
    const T a = sigmoid_of(z);
    return grad * (a * (T(1) + z * (T(1) - a)));
  }
  if constexpr (kKind == NormActKind::kGelu) {
    const auto normal = normal_of(z);
    return grad * (normal.below + z * normal.density);
  }
  return grad;
}

}  // namespace fastgan

extern "C" {

// All of them use `threads` threads, and their bits do not depend on how many.

// Writes mean and biased variance of x, [channels] each; mean and var of `norm` are not looked at. None of nothing is
// NaN.
void fastgan_norm_act_stats_cpu(const fastgan::NormAct* norm, fastgan::NormActType type, double* mean, double* var,
                                int threads);

// out = act(z); out may be x.
void fastgan_norm_act_cpu(const fastgan::NormAct* norm, fastgan::NormActType type, void* out, int threads);

// sums [2, channels]: sum dz, then sum dz x^.
void fastgan_norm_act_sums_cpu(const fastgan::NormAct* norm, fastgan::NormActType type, const void* grad, double* sums,
                               int threads);

// dx = weight / sqrt(var + eps) * (dz - sums[0] / count - x^ sums[1] / count), or without both where sums is null;
// dx may be grad.
void fastgan_norm_act_input_cpu(const fastgan::NormAct* norm, fastgan::NormActType type, const void* grad,
                                const double* sums, double count, void* dx, int threads);

// Statistics, and out with these: the bits of the two calls, with less traffic.
void fastgan_norm_act_train_cpu(const fastgan::NormAct* norm, fastgan::NormActType type, double* mean, double* var,
                                void* out, int threads);

// Sums, and dx with these (`training`) or without: the bits of the two calls, with less traffic.
void fastgan_norm_act_backward_cpu(const fastgan::NormAct* norm, fastgan::NormActType type, const void* grad,
                                   bool training, double* sums, void* dx, int threads);
}

// The same on the GPU, queued on `stream` of `device`; everything is there, `scratch` too: aligned memory of
// fastgan_norm_act_scratch bytes, in use until the work is done. Each returns a cudaError_t. For a given device the bits
// are always the same; those of `out`, and of dx with given sums, are those of the CPU but for activations in double.
extern "C" {

int64_t fastgan_norm_act_scratch(const fastgan::NormAct* norm, int device);

int fastgan_norm_act_stats_cuda(const fastgan::NormAct* norm, fastgan::NormActType type, double* mean, double* var,
                                void* scratch, int device, void* stream);
int fastgan_norm_act_cuda(const fastgan::NormAct* norm, fastgan::NormActType type, void* out, int device,
                          void* stream);
int fastgan_norm_act_sums_cuda(const fastgan::NormAct* norm, fastgan::NormActType type, const void* grad, double* sums,
                               void* scratch, int device, void* stream);
int fastgan_norm_act_input_cuda(const fastgan::NormAct* norm, fastgan::NormActType type, const void* grad,
                                const double* sums, double count, void* dx, int device, void* stream);

// In one kernel that keeps in shared memory what fits of x (and grad), where the device can and `fused` is set.
int fastgan_norm_act_train_cuda(const fastgan::NormAct* norm, fastgan::NormActType type, double* mean, double* var,
                                void* out, void* scratch, bool fused, int device, void* stream);
int fastgan_norm_act_backward_cuda(const fastgan::NormAct* norm, fastgan::NormActType type, const void* grad,
                                   bool training, double* sums, void* dx, void* scratch, bool fused, int device,
                                   void* stream);
}
