// What the host does before a launch of norm_act: types and widths to template arguments, and the size of the grid.
#pragma once

#include <initializer_list>
#include <type_traits>

#include "norm_act.cuh"

namespace fastgan {

// Both in one kernel. cudaErrorNotSupported, and then nothing was done, where it cannot run: vectors do not fit, or the
// blocks would not all be on the device at once.
cudaError_t norm_act_train_fused(const NormAct& norm, NormActType type, double* mean, double* var, void* out,
                                 double* partial, int device, cudaStream_t stream);
cudaError_t norm_act_backward_fused(const NormAct& norm, NormActType type, const void* grad, double* sums, void* dx,
                                    double* partial, int device, cudaStream_t stream);

template <typename Run>
cudaError_t with_type(NormActType type, Run&& run) {
  switch (type) {
    case NormActType::kFloat: return run(float());
    case NormActType::kDouble: return run(double());
    case NormActType::kBFloat16: return run(BFloat16());
    case NormActType::kHalf: return run(Half());
  }
  return cudaErrorInvalidValue;
}

template <typename Run>
cudaError_t with_bool(bool value, Run&& run) {
  return value ? run(std::true_type()) : run(std::false_type());
}

// Whether 16 bytes can be moved at once, given where the tensors are; null ones do not matter.
template <typename T>
bool is_wide(const NormAct& norm, std::initializer_list<const void*> tensors) {
  for (const void* tensor : tensors)
    if (!aligned(tensor)) return false;
  return fits(norm, kWide<T>);
}

template <typename T, typename Run>
cudaError_t with_width(const NormAct& norm, std::initializer_list<const void*> tensors, Run&& run) {
  return is_wide<T>(norm, tensors) ? run(std::integral_constant<int, kWide<T>>())
                                   : run(std::integral_constant<int, 1>());
}

// Blocks per multiprocessor: of sums, so that few partial sums are left; and of what has none.
constexpr int kReducing = 8, kMapping = 16;

struct Launch {
  Launch(const NormAct& norm, int width, int device, int blocks_per_multiprocessor) {
    int multiprocessors = 0;
    status = cudaDeviceGetAttribute(&multiprocessors, cudaDevAttrMultiProcessorCount, device);
    if (status != cudaSuccess) return;
    cover = fastgan::cover(norm, width, int64_t(multiprocessors) * blocks_per_multiprocessor, &grid.x, &grid.y);
    if (ceil_div(cover.columns, cover.across) > INT32_MAX) status = cudaErrorInvalidConfiguration;
  }
  Cover cover = {};
  dim3 grid = dim3(1, 1, 1);
  cudaError_t status;
};

}  // namespace fastgan
