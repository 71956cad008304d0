#include "adam_ema.h"

#include "device.cuh"

namespace {

using namespace fastgan;

constexpr int kThreads = 256;
constexpr int kChunk = 16 * kThreads;  // elements that one block updates

// The tensors of one launch. They travel with the launch itself, so that nothing is copied to the device beforehand and
// a captured graph replays with the same addresses. Blocks first_chunk[i] .. first_chunk[i + 1] - 1 belong to tensor i.
template <int kCapacity>
struct Table {
  void* params[kCapacity];
  const void* grads[kCapacity];
  void* exp_avgs[kCapacity];
  void* exp_avg_sqs[kCapacity];
  void* emas[kCapacity];
  int64_t sizes[kCapacity];
  unsigned first_chunk[kCapacity + 1];
  int count;
};

// Kernel arguments are limited to 4 KiB, and to 32 764 bytes since CUDA 12.1 (Volta and newer).
constexpr int kFew = 72, kMany = 600;
static_assert(sizeof(Table<kFew>) + 64 <= 4096 && sizeof(Table<kMany>) + 64 <= 32764, "kernel arguments");
// A launch ends before it has more blocks than fit into the table's counters and a grid.
constexpr int64_t kMaxChunks = int64_t(1) << 30;

// What the first launch leaves for the others, in the scratch memory.
template <typename T>
struct Prepared {
  AdamEmaUpdate<T> by;
  double step;
  bool skip;
};
static_assert(sizeof(Prepared<double>) <= kAdamEmaScratch, "scratch memory");

template <typename T>
__global__ void adam_ema_prepare(AdamEmaScalars scalars, Prepared<T>* prepared) {
  const AdamEmaFactors factors = adam_ema_factors(scalars, [](double x, double y) { return pow(x, y); });
  *prepared = {AdamEmaUpdate<T>(factors), factors.step, factors.skip};
}

// A run of kWidth elements moved by one instruction where it can be.
template <typename T, int kWidth>
struct alignas(sizeof(T) * kWidth) Vector {
  T at[kWidth];
};

template <typename T, typename G, int kWidth>
__device__ __forceinline__ void update_run(const AdamEmaUpdate<T>& by, T* param, const G* grad, bool wide_grad,
                                           T* exp_avg, T* exp_avg_sq, T* ema) {
  using V = Vector<T, kWidth>;
  V p = *reinterpret_cast<const V*>(param), m = *reinterpret_cast<const V*>(exp_avg);
  V v = *reinterpret_cast<const V*>(exp_avg_sq), e;
  if (ema) e = *reinterpret_cast<const V*>(ema);
  Vector<G, kWidth> g;
  if (wide_grad) {
    g = *reinterpret_cast<const Vector<G, kWidth>*>(grad);
  } else {  // a view of a flat buffer, say
#pragma unroll
    for (int i = 0; i < kWidth; ++i) g.at[i] = grad[i];
  }
#pragma unroll
  for (int i = 0; i < kWidth; ++i) {
    by.adam(p.at[i], T(g.at[i]), m.at[i], v.at[i]);
    if (ema) by.ema(e.at[i], p.at[i]);
  }
  *reinterpret_cast<V*>(param) = p;
  *reinterpret_cast<V*>(exp_avg) = m;
  *reinterpret_cast<V*>(exp_avg_sq) = v;
  if (ema) *reinterpret_cast<V*>(ema) = e;
}

template <typename T>
__device__ __forceinline__ bool aligned(const T* pointer, int width) {
  return reinterpret_cast<uintptr_t>(pointer) % (sizeof(T) * width) == 0;
}

// One block per chunk. `step` is null in all launches of an update but the last: nothing in here reads it.
template <typename T, typename G, int kCapacity>
__global__ void __launch_bounds__(kThreads)
    adam_ema_update(const __grid_constant__ Table<kCapacity> table, const Prepared<T>* __restrict__ prepared,
                    double* step) {
  if (prepared->skip) return;
  if (step && blockIdx.x == 0 && threadIdx.x == 0) *step = prepared->step;
  int low = 0, high = table.count;  // the last tensor whose first chunk is not after this block
  while (high - low > 1) {
    const int middle = (low + high) / 2;
    (table.first_chunk[middle] <= blockIdx.x ? low : high) = middle;
  }
  const int64_t begin = int64_t(blockIdx.x - table.first_chunk[low]) * kChunk;
  const int64_t left = table.sizes[low] - begin;
  const int n = left < kChunk ? int(left) : kChunk;
  T* const param = static_cast<T*>(table.params[low]) + begin;
  const G* const grad = static_cast<const G*>(table.grads[low]) + begin;
  T* const exp_avg = static_cast<T*>(table.exp_avgs[low]) + begin;
  T* const exp_avg_sq = static_cast<T*>(table.exp_avg_sqs[low]) + begin;
  T* const ema = table.emas[low] ? static_cast<T*>(table.emas[low]) + begin : nullptr;

  const AdamEmaUpdate<T> by = prepared->by;
  constexpr int kWidth = 16 / sizeof(T);
  const bool wide = aligned(param, kWidth) && aligned(exp_avg, kWidth) && aligned(exp_avg_sq, kWidth) &&
                    aligned(ema, kWidth);
  const bool wide_grad = aligned(grad, kWidth);
  const int vectors = wide ? n / kWidth : 0;
  for (int i = threadIdx.x; i < vectors; i += kThreads) {
    const int at = i * kWidth;
    T* const average = ema ? ema + at : nullptr;
    update_run<T, G, kWidth>(by, param + at, grad + at, wide_grad, exp_avg + at, exp_avg_sq + at, average);
  }
  for (int at = vectors * kWidth + threadIdx.x; at < n; at += kThreads)
    update_run<T, G, 1>(by, param + at, grad + at, true, exp_avg + at, exp_avg_sq + at, ema ? ema + at : nullptr);
}

template <typename T, typename G, int kCapacity>
cudaError_t update(const AdamEmaTensors& tensors, const Prepared<T>* prepared, double* step, cudaStream_t stream) {
  int64_t t = 0;
  do {
    Table<kCapacity> table;
    int64_t chunks = 0;
    for (table.count = 0; t < tensors.count && table.count < kCapacity && chunks < kMaxChunks; ++t) {
      if (tensors.sizes[t] == 0) continue;
      const int i = table.count++;
      table.params[i] = tensors.params[t];
      table.grads[i] = tensors.grads[t];
      table.exp_avgs[i] = tensors.exp_avgs[t];
      table.exp_avg_sqs[i] = tensors.exp_avg_sqs[t];
      table.emas[i] = tensors.emas ? tensors.emas[t] : nullptr;
      table.sizes[i] = tensors.sizes[t];
      table.first_chunk[i] = unsigned(chunks);
      chunks += (tensors.sizes[t] + kChunk - 1) / kChunk;
    }
    const bool last = t == tensors.count;
    if (table.count == 0) {  // nothing but empty tensors: the step is still counted
      table.sizes[0] = table.first_chunk[0] = 0;
      table.params[0] = table.exp_avgs[0] = table.exp_avg_sqs[0] = table.emas[0] = nullptr;
      table.grads[0] = nullptr;
      table.count = 1;
      chunks = 1;
    }
    adam_ema_update<T, G, kCapacity><<<unsigned(chunks), kThreads, 0, stream>>>(table, prepared, last ? step : nullptr);
    const cudaError_t status = cudaGetLastError();
    if (status != cudaSuccess) return status;
  } while (t < tensors.count);
  return cudaSuccess;
}

template <typename T, typename G>
cudaError_t run(const AdamEmaTensors& tensors, const AdamEmaScalars& scalars, void* scratch, cudaStream_t stream) {
  auto* const prepared = static_cast<Prepared<T>*>(scratch);
  adam_ema_prepare<T><<<1, 1, 0, stream>>>(scalars, prepared);
  const cudaError_t status = cudaGetLastError();
  if (status != cudaSuccess) return status;
  int driver = 0;
  const bool many = tensors.count > kFew && CUDART_VERSION >= 12010 && cudaDriverGetVersion(&driver) == cudaSuccess &&
                    driver >= 12010;
  return many ? update<T, G, kMany>(tensors, prepared, scalars.step, stream)
              : update<T, G, kFew>(tensors, prepared, scalars.step, stream);
}

}  // namespace

int fastgan_adam_ema_cuda(const AdamEmaTensors* tensors, const AdamEmaScalars* scalars, AdamEmaTypes types,
                          void* scratch, int device, void* stream_) {
  const OnDevice on(device);
  if (on.status != cudaSuccess) return on.status;
  const auto stream = static_cast<cudaStream_t>(stream_);
  switch (types) {
    case AdamEmaTypes::kFloatFloat: return run<float, float>(*tensors, *scalars, scratch, stream);
    case AdamEmaTypes::kFloatBFloat16: return run<float, BFloat16>(*tensors, *scalars, scratch, stream);
    case AdamEmaTypes::kDoubleDouble: return run<double, double>(*tensors, *scalars, scratch, stream);
    case AdamEmaTypes::kDoubleBFloat16: return run<double, BFloat16>(*tensors, *scalars, scratch, stream);
  }
  return cudaErrorInvalidValue;
}
