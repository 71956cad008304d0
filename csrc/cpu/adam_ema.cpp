#include "adam_ema.h"

#include <algorithm>
#include <cmath>
#include <vector>

namespace {

using namespace fastgan;

constexpr int64_t kChunk = 8192;  // elements: five arrays of floats are 160 KiB, which stays in a second-level cache

// Elements [begin, end) of one tensor.
struct Chunk {
  int64_t tensor, begin, end;
};

std::vector<Chunk> chunks_of(const AdamEmaTensors& tensors) {
  std::vector<Chunk> chunks;
  for (int64_t t = 0; t < tensors.count; ++t)
    for (int64_t begin = 0; begin < tensors.sizes[t]; begin += kChunk)
      chunks.push_back({t, begin, std::min(begin + kChunk, tensors.sizes[t])});
  return chunks;
}

// __restrict__: the arrays are different tensors, which Python has made sure of.
template <typename T, typename G>
FASTGAN_HD void update(const AdamEmaUpdate<T>& update, int64_t n, T* __restrict__ param, const G* __restrict__ grad,
                       T* __restrict__ exp_avg, T* __restrict__ exp_avg_sq, T* __restrict__ ema) {
  const AdamEmaUpdate<T> by = update;  // a local copy lives in registers
  if (ema) {
    for (int64_t i = 0; i < n; ++i) {
      by.adam(param[i], T(grad[i]), exp_avg[i], exp_avg_sq[i]);
      by.ema(ema[i], param[i]);
    }
  } else {
    for (int64_t i = 0; i < n; ++i) by.adam(param[i], T(grad[i]), exp_avg[i], exp_avg_sq[i]);
  }
}

// target_clones does not go with templates: one plain function per pair of types.
#define FASTGAN_UPDATE(NAME, T, G)                                                                      \
  FASTGAN_CLONES void NAME(const AdamEmaUpdate<T>& by, int64_t n, T* p, const G* g, T* m, T* v, T* e) { \
    update<T, G>(by, n, p, g, m, v, e);                                                                 \
  }
FASTGAN_UPDATE(update_float_float, float, float)
FASTGAN_UPDATE(update_float_bfloat16, float, BFloat16)
FASTGAN_UPDATE(update_double_double, double, double)
FASTGAN_UPDATE(update_double_bfloat16, double, BFloat16)

template <typename T, typename G, typename Update>
void run(const AdamEmaTensors& tensors, const AdamEmaFactors& factors, int threads, Update update) {
  const AdamEmaUpdate<T> by(factors);
  const std::vector<Chunk> chunks = chunks_of(tensors);
  const int64_t count = int64_t(chunks.size());
#pragma omp parallel for schedule(static) num_threads(threads) if (count > 1 && threads > 1)
  for (int64_t c = 0; c < count; ++c) {
    const auto [t, begin, end] = chunks[c];
    T* ema = tensors.emas ? static_cast<T*>(tensors.emas[t]) + begin : nullptr;
    update(by, end - begin, static_cast<T*>(tensors.params[t]) + begin,
           static_cast<const G*>(tensors.grads[t]) + begin, static_cast<T*>(tensors.exp_avgs[t]) + begin,
           static_cast<T*>(tensors.exp_avg_sqs[t]) + begin, ema);
  }
}

}  // namespace

void fastgan_adam_ema_cpu(const AdamEmaTensors* tensors, const AdamEmaScalars* scalars, AdamEmaTypes types,
                          int threads) {
  const AdamEmaFactors f = adam_ema_factors(*scalars, [](double x, double y) { return std::pow(x, y); });
  if (f.skip) return;
  *scalars->step = f.step;
  switch (types) {
    case AdamEmaTypes::kFloatFloat: return run<float, float>(*tensors, f, threads, update_float_float);
    case AdamEmaTypes::kFloatBFloat16: return run<float, BFloat16>(*tensors, f, threads, update_float_bfloat16);
    case AdamEmaTypes::kDoubleDouble: return run<double, double>(*tensors, f, threads, update_double_double);
    case AdamEmaTypes::kDoubleBFloat16: return run<double, BFloat16>(*tensors, f, threads, update_double_bfloat16);
  }
}
