// Tiles of the lower triangle, one block each, by fp64 tensor cores; the upper triangle is their mirror image.
//
// A block keeps kDepth rows of a in shared memory, columns of the tile's rows on one side and of its columns on the
// other, while the next rows are on their way. Every warp multiplies a quarter of the tile in pieces of 8 x 8 x 4.
#include "../symmetric_product.h"

#include <cuda_runtime.h>

#include "../portable.h"
#include "device.cuh"

namespace fastgan {
namespace {

constexpr int kTile = 64, kDepth = 16, kThreads = 128, kPieces = 4;
constexpr int kPitch = kTile + 4;  // so that the 16 numbers that half a warp reads at once are in different banks

struct Side {
  double rows[kDepth][kPitch];
};

// Copies kVector numbers to shared memory in the background, or zeros where they are not there.
template <int kVector>
__device__ __forceinline__ void copy_async(double* to, const double* from, bool there) {
#if defined(__CUDA_ARCH__)
  const unsigned address = unsigned(__cvta_generic_to_shared(to));
  asm volatile("cp.async.ca.shared.global [%0], [%1], %2, %3;" ::"r"(address), "l"(from), "n"(kVector * 8),
               "r"(there ? kVector * 8 : 0)
               : "memory");
#else
  for (int i = 0; i < kVector; ++i) to[i] = there ? from[i] : 0.0;
#endif
}

__device__ __forceinline__ void end_of_stage() {
#if defined(__CUDA_ARCH__)
  asm volatile("cp.async.commit_group;" ::: "memory");
#endif
}

// Until all but the last kStages stages are there.
template <int kStages>
__device__ __forceinline__ void wait_for_stage() {
#if defined(__CUDA_ARCH__)
  asm volatile("cp.async.wait_group %0;" ::"n"(kStages) : "memory");
#endif
}

// c += a b of 8 x 4 and 4 x 8 by a warp. Lane 4 r + k holds a[r][k] and b[k][r], and of c row r, columns 2 k, 2 k + 1.
__device__ __forceinline__ void multiply(double (&c)[2], double a, double b) {
#if defined(__CUDA_ARCH__)
  asm volatile("mma.sync.aligned.m8n8k4.row.col.f64.f64.f64.f64 {%0, %1}, {%2}, {%3}, {%0, %1};"
               : "+d"(c[0]), "+d"(c[1])
               : "d"(a), "d"(b));
#else
  const int lane = int(threadIdx.x) % 32;
  for (int k = 0; k < 4; ++k) {
    const double row = __shfl_sync(~0u, a, lane / 4 * 4 + k);
    for (int e = 0; e < 2; ++e) c[e] += row * __shfl_sync(~0u, b, (lane % 4 * 2 + e) * 4 + k);
  }
#endif
}

// Rows [first, first + kDepth) of `a`, columns [column, column + kTile), zeros beyond its edges.
template <int kVector>
__device__ void load(const double* a, int64_t rows, int64_t n, int64_t first, int64_t column, Side& side) {
  constexpr int kAcross = kTile / kVector;
  FASTGAN_UNROLL
  for (int i = int(threadIdx.x); i < kDepth * kAcross; i += kThreads) {
    const int r = i / kAcross, c = i % kAcross * kVector;
    const bool there = first + r < rows && column + c < n;
    copy_async<kVector>(&side.rows[r][c], there ? a + (first + r) * n + column + c : a, there);
  }
}

// Adds the product of what is in shared memory to this warp's quarter of the tile.
__device__ __forceinline__ void multiply_stage(const Side& left, const Side& right, int row, int column,
                                               double (&sums)[kPieces][kPieces][2]) {
  const int lane = int(threadIdx.x) % 32, r = lane / 4, k = lane % 4;
  FASTGAN_UNROLL
  for (int first = 0; first < kDepth; first += 4) {
    double a[kPieces], b[kPieces];
    FASTGAN_UNROLL
    for (int i = 0; i < kPieces; ++i) {
      a[i] = left.rows[first + k][row + 8 * i + r];
      b[i] = right.rows[first + k][column + 8 * i + r];
    }
    FASTGAN_UNROLL
    for (int i = 0; i < kPieces; ++i) {
      FASTGAN_UNROLL
      for (int j = 0; j < kPieces; ++j) multiply(sums[i][j], a[i], b[j]);
    }
  }
}

__device__ __forceinline__ void store(const SymmetricProduct& p, const double* b, double* out, int64_t i, int64_t j,
                                      double sum) {
  if (i >= p.n || j > i) return;
  double value = p.square * sum;
  if (b) value += p.linear * b[i * p.n + j];
  if (i == j) value += p.constant;
  out[i * p.n + j] = value;
  out[j * p.n + i] = value;
}

template <int kVector>
__global__ void __launch_bounds__(kThreads) symmetric_product_kernel(SymmetricProduct p) {
  __shared__ Side sides[2][2];
  int64_t row = 0, column = blockIdx.x;  // tile number t = row (row + 1) / 2 + column of the lower triangle
  while (column > row) column -= ++row;
  const double* a = p.a + int64_t(blockIdx.y) * p.rows * p.n;
  const bool diagonal = row == column;

  const auto fetch = [&](int64_t first, int stage) {
    load<kVector>(a, p.rows, p.n, first, row * kTile, sides[stage][0]);
    if (!diagonal) load<kVector>(a, p.rows, p.n, first, column * kTile, sides[stage][1]);
    end_of_stage();
  };
  const int warp = int(threadIdx.x) / 32, lane = int(threadIdx.x) % 32;
  const int down = warp / 2 * 32, across = warp % 2 * 32;
  double sums[kPieces][kPieces][2] = {};
  fetch(0, 0);
  int stage = 0;
  for (int64_t first = 0; first < p.rows; first += kDepth, stage = 1 - stage) {
    if (first + kDepth < p.rows) {
      fetch(first + kDepth, 1 - stage);
      wait_for_stage<1>();
    } else {
      wait_for_stage<0>();
    }
    __syncthreads();
    multiply_stage(sides[stage][0], sides[stage][diagonal ? 0 : 1], down, across, sums);
    __syncthreads();
  }

  const int64_t offset = int64_t(blockIdx.y) * p.n * p.n;
  const double* b = p.b ? p.b + offset : nullptr;
  FASTGAN_UNROLL
  for (int i = 0; i < kPieces; ++i) {
    FASTGAN_UNROLL
    for (int j = 0; j < kPieces; ++j) {
      FASTGAN_UNROLL
      for (int e = 0; e < 2; ++e)
        store(p, b, p.out + offset, row * kTile + down + 8 * i + lane / 4,
              column * kTile + across + 8 * j + lane % 4 * 2 + e, sums[i][j][e]);
    }
  }
}

}  // namespace
}  // namespace fastgan

int fastgan_symmetric_product_cuda(const fastgan::SymmetricProduct* product, int device, void* stream) {
  using namespace fastgan;
  const SymmetricProduct& p = *product;
  if (p.n == 0 || p.batch == 0) return cudaSuccess;
  const int64_t side = (p.n + kTile - 1) / kTile, tiles = side * (side + 1) / 2;
  if (tiles > INT32_MAX || p.batch > 65535) return cudaErrorInvalidConfiguration;
  const OnDevice on(device);
  if (on.status != cudaSuccess) return on.status;
  const dim3 grid(unsigned(tiles), unsigned(p.batch));
  const auto on_stream = static_cast<cudaStream_t>(stream);
  if (p.n % 2 == 0 && reinterpret_cast<uintptr_t>(p.a) % 16 == 0)
    symmetric_product_kernel<2><<<grid, kThreads, 0, on_stream>>>(p);
  else
    symmetric_product_kernel<1><<<grid, kThreads, 0, on_stream>>>(p);
  return cudaGetLastError();
}
