// norm_act in two passes over the tensor, each a kernel: sums per block, which a third small kernel adds up in fixed
// order, then one result per element.
#include "norm_act_launch.cuh"
#include "norm_act_passes.cuh"

namespace {

using namespace fastgan;

template <typename T, int kWidth>
__global__ void __launch_bounds__(kThreads, 2) norm_act_moments(NormAct norm, Cover cover, double* partial) {
  Sums<Arithmetic<T>> sums[kWidth];
  const Walk<kWidth> walk(cover);
  collect(sums, static_cast<const T*>(norm.x), cover, walk, nullptr, 0);
  fold_block(sums, cover, walk.column, partial);
}

template <typename T>
__global__ void __launch_bounds__(kThreads)
    norm_act_finish_moments(NormAct norm, Cover cover, const double* partial, int64_t rows, double* mean, double* var) {
  const int64_t warp = (int64_t(blockIdx.x) * kThreads + threadIdx.x) / 32, warps = int64_t(gridDim.x) * (kThreads / 32);
  finish_moments(static_cast<const T*>(norm.x), cover, partial, rows, warp, warps, mean, var);
}

template <typename T, int kWidth, bool kSmooth>
__global__ void __launch_bounds__(kThreads, 2)
    norm_act_grad_sums(NormAct norm, Cover cover, const T* grad, T* dx, double* partial) {
  using A = Arithmetic<T>;
  Factors<A> of[kWidth];
  load_factors(of, norm, cover, nullptr, 1);
  Sums<A> sums[kWidth];
  const Walk<kWidth> walk(cover);
  collect<T, kWidth, kSmooth>(sums, norm, grad, dx, of, cover, walk, nullptr, 0);
  fold_block(sums, cover, walk.column, partial);
}

template <typename A>
__global__ void __launch_bounds__(kThreads)
    norm_act_finish_grad_sums(NormAct norm, const double* partial, int64_t rows, double* sums) {
  const int64_t warp = (int64_t(blockIdx.x) * kThreads + threadIdx.x) / 32, warps = int64_t(gridDim.x) * (kThreads / 32);
  finish_grad_sums<A>(norm, partial, rows, warp, warps, sums);
}

template <typename T, int kWidth, bool kSmooth>
__global__ void __launch_bounds__(kThreads, 2) norm_act_apply(NormAct norm, Cover cover, T* out) {
  Factors<Arithmetic<T>> of[kWidth];
  load_factors(of, norm, cover, nullptr, 1);
  write_out<T, kWidth, kSmooth>(norm, out, of, cover, Walk<kWidth>(cover), nullptr, 0);
}

template <typename T, int kWidth, bool kSmooth>
__global__ void __launch_bounds__(kThreads, 2)
    norm_act_input(NormAct norm, Cover cover, const T* grad, const double* sums, double count, T* dx) {
  Factors<Arithmetic<T>> of[kWidth];
  load_factors(of, norm, cover, sums, count);
  write_dx<T, kWidth, kSmooth>(norm, grad, dx, of, cover, Walk<kWidth>(cover), nullptr, 0);
}

unsigned finishing_blocks(int64_t channels) {
  const int64_t blocks = ceil_div(channels, kThreads / 32);
  return unsigned(blocks < 65536 ? blocks : 65536);
}

cudaError_t stats(const NormAct& norm, NormActType type, double* mean, double* var, double* partial, int device,
                  cudaStream_t stream) {
  const size_t bytes = size_t(norm.channels) * sizeof(double);
  if (norm.outer == 0 || norm.inner == 0) {  // all bits set: NaN
    const cudaError_t status = cudaMemsetAsync(mean, 0xFF, bytes, stream);
    return status == cudaSuccess ? cudaMemsetAsync(var, 0xFF, bytes, stream) : status;
  }
  return with_type(type, [&](auto t) {
    using T = decltype(t);
    return with_width<T>(norm, {norm.x}, [&](auto width) {
      constexpr int kWidth = decltype(width)::value;
      const Launch at(norm, kWidth, device, kReducing);
      if (at.status != cudaSuccess) return at.status;
      norm_act_moments<T, kWidth><<<at.grid, kThreads, 0, stream>>>(norm, at.cover, partial);
      norm_act_finish_moments<T><<<finishing_blocks(norm.channels), kThreads, 0, stream>>>(norm, at.cover, partial,
                                                                                         at.grid.y, mean, var);
      return cudaGetLastError();
    });
  });
}

cudaError_t apply(const NormAct& norm, NormActType type, void* out, int device, cudaStream_t stream) {
  if (norm.outer == 0 || norm.inner == 0) return cudaSuccess;
  return with_type(type, [&](auto t) {
    using T = decltype(t);
    return with_width<T>(norm, {norm.x, out}, [&](auto width) {
      return with_bool(is_smooth(norm.act), [&](auto smooth) {
        constexpr int kWidth = decltype(width)::value;
        const Launch at(norm, kWidth, device, kMapping);
        if (at.status != cudaSuccess) return at.status;
        norm_act_apply<T, kWidth, decltype(smooth)::value>
            <<<at.grid, kThreads, 0, stream>>>(norm, at.cover, static_cast<T*>(out));
        return cudaGetLastError();
      });
    });
  });
}

cudaError_t grad_sums(const NormAct& norm, NormActType type, const void* grad, double* sums, void* dx, double* partial,
                      int device, cudaStream_t stream) {
  if (norm.outer == 0 || norm.inner == 0)
    return cudaMemsetAsync(sums, 0, size_t(norm.channels) * 2 * sizeof(double), stream);
  return with_type(type, [&](auto t) {
    using T = decltype(t);
    return with_width<T>(norm, {norm.x, grad, dx}, [&](auto width) {
      return with_bool(is_smooth(norm.act), [&](auto smooth) {
        constexpr int kWidth = decltype(width)::value;
        const Launch at(norm, kWidth, device, kReducing);
        if (at.status != cudaSuccess) return at.status;
        norm_act_grad_sums<T, kWidth, decltype(smooth)::value><<<at.grid, kThreads, 0, stream>>>(
            norm, at.cover, static_cast<const T*>(grad), static_cast<T*>(dx), partial);
        norm_act_finish_grad_sums<Arithmetic<T>>
            <<<finishing_blocks(norm.channels), kThreads, 0, stream>>>(norm, partial, at.grid.y, sums);
        return cudaGetLastError();
      });
    });
  });
}

cudaError_t input(const NormAct& norm, NormActType type, const void* grad, const double* sums, double count, void* dx,
                  int device, cudaStream_t stream) {
  if (norm.outer == 0 || norm.inner == 0) return cudaSuccess;
  return with_type(type, [&](auto t) {
    using T = decltype(t);
    return with_width<T>(norm, {norm.x, grad, dx}, [&](auto width) {
      return with_bool(is_smooth(norm.act), [&](auto smooth) {
        constexpr int kWidth = decltype(width)::value;
        const Launch at(norm, kWidth, device, kMapping);
        if (at.status != cudaSuccess) return at.status;
        norm_act_input<T, kWidth, decltype(smooth)::value><<<at.grid, kThreads, 0, stream>>>(
            norm, at.cover, static_cast<const T*>(grad), sums, count, static_cast<T*>(dx));
        return cudaGetLastError();
      });
    });
  });
}

}  // namespace

