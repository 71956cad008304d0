// norm_act in one kernel whose blocks are all on the device at once and wait for each other between the passes. What of
// the tensor fits into shared memory is read once; the rest comes a second time, from the cache where that is large.
#include <cooperative_groups.h>

#include "norm_act_launch.cuh"
#include "norm_act_passes.cuh"

namespace {

using namespace fastgan;

extern __shared__ uint4 kept[];

// The number of this warp in the grid, and how many there are.
__device__ void number_warp(int64_t* warp, int64_t* warps) {
  const int64_t block = blockIdx.y * int64_t(gridDim.x) + blockIdx.x;
  *warp = block * (kThreads / 32) + threadIdx.x / 32;
  *warps = int64_t(gridDim.x) * gridDim.y * (kThreads / 32);
}

// norm.mean and norm.var are what this kernel writes to mean and var.
template <typename T, bool kSmooth>
__global__ void __launch_bounds__(kThreads, 2)
    norm_act_train(NormAct norm, Cover cover, T* out, double* mean, double* var, double* partial, int held) {
  constexpr int kWidth = kWide<T>;
  const Walk<kWidth> walk(cover);
  {
    Sums<Arithmetic<T>> sums[kWidth];
    collect(sums, static_cast<const T*>(norm.x), cover, walk, kept, held);
    fold_block(sums, cover, walk.column, partial);
  }
  cooperative_groups::this_grid().sync();
  int64_t warp, warps;
  number_warp(&warp, &warps);
  finish_moments(static_cast<const T*>(norm.x), cover, partial, gridDim.y, warp, warps, mean, var);
  cooperative_groups::this_grid().sync();
  Factors<Arithmetic<T>> of[kWidth];
  load_factors(of, norm, cover, nullptr, 1);
  write_out<T, kWidth, kSmooth>(norm, out, of, cover, walk, kept, held);
}

template <typename T, bool kSmooth>
__global__ void __launch_bounds__(kThreads, 2)
    norm_act_backward(NormAct norm, Cover cover, const T* grad, double* sums, double count, T* dx, double* partial,
                      int held) {
  using A = Arithmetic<T>;
  constexpr int kWidth = kWide<T>;
  const Walk<kWidth> walk(cover);
  Factors<A> of[kWidth];
  {
    load_factors(of, norm, cover, nullptr, 1);
    Sums<A> mine[kWidth];
    collect<T, kWidth, kSmooth>(mine, norm, grad, static_cast<T*>(nullptr), of, cover, walk, kept, held);
    fold_block(mine, cover, walk.column, partial);
  }
  cooperative_groups::this_grid().sync();
  int64_t warp, warps;
  number_warp(&warp, &warps);
  finish_grad_sums<A>(norm, partial, gridDim.y, warp, warps, sums);
  cooperative_groups::this_grid().sync();
  load_factors(of, norm, cover, sums, count);
  // One entry at a time: most of them come from shared memory, and two would spill registers on sm_120.
  write_dx<T, kWidth, kSmooth, 1>(norm, grad, dx, of, cover, walk, kept, held);
}

// How a kernel of this file fits onto `device`: blocks at once, and entries per thread that they keep.
struct Residence {
  cudaError_t status = cudaErrorNotSupported;
  int64_t blocks = 0;
  int64_t slots = 0;  // of 16 bytes per thread

