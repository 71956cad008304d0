#include "ingest.h"

#include "device.cuh"

namespace {

using namespace fastgan;

constexpr int kThreads = 256;
constexpr int64_t kMaxBlocks = 65536;  // threads go on from there with a stride

template <typename T>
struct alignas(16) Vector {
  T at[16 / sizeof(T)];
};

// A thread writes 16 bytes at a time; what it reads of a flipped row is in the lines that its neighbours read.
template <typename T>
__global__ void __launch_bounds__(kThreads) ingest_kernel(Ingest ingest) {
  constexpr int kWidth = 16 / sizeof(T);
  const int64_t row_size = ingest.width * ingest.channels, numel = ingest.samples * ingest.height * row_size;
  const int64_t stride = int64_t(gridDim.x) * kThreads * kWidth;
  for (int64_t i = (int64_t(blockIdx.x) * kThreads + threadIdx.x) * kWidth; i < numel; i += stride) {
    int64_t row = i / row_size;
    int64_t pixel = (i - row * row_size) / ingest.channels, channel = (i - row * row_size) % ingest.channels;
    bool flip = ingest.flip && ingest.flip[row / ingest.height];
    Vector<T> out;
    FASTGAN_UNROLL
    for (int k = 0; k < kWidth; ++k) {  // unrolled, so that `out` lives in registers
      if (i + k >= numel) continue;
      const int64_t from = flip ? ingest.width - 1 - pixel : pixel;
      ingest_store(ingest_value(ingest.pixels[row * row_size + from * ingest.channels + channel]), &out.at[k]);
      if (++channel < ingest.channels) continue;
      channel = 0;
      if (++pixel < ingest.width) continue;
      pixel = 0;
      ++row;
      flip = ingest.flip && i + k + 1 < numel && ingest.flip[row / ingest.height];
    }
    T* const to = static_cast<T*>(ingest.out) + i;  // aligned: torch's allocations are
    if (i + kWidth <= numel)
      *reinterpret_cast<Vector<T>*>(to) = out;
    else
      FASTGAN_UNROLL
      for (int k = 0; k < kWidth; ++k)
        if (i + k < numel) to[k] = out.at[k];
  }
}

template <typename T>
cudaError_t launch(const Ingest& ingest, cudaStream_t stream) {
  const int64_t numel = ingest.samples * ingest.height * ingest.width * ingest.channels;
  if (numel == 0) return cudaSuccess;
  const int64_t share = kThreads * (16 / sizeof(T)), blocks = (numel + share - 1) / share;
  const unsigned grid = unsigned(blocks < kMaxBlocks ? blocks : kMaxBlocks);
  ingest_kernel<T><<<grid, kThreads, 0, stream>>>(ingest);
  return cudaGetLastError();
}

}  // namespace

int fastgan_ingest_cuda(const Ingest* ingest, IngestType type, int device, void* stream_) {
  const OnDevice on(device);
  if (on.status != cudaSuccess) return on.status;
  const auto stream = static_cast<cudaStream_t>(stream_);
  switch (type) {
    case IngestType::kFloat: return launch<float>(*ingest, stream);
    case IngestType::kBFloat16: return launch<BFloat16>(*ingest, stream);
    case IngestType::kHalf: return launch<Half>(*ingest, stream);
    case IngestType::kByte: break;
  }
  return cudaErrorInvalidValue;
}
