// What the kernels of norm_act share: how a grid covers a tensor, sums over a block, factors per channel, activations.
//
// Both layouts are walked alike. A tensor is a table of columns and positions, an entry of which is kWidth elements that
// lie side by side. Channels-last: a column is kWidth channels, a position is a pixel. Otherwise: a column is a channel,
// and its positions run through all samples. So the channels of a thread, and what it knows of them, never change.
// A block is `across` columns wide; it takes `share` positions one after the other, a row of the block each.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "device.cuh"
#include "norm_act.h"

namespace fastgan {

constexpr int kThreads = 256;
constexpr int kMaxAcross = 32;  // columns that a block is wide

// ---- types

template <typename T>
struct ArithmeticOf {
  using type = float;
};
template <>
struct ArithmeticOf<double> {
  using type = double;
};
template <typename T>
using Arithmetic = typename ArithmeticOf<T>::type;

__device__ __forceinline__ double widen(double value) { return value; }
__device__ __forceinline__ float widen(float value) { return value; }
__device__ __forceinline__ float widen(BFloat16 value) { return float(value); }
__device__ __forceinline__ float widen(Half value) { return __half2float(__ushort_as_half(value.bits)); }

__device__ __forceinline__ void narrow(double value, double& to) { to = value; }
__device__ __forceinline__ void narrow(float value, float& to) { to = value; }
__device__ __forceinline__ void narrow(float value, BFloat16& to) {
  to.bits = __bfloat16_as_ushort(__float2bfloat16_rn(value));
}
__device__ __forceinline__ void narrow(float value, Half& to) { to.bits = __half_as_ushort(__float2half_rn(value)); }

// kWidth elements moved by one instruction; 16 bytes, or one element where the addresses or sizes do not allow it.
template <typename T, int kWidth>
struct alignas(sizeof(T) * kWidth) Vector {
  T at[kWidth];
};
template <typename T>
constexpr int kWide = 16 / sizeof(T);

// ---- how a grid covers a tensor

struct Cover {
  int64_t channels, columns, positions;
  int64_t column_step;  // elements from a column to the next
  int64_t run;          // positions that lie side by side: those of a sample, or 1 for channels-last
  int64_t run_step;     // elements from the first position of a run to that of the next
  int64_t jump, jump_in_run, wrap;  // from a row of the block to the next, see Walk::next
  int64_t share;
  int across, rows;  // of a block: kThreads threads
  int width;
  bool planes;  // not channels-last

  // Where the first element of a channel lies, and how many of its elements a position has.
  __device__ int64_t first_of(int64_t channel) const { return planes ? channel * column_step : channel; }
  __device__ int values_per_position() const { return planes ? width : 1; }
};

inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// For a grid of about `blocks` blocks, which is (*x, *y). Neither the tensor nor a dimension of it may be empty.
inline Cover cover(const NormAct& norm, int width, int64_t blocks, unsigned* x, unsigned* y) {
  Cover c = {};
  c.planes = norm.inner > 1;
  c.width = width;
  c.channels = norm.channels;
  c.columns = c.planes ? norm.channels : norm.channels / width;
  c.column_step = c.planes ? norm.inner : width;
  c.run = c.planes ? norm.inner / width : 1;
  c.run_step = c.planes ? norm.channels * norm.inner : norm.channels;
  c.positions = norm.outer * c.run;
  c.across = 1;
  if (!c.planes) {
    while (c.across < c.columns && c.across < kMaxAcross) c.across *= 2;
    while (c.across > 8 && c.columns % c.across) c.across /= 2;  // 8 vectors fill a cache line
  }
  c.rows = kThreads / c.across;
  const int64_t tiles = ceil_div(c.columns, c.across), rows = ceil_div(c.positions, c.rows);
  int64_t parts = blocks / tiles;
  parts = parts < 1 ? 1 : parts > 65535 ? 65535 : parts;
  if (parts > ceil_div(rows, 4)) parts = ceil_div(rows, 4);
  c.share = ceil_div(rows, parts) * c.rows;
  c.jump_in_run = c.rows % c.run;
  c.jump = c.rows / c.run * c.run_step + c.jump_in_run * width;
  c.wrap = c.run_step - c.run * width;
  *x = unsigned(tiles);
  *y = unsigned(ceil_div(c.positions, c.share));
  return c;
}

inline bool aligned(const void* pointer) { return reinterpret_cast<uintptr_t>(pointer) % 16 == 0; }

// Whether every vector of `width` elements lies in one channel or in one pixel, given aligned addresses.
inline bool fits(const NormAct& norm, int width) {
  return (norm.inner > 1 ? norm.inner : norm.channels) % width == 0;
}

// A thread's way: `count` entries of one column.
template <int kWidth>
struct Walk {
  int64_t column, offset, in_run, count;

