// What the passes of norm_act are made of: threads, memory of a thread, pieces of tensors, factors.
#pragma once

#include <vector>

#ifdef _OPENMP
#include <omp.h>
#endif

#include "convert.h"
#include "norm_act_grid.h"
#include "norm_act_loops.h"

namespace fastgan {
namespace {

// ---- threads

// Calls f(item, scratch) for all items, each thread for a range of them, where `again` says last to first: of what the
// pass before has seen the end is still in the cache.
template <typename Scratch, typename F>
void parallel(int64_t items, int threads, bool again, F f) {
#pragma omp parallel num_threads(threads) if (threads > 1)
  {
    int64_t thread = 0, count = 1;
#ifdef _OPENMP
    thread = omp_get_thread_num(), count = omp_get_num_threads();
#endif
    Scratch scratch;
    const int64_t begin = items * thread / count, end = items * (thread + 1) / count;
    for (int64_t i = begin; i < end; ++i) f(again ? begin + end - 1 - i : i, scratch);
  }
}

template <typename C>
struct Scratch {
  alignas(64) C x[kBuffer], grad[kBuffer], out[kBuffer];
  alignas(64) C first[kGroup], second[kGroup], shift[kGroup];
  alignas(64) double sum_first[kGroup], sum_second[kGroup], sum_shift[kGroup];

  void clear(int64_t n) {
    std::fill_n(first, n, C(0));
    std::fill_n(second, n, C(0));
  }

  // sum_first and sum_second of n factors; the lanes of a row are added up.
  void add_up(bool per_row, int64_t n) {
    add_up(per_row, n, first, sum_first);
    add_up(per_row, n, second, sum_second);
  }

 private:
  static void add_up(bool per_row, int64_t n, const C* from, double* to) {
    if (!per_row) return void(std::copy_n(from, n, to));
    for (int64_t i = 0; i < n; ++i) {
      double sum = 0;
      for (int64_t j = 0; j < kLanes; ++j) sum += double(from[i * kLanes + j]);
      to[i] = sum;
    }
  }
};

// ---- pieces of tensors of type T as pieces in the type of the arithmetic, C

template <typename T, typename C>
const C* read(const T* from, int64_t rows, int64_t n, int64_t stride, C* buffer) {
  if (stride == n) n *= rows, rows = 1;
  for (int64_t r = 0; r < rows; ++r) convert(from + r * stride, n, buffer + r * n, SimdLevel::kAvx512);
  return buffer;
}

template <typename T, typename C>
void write(const C* buffer, int64_t rows, int64_t n, int64_t stride, T* to) {
  if (stride == n) n *= rows, rows = 1;
  for (int64_t r = 0; r < rows; ++r) convert(buffer + r * n, n, to + r * stride, SimdLevel::kAvx512);
}

// A tensor of a call, its gradient and its result, where there are any.
template <typename T>
struct Tensors {
  const T *x, *grad;
  T* out;

  // Calls f(piece) for every piece of group g of tile t.
  template <typename C, typename F>
  void pieces(const Grid& grid, const Grid::Tile& t, int64_t g, Scratch<C>& scratch, F f) const {
    constexpr bool kConverts = sizeof(T) != sizeof(C);
    grid.pieces(t, g, kConverts, [&](int64_t offset, int64_t rows, int64_t n, int64_t stride) {
      if constexpr (kConverts) {
        Piece<C> piece = {nullptr, nullptr, out ? scratch.out : nullptr, rows, n, n};
        piece.x = read(x + offset, rows, n, stride, scratch.x);
        if (grad) piece.grad = read(grad + offset, rows, n, stride, scratch.grad);
        f(piece);
        if (out) write(scratch.out, rows, n, stride, out + offset);
      } else {
        f(Piece<C>{x + offset, grad ? grad + offset : nullptr, out ? out + offset : nullptr, rows, n, stride});
      }
    });
  }
};

// ---- factors of every channel, or of every column

template <typename C>
class Coefficients {
 public:
  Coefficients(const NormAct& norm, const Grid& grid)
      : norm_(norm), grid_(grid), values_(size_t(5 * grid.width), C(0)) {}

  // Sets those of channels [begin, end); without sums, the statistics are constants.
  void set(int64_t begin, int64_t end, const double* sums = nullptr, double count = 1) {
    const int64_t width = grid_.width;
    for (int64_t c = begin; c < end; ++c) {
      const NormActChannel<C> channel(norm_, c);
      const NormActInput<C> input(channel, sums ? sums[c] : 0.0, sums ? sums[norm_.channels + c] : 0.0, count);
      grid_.factors(c, [&](int64_t i) {
        values_[i] = channel.center;
        values_[width + i] = channel.scale;
        values_[2 * width + i] = channel.shift;
        values_[3 * width + i] = input.slope;
        values_[4 * width + i] = input.offset;
      });
    }
  }

  Factors<C> from(int64_t i) const {
    const C* v = values_.data() + i;
    const int64_t width = grid_.width;
    return {v, v + width, v + 2 * width, v + 3 * width, v + 4 * width, norm_.act, C(norm_.slope), grid_.per_row};
  }

 private:
  const NormAct& norm_;
  const Grid& grid_;
  std::vector<C> values_;
};

}  // namespace
}  // namespace fastgan
