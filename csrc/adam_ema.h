// Adam (Kingma & Ba 2015) and the exponential moving average of the parameters, in one pass over memory.
//
// The mathematics and the meaning of every argument: fastgan/kernels/adam_ema.py. All scalars are read where they
// lie, on the device of the parameters: the host neither waits for a GPU nor reads from it.
#pragma once

#include "portable.h"

namespace fastgan {

// Tensors as runs of memory: tensor i has sizes[i] elements at params[i], and so on. emas is null for no average.
struct AdamEmaTensors {
  int64_t count;
  void* const* params;
  const void* const* grads;
  void* const* exp_avgs;
  void* const* exp_avg_sqs;
  void* const* emas;
  const int64_t* sizes;
};

struct AdamEmaScalars {
  double* step;
  const double *lr, *beta1, *beta2, *ema_decay, *grad_scale;
  const bool* skip;
  double eps;
};

enum class AdamEmaTypes : int {  // parameters and moments, then gradients
  kFloatFloat = 0,
  kFloatBFloat16 = 1,
  kDoubleDouble = 2,
  kDoubleBFloat16 = 3,
};

// What the scalars come down to, the same for every element.
struct AdamEmaFactors {
  double step;  // after this update
  double grad_scale, beta1, beta2, step_size, inverse_root_bias2, eps, ema_decay;
  bool skip;
};

template <typename Pow>
FASTGAN_HD AdamEmaFactors adam_ema_factors(const AdamEmaScalars& s, Pow power) {
  AdamEmaFactors f;
  f.skip = *s.skip;
  f.step = *s.step + 1.0;
  f.grad_scale = *s.grad_scale;
  f.beta1 = *s.beta1;
  f.beta2 = *s.beta2;
  f.step_size = *s.lr / (1.0 - power(f.beta1, f.step));
  f.inverse_root_bias2 = 1.0 / std::sqrt(1.0 - power(f.beta2, f.step));
  f.eps = s.eps;
  f.ema_decay = *s.ema_decay;
  return f;
}

// start + weight * (end - start) in the form that is exact at both ends, as torch.lerp.
// The two forms differ in base and factor only, which do not vary from element to element.
template <typename T>
struct Lerp {
  bool from_end;
  T factor;
  FASTGAN_HD explicit Lerp(double weight) : from_end(weight >= 0.5), factor(T(from_end ? weight - 1.0 : weight)) {}
  FASTGAN_HD T operator()(T start, T end) const { return (from_end ? end : start) + factor * (end - start); }
};

// The factors rounded once to the type of the parameters, and the update of one element.
template <typename T>
struct AdamEmaUpdate {
  T grad_scale, beta2, one_minus_beta2, step_size, inverse_root_bias2, eps;
  Lerp<T> moment, average;

  FASTGAN_HD explicit AdamEmaUpdate(const AdamEmaFactors& f)
      : grad_scale(T(f.grad_scale)),
        beta2(T(f.beta2)),
        one_minus_beta2(T(1.0 - f.beta2)),
        step_size(T(f.step_size)),
        inverse_root_bias2(T(f.inverse_root_bias2)),
        eps(T(f.eps)),
        moment(1.0 - f.beta1),
        average(1.0 - f.ema_decay) {}

  FASTGAN_HD void adam(T& param, T grad, T& exp_avg, T& exp_avg_sq) const {
    const T g = grad * grad_scale;
    exp_avg = moment(exp_avg, g);
    exp_avg_sq = beta2 * exp_avg_sq + one_minus_beta2 * (g * g);
    param -= step_size * (exp_avg / (std::sqrt(exp_avg_sq) * inverse_root_bias2 + eps));
  }
  FASTGAN_HD void ema(T& ema, T param) const { ema = average(ema, param); }
};

}  // namespace fastgan

constexpr int kAdamEmaScratch = 128;

extern "C" {

// Updates in place with `threads` threads.
void fastgan_adam_ema_cpu(const fastgan::AdamEmaTensors* tensors, const fastgan::AdamEmaScalars* scalars,
                          fastgan::AdamEmaTypes types, int threads);

// Queues the update on `stream` of `device`. scratch: kAdamEmaScratch aligned bytes on the device, in use until the
// update is done. Returns a cudaError_t; unless it is 0, nothing was changed.
int fastgan_adam_ema_cuda(const fastgan::AdamEmaTensors* tensors, const fastgan::AdamEmaScalars* scalars,
                          fastgan::AdamEmaTypes types, void* scratch, int device, void* stream);
}