  template <typename... Arguments>
  Residence(void (*kernel)(Arguments...), int device) {
    int can = 0, multiprocessors = 0, shared = 0, shared_of_block = 0, reserved = 0, resident = 0;
    const auto ask = [&](int* value, cudaDeviceAttr what) {
      return cudaDeviceGetAttribute(value, what, device) == cudaSuccess;
    };
    if (!ask(&can, cudaDevAttrCooperativeLaunch) || !can) return;
    if (!ask(&multiprocessors, cudaDevAttrMultiProcessorCount)) return;
    if (!ask(&shared, cudaDevAttrMaxSharedMemoryPerMultiprocessor)) return;
    if (!ask(&shared_of_block, cudaDevAttrMaxSharedMemoryPerBlockOptin)) return;
    if (!ask(&reserved, cudaDevAttrReservedSharedMemoryPerBlock)) return;
    cudaFuncAttributes attributes;
    status = cudaFuncGetAttributes(&attributes, kernel);
    if (status == cudaSuccess)
      status = cudaFuncSetAttribute(kernel, cudaFuncAttributePreferredSharedMemoryCarveout, cudaSharedmemCarveoutMaxShared);
    if (status == cudaSuccess)
      status = cudaOccupancyMaxActiveBlocksPerMultiprocessor(&resident, kernel, kThreads, 0);
    if (status != cudaSuccess) return;
    resident = resident > 4 ? 4 : resident;  // 1024 threads; more would keep no more
    if (resident < 1) {
      status = cudaErrorNotSupported;
      return;
    }
    const int64_t own = int64_t(shared) / resident - reserved;
    const int64_t dynamic = (own < shared_of_block ? own : shared_of_block) - int64_t(attributes.sharedSizeBytes);
    slots = dynamic > 0 ? dynamic / (16 * kThreads) : 0;
    status = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, int(slots * 16 * kThreads));
    if (status == cudaSuccess)
      status = cudaOccupancyMaxActiveBlocksPerMultiprocessor(&resident, kernel, kThreads, size_t(slots) * 16 * kThreads);
    if (status == cudaSuccess && resident < 1) status = cudaErrorNotSupported;
    blocks = int64_t(resident) * multiprocessors;
  }
};

// `launch(grid, cover, held, shared bytes)` where all blocks fit onto the device at once.
template <typename Kernel, typename LaunchIt>
cudaError_t launch_resident(Kernel kernel, const NormAct& norm, int width, int tensors, int device, LaunchIt&& launch) {
  const Residence residence(kernel, device);
  if (residence.status != cudaSuccess) return residence.status;
  dim3 grid(1, 1, 1);
  const Cover cover = fastgan::cover(norm, width, residence.blocks, &grid.x, &grid.y);
  if (int64_t(grid.x) * grid.y > residence.blocks || ceil_div(cover.columns, cover.across) > INT32_MAX)
    return cudaErrorNotSupported;
  const int64_t entries = cover.share / cover.rows, most = residence.slots / tensors;
  const int held = int(entries < most ? entries : most);
  const cudaError_t status = launch(grid, cover, held, size_t(held) * tensors * 16 * kThreads);
  if (status != cudaErrorCooperativeLaunchTooLarge) return status;
  cudaGetLastError();  // others have a part of the device
  return cudaErrorNotSupported;
}

}  // namespace

namespace fastgan {

cudaError_t norm_act_train_fused(const NormAct& norm, NormActType type, double* mean, double* var, void* out,
                                 double* partial, int device, cudaStream_t stream) {
  return with_type(type, [&](auto t) {
    using T = decltype(t);
    if (!is_wide<T>(norm, {norm.x, out})) return cudaErrorNotSupported;
    return with_bool(is_smooth(norm.act), [&](auto smooth) {
      const auto kernel = norm_act_train<T, decltype(smooth)::value>;
      return launch_resident(kernel, norm, kWide<T>, 1, device, [&](dim3 grid, Cover cover, int held, size_t shared) {
        NormAct of = norm;
        T* to = static_cast<T*>(out);
        void* arguments[] = {&of, &cover, &to, &mean, &var, &partial, &held};
        return cudaLaunchCooperativeKernel(kernel, grid, kThreads, arguments, shared, stream);
      });
    });
  });
}

cudaError_t norm_act_backward_fused(const NormAct& norm, NormActType type, const void* grad, double* sums, void* dx,
                                    double* partial, int device, cudaStream_t stream) {
  return with_type(type, [&](auto t) {
    using T = decltype(t);
    if (!is_wide<T>(norm, {norm.x, grad, dx})) return cudaErrorNotSupported;
    return with_bool(is_smooth(norm.act), [&](auto smooth) {
      const auto kernel = norm_act_backward<T, decltype(smooth)::value>;
      return launch_resident(kernel, norm, kWide<T>, 2, device, [&](dim3 grid, Cover cover, int held, size_t shared) {
        NormAct of = norm;
        const T* from = static_cast<const T*>(grad);
        T* to = static_cast<T*>(dx);
        double count = double(norm.outer) * double(norm.inner);
        void* arguments[] = {&of, &cover, &from, &sums, &count, &to, &partial, &held};
        return cudaLaunchCooperativeKernel(kernel, grid, kThreads, arguments, shared, stream);
      });
    });
  });
}

}  // namespace fastgan