int64_t fastgan_norm_act_scratch(const NormAct* norm, int device) {
  int64_t rows = 1;
  if (norm->outer > 0 && norm->inner > 0 && norm->channels > 0)
    for (int width = 1; width <= 8; width *= 2) {
      if (!fits(*norm, width)) continue;
      const Launch at(*norm, width, device, kReducing);
      rows = at.status == cudaSuccess && at.grid.y > rows ? at.grid.y : rows;
    }
  return 2 * rows * norm->channels * int64_t(sizeof(double));
}

int fastgan_norm_act_stats_cuda(const NormAct* norm, NormActType type, double* mean, double* var, void* scratch,
                                int device, void* stream) {
  const OnDevice on(device);
  if (on.status != cudaSuccess || norm->channels == 0) return on.status;
  return stats(*norm, type, mean, var, static_cast<double*>(scratch), device, static_cast<cudaStream_t>(stream));
}

int fastgan_norm_act_cuda(const NormAct* norm, NormActType type, void* out, int device, void* stream) {
  const OnDevice on(device);
  if (on.status != cudaSuccess || norm->channels == 0) return on.status;
  return apply(*norm, type, out, device, static_cast<cudaStream_t>(stream));
}

int fastgan_norm_act_sums_cuda(const NormAct* norm, NormActType type, const void* grad, double* sums, void* scratch,
                               int device, void* stream) {
  const OnDevice on(device);
  if (on.status != cudaSuccess || norm->channels == 0) return on.status;
  return grad_sums(*norm, type, grad, sums, nullptr, static_cast<double*>(scratch), device,
                   static_cast<cudaStream_t>(stream));
}

int fastgan_norm_act_input_cuda(const NormAct* norm, NormActType type, const void* grad, const double* sums,
                                double count, void* dx, int device, void* stream) {
  const OnDevice on(device);
  if (on.status != cudaSuccess || norm->channels == 0) return on.status;
  return input(*norm, type, grad, sums, count, dx, device, static_cast<cudaStream_t>(stream));
}

int fastgan_norm_act_train_cuda(const NormAct* norm, NormActType type, double* mean, double* var, void* out,
                                void* scratch, bool fused, int device, void* stream_) {
  const OnDevice on(device);
  if (on.status != cudaSuccess || norm->channels == 0) return on.status;
  const auto stream = static_cast<cudaStream_t>(stream_);
  auto* const partial = static_cast<double*>(scratch);
  NormAct with = *norm;
  with.mean = mean;
  with.var = var;
  if (fused && norm->outer > 0 && norm->inner > 0) {
    const cudaError_t status = norm_act_train_fused(with, type, mean, var, out, partial, device, stream);
    if (status != cudaErrorNotSupported) return status;
  }
  const cudaError_t status = stats(with, type, mean, var, partial, device, stream);
  return status == cudaSuccess ? apply(with, type, out, device, stream) : status;
}

int fastgan_norm_act_backward_cuda(const NormAct* norm, NormActType type, const void* grad, bool training, double* sums,
                                   void* dx, void* scratch, bool fused, int device, void* stream_) {
  const OnDevice on(device);
  if (on.status != cudaSuccess || norm->channels == 0) return on.status;
  const auto stream = static_cast<cudaStream_t>(stream_);
  auto* const partial = static_cast<double*>(scratch);
  if (!training) return grad_sums(*norm, type, grad, sums, dx, partial, device, stream);
  if (fused && norm->outer > 0 && norm->inner > 0) {
    const cudaError_t status = norm_act_backward_fused(*norm, type, grad, sums, dx, partial, device, stream);
    if (status != cudaErrorNotSupported) return status;
  }
  const cudaError_t status = grad_sums(*norm, type, grad, sums, nullptr, partial, device, stream);
  const double count = double(norm->outer) * double(norm->inner);
  return status == cudaSuccess ? input(*norm, type, grad, sums, count, dx, device, stream) : status;
}
