// The passes over a tensor that the kernels of norm_act are made of. Each of them is the work of one block.
//
// `kept` is shared memory in which a block keeps the first `held` entries of each of its threads from one pass to the
// next; with held = 0 nothing is kept. Only the thread that wrote an entry reads it.
#pragma once

#include "norm_act.cuh"

namespace fastgan {

template <typename T, int kWidth>
__device__ __forceinline__ Vector<T, kWidth> load(const T* from) {
  Vector<T, kWidth> v;
  if constexpr (sizeof(v) == 16) {
    const uint4 raw = *reinterpret_cast<const uint4*>(from);
    memcpy(&v, &raw, 16);
  } else {
    v = *reinterpret_cast<const Vector<T, kWidth>*>(from);
  }
  return v;
}

template <typename T, int kWidth>
__device__ __forceinline__ void store(T* to, const Vector<T, kWidth>& v) {
  if constexpr (sizeof(v) == 16) {
    uint4 raw;
    memcpy(&raw, &v, 16);
    *reinterpret_cast<uint4*>(to) = raw;
  } else {
    *reinterpret_cast<Vector<T, kWidth>*>(to) = v;
  }
}

// Only vectors of 16 bytes are kept.
template <typename V>
__device__ __forceinline__ void keep(uint4* kept, int64_t entry, const V& v) {
  static_assert(sizeof(V) <= 16, "one slot");
  memcpy(kept + entry * kThreads + threadIdx.x, &v, sizeof(V));
}

template <typename V>
__device__ __forceinline__ V recall(const uint4* kept, int64_t entry) {
  V v;
  memcpy(&v, kept + entry * kThreads + threadIdx.x, sizeof(V));
  return v;
}

// Entries that a thread has on their way at once.
constexpr int kBatch = 4;
template <bool kSmooth>
constexpr int kActBatch = kSmooth ? 1 : 2;

// The moments of what a thread sees of each of its channels, those of a batch in two passes over registers; as sums.
template <typename T, int kWidth>
__device__ __forceinline__ void collect(Sums<Arithmetic<T>> (&sums)[kWidth], const T* x, const Cover& cover,
                                        const Walk<kWidth>& walk, uint4* kept, int held) {
  using A = Arithmetic<T>;
  A pivot[kWidth], n = 0;
  Moments<A> moments[kWidth];
#pragma unroll
  for (int j = 0; j < kWidth; ++j) {
    const int64_t first = walk.column * cover.column_step + (cover.planes ? 0 : j);
    pivot[j] = walk.count ? widen(x[first]) : A(0);
    moments[j] = {0, 0, 0};
  }
  for_batches<kBatch>(walk, cover, [&](const int64_t(&offsets)[kBatch], int64_t k, int there) {
    Vector<T, kWidth> v[kBatch];
#pragma unroll
    for (int u = 0; u < kBatch; ++u)
      if (u < there) v[u] = load<T, kWidth>(x + offsets[u]);
#pragma unroll
    for (int u = 0; u < kBatch; ++u)
      if (held > 0 && u < there && k + u < held) keep(kept, k + u, v[u]);
    const A total = n + A(there), inverse = A(1) / A(there), part = A(there) / total;
#pragma unroll
    for (int j = 0; j < kWidth; ++j) {
      A sum = 0, m2 = 0;
#pragma unroll
      for (int u = 0; u < kBatch; ++u)
        if (u < there) sum += widen(v[u].at[j]) - pivot[j];
      const A mean = sum * inverse, delta = mean - moments[j].mean;
#pragma unroll
      for (int u = 0; u < kBatch; ++u) {
        const A from_mean = (widen(v[u].at[j]) - pivot[j]) - mean;
        if (u < there) m2 = fma(from_mean, from_mean, m2);
      }
      moments[j].mean = fma(delta, part, moments[j].mean);
      moments[j].m2 += m2 + delta * delta * (n * part);
    }
    n = total;
  });
#pragma unroll
  for (int j = 0; j < kWidth; ++j) {
    moments[j].n = n;
    sums[j] = Sums<A>::of(moments[j]);
  }
}

// The sums for the backward pass. In evaluation dx does not depend on them and is written here, if it is not null.
template <typename T, int kWidth, bool kSmooth>
__device__ __forceinline__ void collect(Sums<Arithmetic<T>> (&sums)[kWidth], const NormAct& norm, const T* grad,
                                        T* dx, const Factors<Arithmetic<T>> (&of)[kWidth], const Cover& cover,
                                        const Walk<kWidth>& walk, uint4* kept, int held) {
  using A = Arithmetic<T>;
  constexpr int kMany = kActBatch<kSmooth>;
  const Activation<A, kSmooth> act(norm);
  const T* const x = static_cast<const T*>(norm.x);
  A dz_sum[kWidth], dz_x_sum[kWidth];
#pragma unroll
  for (int j = 0; j < kWidth; ++j) dz_sum[j] = dz_x_sum[j] = 0;
  for_batches<kMany>(walk, cover, [&](const int64_t(&offsets)[kMany], int64_t k, int there) {
    Vector<T, kWidth> v[kMany], g[kMany];
#pragma unroll
    for (int u = 0; u < kMany; ++u) {
      if (u >= there) continue;
      v[u] = load<T, kWidth>(x + offsets[u]);
      g[u] = load<T, kWidth>(grad + offsets[u]);
    }
#pragma unroll
    for (int u = 0; u < kMany; ++u) {
      if (u >= there) continue;
      if (held > 0 && k + u < held) {
        keep(kept, 2 * (k + u), v[u]);
        keep(kept, 2 * (k + u) + 1, g[u]);
      }
#pragma unroll
      for (int j = 0; j < kWidth; ++j) {
        const A centered = widen(v[u].at[j]) - of[j].center;
        const A dz = act.backward(widen(g[u].at[j]), centered * of[j].scale + of[j].shift);
        dz_sum[j] += dz;
        dz_x_sum[j] = fma(dz, centered, dz_x_sum[j]);
        narrow(of[j].scale * dz, g[u].at[j]);
      }
      if (dx) store<T, kWidth>(dx + offsets[u], g[u]);
    }
  });
#pragma unroll
  for (int j = 0; j < kWidth; ++j) sums[j] = {{dz_sum[j], 0}, {dz_x_sum[j], 0}};
}

// out = act(z); out may be x.
template <typename T, int kWidth, bool kSmooth>
__device__ __forceinline__ void write_out(const NormAct& norm, T* out, const Factors<Arithmetic<T>> (&of)[kWidth],
                                          const Cover& cover, const Walk<kWidth>& walk, const uint4* kept, int held) {
  using A = Arithmetic<T>;
  constexpr int kMany = kActBatch<kSmooth>;
  const Activation<A, kSmooth> act(norm);
  const T* const x = static_cast<const T*>(norm.x);
  for_batches<kMany>(walk, cover, [&](const int64_t(&offsets)[kMany], int64_t k, int there) {
    Vector<T, kWidth> v[kMany];
#pragma unroll
    for (int u = 0; u < kMany; ++u) {
      if (u >= there) continue;
      const bool here = held > 0 && k + u < held;
      v[u] = here ? recall<Vector<T, kWidth>>(kept, k + u) : load<T, kWidth>(x + offsets[u]);
    }
#pragma unroll
    for (int u = 0; u < kMany; ++u) {
#pragma unroll
      for (int j = 0; j < kWidth; ++j)
        narrow(act((widen(v[u].at[j]) - of[j].center) * of[j].scale + of[j].shift), v[u].at[j]);
      if (u < there) store<T, kWidth>(out + offsets[u], v[u]);
    }
  });
}

// dx from the sums, which are in the factors; dx may be grad.
template <typename T, int kWidth, bool kSmooth, int kMany = kActBatch<kSmooth>>
__device__ __forceinline__ void write_dx(const NormAct& norm, const T* grad, T* dx,
                                         const Factors<Arithmetic<T>> (&of)[kWidth], const Cover& cover,
                                         const Walk<kWidth>& walk, const uint4* kept, int held) {
  using A = Arithmetic<T>;
  const Activation<A, kSmooth> act(norm);
  const T* const x = static_cast<const T*>(norm.x);
  for_batches<kMany>(walk, cover, [&](const int64_t(&offsets)[kMany], int64_t k, int there) {
    Vector<T, kWidth> v[kMany], g[kMany];
#pragma unroll
    for (int u = 0; u < kMany; ++u) {
      if (u >= there) continue;
      const bool here = held > 0 && k + u < held;
      v[u] = here ? recall<Vector<T, kWidth>>(kept, 2 * (k + u)) : load<T, kWidth>(x + offsets[u]);
      g[u] = here ? recall<Vector<T, kWidth>>(kept, 2 * (k + u) + 1) : load<T, kWidth>(grad + offsets[u]);
    }
#pragma unroll
    for (int u = 0; u < kMany; ++u) {
#pragma unroll
      for (int j = 0; j < kWidth; ++j) {
        const A centered = widen(v[u].at[j]) - of[j].center;
        const A dz = act.backward(widen(g[u].at[j]), centered * of[j].scale + of[j].shift);
        narrow(of[j].scale * dz + (centered * of[j].slope + of[j].offset), g[u].at[j]);
      }
      if (u < there) store<T, kWidth>(dx + offsets[u], g[u]);
    }
  });
}

// ---- from the sums of the blocks, [2, rows, channels], to the results. One warp per channel, `warps` of them in all.

template <typename T>
__device__ __forceinline__ void finish_moments(const T* x, const Cover& cover, const double* partial, int64_t rows,
                                               int64_t warp, int64_t warps, double* mean, double* var) {
  const double count = double(cover.positions) * double(cover.values_per_position());
  for (int64_t channel = warp; channel < cover.channels; channel += warps) {
    double first, second;
    sum_partials(partial, rows, cover.channels, channel, first, second);
    if (threadIdx.x % 32 != 0) continue;
    const double from_pivot = first / count, v = second / count - from_pivot * from_pivot;
    mean[channel] = double(widen(x[cover.first_of(channel)])) + from_pivot;
    var[channel] = v < 0 ? 0 : v;  // NaN stays
  }
}

template <typename A>
__device__ __forceinline__ void finish_grad_sums(const NormAct& norm, const double* partial, int64_t rows, int64_t warp,
                                                 int64_t warps, double* sums) {
  for (int64_t channel = warp; channel < norm.channels; channel += warps) {
    double dz, dz_x;
    sum_partials(partial, rows, norm.channels, channel, dz, dz_x);
    if (threadIdx.x % 32 != 0) continue;
    sums[channel] = dz;
    sums[norm.channels + channel] = NormActChannel<A>(norm, channel).sum_normalised(dz, dz_x);
  }
}

}  // namespace fastgan
