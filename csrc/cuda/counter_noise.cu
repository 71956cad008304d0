#include "counter_noise.h"

#include "device.cuh"

namespace {

using namespace fastgan;

constexpr int kThreads = 256;
constexpr int64_t kMaxBlocks = 65536;  // threads go on from there with a stride

// What a thread makes of the words of four elements.
struct UniformFloats {
  using T = float;
  static constexpr bool kLow = false;
  __device__ void operator()(const Words& high, const Words&, int64_t, T* out) const {
    for (int j = 0; j < 4; ++j) out[j] = uniform_float(high.w[j]);
  }
};

struct UniformDoubles {
  using T = double;
  static constexpr bool kLow = true;
  __device__ void operator()(const Words& high, const Words& low, int64_t, T* out) const {
    for (int j = 0; j < 4; ++j) out[j] = uniform_double(high.w[j], low.w[j]);
  }
};

struct NormalFloats {
  using T = float;
  static constexpr bool kLow = false;
  __device__ void operator()(const Words& high, const Words&, int64_t, T* out) const {
    for (int j = 0; j < 4; j += 2) {
      const Pair pair = normal_float(high.w[j], high.w[j + 1]);
      out[j] = float(pair.first);
      out[j + 1] = float(pair.second);
    }
  }
};

struct NormalDoubles {
  using T = double;
  static constexpr bool kLow = true;
  __device__ void operator()(const Words& high, const Words& low, int64_t, T* out) const {
    for (int j = 0; j < 4; j += 2) {
      const Pair pair = normal_double(high.w[j], low.w[j], high.w[j + 1], low.w[j + 1]);
      out[j] = pair.first;
      out[j + 1] = pair.second;
    }
  }
};

struct Integers {
  using T = int64_t;
  static constexpr bool kLow = true;
  __device__ void operator()(const Words& high, const Words& low, int64_t below, T* out) const {
    for (int j = 0; j < 4; ++j) out[j] = integer_below(high.w[j], low.w[j], below);
  }
};

template <typename T>
struct alignas(16) Vector {
  T at[16 / sizeof(T)];
};

template <typename Fill>
__global__ void __launch_bounds__(kThreads) counter_noise(CounterNoise noise, Fill fill) {
  using T = typename Fill::T;
  const int64_t blocks = (noise.elements + 3) / 4;  // of four elements, per sample
  const int64_t stride = int64_t(gridDim.x) * kThreads;
  for (int64_t i = int64_t(blockIdx.x) * kThreads + threadIdx.x; i < noise.samples * blocks; i += stride) {
    const int64_t n = i / blocks, block = i % blocks;
    const uint64_t index = uint64_t(noise.index[n]);
    const uint32_t index_low = uint32_t(index), index_high = uint32_t(index >> 32);
    const Words high = counter_words(noise, index_low, index_high, uint32_t(block), false);
    const Words low = Fill::kLow ? counter_words(noise, index_low, index_high, uint32_t(block), true) : Words{};
    alignas(16) T four[4];
    fill(high, low, noise.high, four);
    T* const out = static_cast<T*>(noise.out) + n * noise.elements + 4 * block;
    const int64_t left = noise.elements - 4 * block;
    if (left >= 4 && reinterpret_cast<uintptr_t>(out) % 16 == 0) {
      constexpr int kWidth = 16 / sizeof(T);
      for (int j = 0; j < 4; j += kWidth)
        *reinterpret_cast<Vector<T>*>(out + j) = *reinterpret_cast<const Vector<T>*>(four + j);
    } else {
      for (int j = 0; j < 4 && j < left; ++j) out[j] = four[j];
    }
  }
}

template <typename Fill>
cudaError_t launch(const CounterNoise& noise, cudaStream_t stream) {
  const int64_t work = noise.samples * ((noise.elements + 3) / 4);
  if (work == 0) return cudaSuccess;
  const int64_t blocks = (work + kThreads - 1) / kThreads;
  counter_noise<<<unsigned(blocks < kMaxBlocks ? blocks : kMaxBlocks), kThreads, 0, stream>>>(noise, Fill());
  return cudaGetLastError();
}

}  // namespace

int fastgan_counter_noise_cuda(const CounterNoise* noise, CounterNoiseKind kind, int device, void* stream_) {
  const OnDevice on(device);
  if (on.status != cudaSuccess) return on.status;
  const auto stream = static_cast<cudaStream_t>(stream_);
  switch (kind) {
    case CounterNoiseKind::kUniformFloat: return launch<UniformFloats>(*noise, stream);
    case CounterNoiseKind::kUniformDouble: return launch<UniformDoubles>(*noise, stream);
    case CounterNoiseKind::kNormalFloat: return launch<NormalFloats>(*noise, stream);
    case CounterNoiseKind::kNormalDouble: return launch<NormalDoubles>(*noise, stream);
    case CounterNoiseKind::kIntegers: return launch<Integers>(*noise, stream);
  }
  return cudaErrorInvalidValue;
}