  __device__ explicit Walk(const Cover& c) {
    const int row = threadIdx.x / c.across;
    column = int64_t(blockIdx.x) * c.across + threadIdx.x % c.across;
    const int64_t position = blockIdx.y * c.share + row;
    const int64_t end = min((blockIdx.y + 1) * c.share, c.positions);
    count = column < c.columns && position < end ? (end - position + c.rows - 1) / c.rows : 0;
    in_run = position % c.run;
    offset = column * c.column_step + position / c.run * c.run_step + in_run * kWidth;
  }

  // To the entry `rows` positions on, without a division.
  __device__ __forceinline__ void next(const Cover& c) {
    offset += c.jump;
    in_run += c.jump_in_run;
    if (in_run >= c.run) {
      in_run -= c.run;
      offset += c.wrap;
    }
  }
};

// Calls act(offsets, k, n) for every kBatch entries of the way, of which the k-th is the first: n of them are there.
template <int kBatch, int kWidth, typename Act>
__device__ __forceinline__ void for_batches(Walk<kWidth> walk, const Cover& cover, Act&& act) {
  int64_t offsets[kBatch], k = 0;
  for (; k + kBatch <= walk.count; k += kBatch) {
#pragma unroll
    for (int u = 0; u < kBatch; ++u, walk.next(cover)) offsets[u] = walk.offset;
    act(offsets, k, kBatch);
  }
  if (kBatch > 1 && k < walk.count) {
#pragma unroll
    for (int u = 0; u < kBatch; ++u, walk.next(cover)) offsets[u] = walk.offset;  // past the end: never used
    act(offsets, k, int(walk.count - k));
  }
}

// ---- sums over a block, and over blocks

// What a thread saw of a channel, relative to the channel's first value (Chan, Golub and LeVeque 1979).
template <typename A>
struct Moments {
  A n, mean, m2;
};

// A sum as an unevaluated one of two numbers: twice the digits, and no slow double precision.
template <typename A>
struct Pair {
  A high, low;

  __device__ __forceinline__ void add(const Pair& other) {
    const A sum = high + other.high, part = sum - high;
    const A error = ((high - (sum - part)) + (other.high - part)) + (low + other.low);
    high = sum + error;
    low = error - (high - sum);
  }
  __device__ __forceinline__ double value() const { return double(high) + double(low); }
};

// Of x and x^2 relative to the first value of the channel, or of dz and dz (x - center).
template <typename A>
struct Sums {
  Pair<A> first, second;

  __device__ static __forceinline__ Sums of(const Moments<A>& m) {
    const A sum = m.n * m.mean, sum_rest = fma(m.n, m.mean, -sum);
    const A square = sum * m.mean, square_rest = fma(sum, m.mean, -square) + sum_rest * m.mean;
    Sums s = {{sum, sum_rest}, {square, square_rest}};
    s.second.add({m.m2, 0});
    return s;
  }
  __device__ __forceinline__ void add(const Sums& other) {
    first.add(other.first);
    second.add(other.second);
  }
};

// Adds up what the threads of a block have, and writes the sums of each channel: partial [2, gridDim.y, channels].
template <typename A, int kWidth>
__device__ void fold_block(Sums<A> (&sum)[kWidth], const Cover& c, int64_t column, double* partial) {
  __shared__ Sums<A> handed[kWidth][kThreads / 2];
  const int thread = threadIdx.x;
  for (int half = kThreads / 2; half >= c.across; half /= 2) {
    if (thread >= half && thread < 2 * half) {
#pragma unroll
      for (int j = 0; j < kWidth; ++j) handed[j][thread - half] = sum[j];
    }
    __syncthreads();
    if (thread < half) {
#pragma unroll
      for (int j = 0; j < kWidth; ++j) sum[j].add(handed[j][thread]);
    }
    __syncthreads();
  }
  if (thread >= c.across || column >= c.columns) return;
  if (c.planes) {
#pragma unroll
    for (int j = 1; j < kWidth; ++j) sum[0].add(sum[j]);
  }
  double* const first = partial + blockIdx.y * c.channels + (c.planes ? column : column * kWidth);
  double* const second = first + gridDim.y * c.channels;
#pragma unroll
  for (int j = 0; j < kWidth; ++j) {
    if (j > 0 && c.planes) break;
    first[j] = sum[j].first.value();
    second[j] = sum[j].second.value();
  }
}

// Both sums over all blocks, [2, rows, channels] -> those of `channel`, in every thread of a warp; in fixed order.
__device__ __forceinline__ void sum_partials(const double* partial, int64_t rows, int64_t channels, int64_t channel,
                                             double& first, double& second) {
  first = second = 0;
  for (int64_t row = threadIdx.x % 32; row < rows; row += 32) {
    first += __ldcg(partial + row * channels + channel);
    second += __ldcg(partial + (rows + row) * channels + channel);
  }
  for (int lane = 16; lane > 0; lane /= 2) {
    first += __shfl_xor_sync(0xFFFFFFFFu, first, lane);
    second += __shfl_xor_sync(0xFFFFFFFFu, second, lane);
  }
}

// ---- what is the same for all elements of a channel

// z = (x - center) * scale + shift;  dx = scale * dz + ((x - center) * slope + offset), as norm_act.h has it
template <typename A>
struct Factors {
  A center, scale, shift, slope, offset;
};

// sums: [2, channels], sum dz and sum dz x^, or null where dx does not depend on them
template <typename A>
__device__ Factors<A> factors_of(const NormAct& norm, int64_t channel, const double* sums, double count) {
  const NormActChannel<A> of(norm, channel);
  const double dz = sums ? sums[channel] : 0, dz_x = sums ? sums[norm.channels + channel] : 0;
  const NormActInput<A> input(of, dz, dz_x, count);
  return {of.center, of.scale, of.shift, input.slope, input.offset};
}

// The factors of the channels of a thread. Every thread of the block has to call it.
template <typename A, int kWidth>
__device__ void load_factors(Factors<A> (&mine)[kWidth], const NormAct& norm, const Cover& c, const double* sums,
                             double count) {
  constexpr int kMost = kMaxAcross * kWidth;
  static_assert(kMost <= kThreads, "a thread per channel of the block");
  __shared__ Factors<A> table[kMost];
  const int here = c.planes ? 1 : c.across * kWidth, thread = threadIdx.x;
  const int64_t channel = int64_t(blockIdx.x) * here + thread;
  if (thread < here && channel < c.channels) table[thread] = factors_of<A>(norm, channel, sums, count);
  __syncthreads();
  const int first = c.planes ? 0 : thread % c.across * kWidth;
#pragma unroll
  for (int j = 0; j < kWidth; ++j) mine[j] = table[c.planes ? 0 : first + j];
}

// ---- activations

// none, ReLU and leaky ReLU, of which only the slope below 0 differs; kSmooth: the others
template <typename A, bool kSmooth>
struct Activation {
  NormActKind kind;
  A slope;

  __device__ explicit Activation(const NormAct& norm) : kind(norm.act) {
    slope = kind == NormActKind::kNone ? A(1) : A(norm.slope);
  }

  __device__ __forceinline__ A operator()(A z) const {
    if constexpr (kSmooth) {
      switch (kind) {
        case NormActKind::kTanh: return norm_act_value<NormActKind::kTanh>(z, slope);
        case NormActKind::kSigmoid: return norm_act_value<NormActKind::kSigmoid>(z, slope);
        case NormActKind::kSilu: return norm_act_value<NormActKind::kSilu>(z, slope);
        default: return norm_act_value<NormActKind::kGelu>(z, slope);
      }
    }
    return kind == NormActKind::kRelu ? norm_act_value<NormActKind::kRelu>(z, slope)
                                      : norm_act_value<NormActKind::kLeakyRelu>(z, slope);
  }
  // dz: what the gradient g of act(z) becomes
  __device__ __forceinline__ A backward(A g, A z) const {
    if constexpr (kSmooth) {
      switch (kind) {
        case NormActKind::kTanh: return norm_act_grad<NormActKind::kTanh>(g, z, slope);
        case NormActKind::kSigmoid: return norm_act_grad<NormActKind::kSigmoid>(g, z, slope);
        case NormActKind::kSilu: return norm_act_grad<NormActKind::kSilu>(g, z, slope);
        default: return norm_act_grad<NormActKind::kGelu>(g, z, slope);
      }
    }
    return kind == NormActKind::kRelu ? norm_act_grad<NormActKind::kRelu>(g, z, slope)
                                      : norm_act_grad<NormActKind::kLeakyRelu>(g, z, slope);
  }
};

inline bool is_smooth(NormActKind kind) { return int(kind) >= int(NormActKind::kTanh); }

}  // namespace fastgan
