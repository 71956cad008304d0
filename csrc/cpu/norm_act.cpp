#include <limits>
#include <vector>

#include "norm_act_parts.h"

namespace {

using namespace fastgan;

constexpr int64_t kGrain = 32768;       // elements that are worth a thread
constexpr int64_t kCached = 512 << 10;  // bytes that stay in a core's own cache from one pass to the next

// ---- two sums per factor, of every chunk and in the end of all

// first[c, i] and second[c, i] of chunk c and factor i, and their totals at the end.
class Partials {
 public:
  explicit Partials(const Grid& grid)
      : grid_(grid), values_(size_t(2 * (grid.chunks + 1) * grid.width), 0.0) {}
  double* first(int64_t chunk) { return values_.data() + 2 * chunk * grid_.width; }
  double* second(int64_t chunk) { return first(chunk) + grid_.width; }
  double* total_first() { return first(grid_.chunks); }
  double* total_second() { return second(grid_.chunks); }

 private:
  const Grid& grid_;
  std::vector<double> values_;
};

// A guess of the means of group g in tile t: that of the first elements, which are in one line of the cache. With the
// mean of m of n numbers, sum (x - guess)^2 is at most n / m times sum (x - mean)^2 (Cauchy-Schwarz): 256 times, or two
// decimal digits, whatever the numbers are, and about once for those of one distribution.
template <typename T, typename C>
void guess_means(const Grid& grid, const Grid::Tile& t, int64_t g, const T* x, C* means) {
  const int64_t begin = grid.group_begin(g), n = grid.group_end(g, t) - begin;
  if (!grid.per_row) {
    x += t.first * grid.width + begin;
    for (int64_t i = 0; i < n; ++i) means[i] = C(x[i]);
    return;
  }
  const int64_t samples = std::min(t.end - t.begin, kLanes);
  for (int64_t i = 0; i < n; ++i) {
    const T* first = x + (t.first * grid.channels + begin + i) * grid.inner + t.begin;
    C sum = 0;
    for (int64_t k = 0; k < samples; ++k) sum += C(first[k]);
    means[i] = sum / C(samples);
  }
}

// Sums of d = x - scratch.shift and of d^2 of group g in one tile, in double.
template <typename T, typename C>
void tile_moments(const Grid& grid, const Grid::Tile& tile, int64_t g, int64_t n, const Tensors<T>& tensors,
                  Scratch<C>& scratch) {
  scratch.clear(grid.per_row ? n * kLanes : n);
  Factors<C> factors = {};
  factors.center = scratch.shift;
  factors.per_row = grid.per_row;
  tensors.pieces(grid, tile, g, scratch,
                 [&](const Piece<C>& p) { add_moments(p, factors, {scratch.first, scratch.second}); });
  scratch.add_up(grid.per_row, n);
}

// Mean and sum of squared differences of group g in one chunk.
template <typename T, typename C>
void chunk_moments(const Grid& grid, int64_t chunk, int64_t g, const Tensors<T>& tensors, Partials& partials,
                   Scratch<C>& scratch) {
  const int64_t begin = grid.group_begin(g);
  double count = 0;
  for (int64_t i = grid.chunk_begin(chunk); i < grid.chunk_begin(chunk + 1); ++i) {
    const Grid::Tile tile = grid.tile(i);
    const int64_t n = grid.group_end(g, tile) - begin;
    if (n <= 0) continue;
    const double more = double(grid.shared(tile));
    guess_means(grid, tile, g, tensors.x, scratch.shift);
    tile_moments(grid, tile, g, n, tensors, scratch);
    std::copy_n(scratch.shift, n, scratch.sum_shift);
    merge_moments(n, partials.first(chunk) + begin, partials.second(chunk) + begin, count, scratch.sum_shift,
                  scratch.sum_first, scratch.sum_second, more);
    count += more;
  }
}

// Totals of group g over the chunks.
void merge_chunks(const Grid& grid, int64_t g, Partials& partials) {
  const int64_t begin = grid.group_begin(g);
  const std::vector<double> zeros(size_t(grid.group), 0.0);
  double count = 0;
  for (int64_t chunk = 0; chunk < grid.chunks; ++chunk) {
    double more = 0;
    for (int64_t i = grid.chunk_begin(chunk); i < grid.chunk_begin(chunk + 1); ++i)
      more += double(grid.shared(grid.tile(i)));
    const int64_t n = grid.group_end(g, grid.tile(grid.chunk_begin(chunk))) - begin;
    if (n > 0)
      merge_moments(n, partials.total_first() + begin, partials.total_second() + begin, count,
                    partials.first(chunk) + begin, zeros.data(), partials.second(chunk) + begin, more);
    count += more;
  }
}

// Mean and biased variance of channel c from the totals of its factors.
void finish_moments(const Grid& grid, int64_t c, Partials& partials, double* mean, double* var) {
  const double *means = partials.total_first(), *squares = partials.total_second();
  double sum = 0, m2 = 0, count = 0;
  grid.factors(c, [&](int64_t i) {
    sum += double(grid.elements(i)) * means[i];
    count += double(grid.elements(i));
  });
  mean[c] = grid.per_row ? means[c] : sum / count;
  grid.factors(c, [&](int64_t i) {
    const double delta = means[i] - mean[c];
    m2 += squares[i] + double(grid.elements(i)) * delta * delta;
  });
  var[c] = m2 / count;
}

// Sums of dz and dz (x - center) of group g in one chunk.
template <typename T, typename C>
void chunk_gradients(const Grid& grid, int64_t chunk, int64_t g, const Tensors<T>& tensors, const Factors<C>& factors,
                     Partials& partials, Scratch<C>& scratch) {
  const int64_t begin = grid.group_begin(g);
  for (int64_t i = grid.chunk_begin(chunk); i < grid.chunk_begin(chunk + 1); ++i) {
    const Grid::Tile tile = grid.tile(i);
    const int64_t n = grid.group_end(g, tile) - begin;
    if (n <= 0) continue;
    scratch.clear(grid.per_row ? n * kLanes : n);
    tensors.pieces(grid, tile, g, scratch,
                   [&](const Piece<C>& p) { add_gradients(p, factors, {scratch.first, scratch.second}); });
    scratch.add_up(grid.per_row, n);
    for (int64_t j = 0; j < n; ++j) partials.first(chunk)[begin + j] += scratch.sum_first[j];
    for (int64_t j = 0; j < n; ++j) partials.second(chunk)[begin + j] += scratch.sum_second[j];
  }
}

void add_chunks(const Grid& grid, int64_t g, Partials& partials) {
  const int64_t begin = grid.group_begin(g), end = std::min(begin + grid.group, grid.width);
  for (int64_t chunk = 0; chunk < grid.chunks; ++chunk) {
    for (int64_t i = begin; i < end; ++i) partials.total_first()[i] += partials.first(chunk)[i];
    for (int64_t i = begin; i < end; ++i) partials.total_second()[i] += partials.second(chunk)[i];
  }
}

template <typename C>
void finish_gradients(const Grid& grid, int64_t c, Partials& partials, const NormActChannel<C>& channel,
                      double* sums) {
  double first = 0, second = 0;
  grid.factors(c, [&](int64_t i) {
    first += partials.total_first()[i];
    second += partials.total_second()[i];
  });
  sums[c] = first;
  sums[grid.channels + c] = channel.sum_normalised(first, second);
}

// ---- a whole tensor: elements in T, arithmetic in C

template <typename T, typename C>
class Pass {
 public:
  Pass(const NormAct& norm, int threads, const void* grad, void* out)
      : norm_(norm),
        grid_(norm),
        tensors_{static_cast<const T*>(norm.x), static_cast<const T*>(grad), static_cast<T*>(out)},
        numel_(norm.outer * norm.channels * norm.inner),
        threads_(int(std::min<int64_t>(threads, (numel_ + kGrain - 1) / kGrain))) {}

  void stats(double* mean, double* var) {
    Partials partials(grid_);
    each(false, [&](int64_t chunk, int64_t g, Scratch<C>& scratch) {
      chunk_moments(grid_, chunk, g, reading(), partials, scratch);
    });
    for (int64_t g = 0; g < grid_.groups; ++g) merge_chunks(grid_, g, partials);
    for (int64_t c = 0; c < grid_.channels; ++c) finish_moments(grid_, c, partials, mean, var);
  }

  void normalise(bool again) {
    Coefficients<C> coefficients(norm_, grid_);
    coefficients.set(0, grid_.channels);
    each(again, [&](int64_t chunk, int64_t g, Scratch<C>& scratch) { normalise(chunk, g, coefficients, scratch); });
  }

  void sums(double* sums) {
    Partials partials(grid_);
    Coefficients<C> coefficients(norm_, grid_);
    coefficients.set(0, grid_.channels);
    each(false, [&](int64_t chunk, int64_t g, Scratch<C>& scratch) {
      chunk_gradients(grid_, chunk, g, reading(), coefficients.from(grid_.group_begin(g)), partials, scratch);
    });
    for (int64_t g = 0; g < grid_.groups; ++g) add_chunks(grid_, g, partials);
    for (int64_t c = 0; c < grid_.channels; ++c)
      finish_gradients(grid_, c, partials, NormActChannel<C>(norm_, c), sums);
  }

  void input(const double* sums, double count, bool again) {
    Coefficients<C> coefficients(norm_, grid_);
    coefficients.set(0, grid_.channels, sums, count);
    each(again, [&](int64_t chunk, int64_t g, Scratch<C>& scratch) { input(chunk, g, coefficients, scratch); });
  }

  // A group at a time, where what it reads stays in the cache for the second pass, and there are groups for everyone.
  void train(double* mean, double* var) {
    if (!one_by_one(1)) {
      stats(mean, var);
      norm_.mean = mean, norm_.var = var;
      return normalise(true);
    }
    Partials partials(grid_);
    norm_.mean = mean, norm_.var = var;
    Coefficients<C> coefficients(norm_, grid_);
    parallel<Scratch<C>>(grid_.groups, threads_, false, [&](int64_t g, Scratch<C>& scratch) {
      for (int64_t k = 0; k < grid_.chunks; ++k) chunk_moments(grid_, k, g, reading(), partials, scratch);
      merge_chunks(grid_, g, partials);
      const int64_t begin = grid_.group_begin(g), end = std::min(begin + grid_.group, grid_.width);
      for (int64_t c = begin; c < end; ++c) finish_moments(grid_, c, partials, mean, var);
      coefficients.set(begin, end);
      for (int64_t k = grid_.chunks; k-- > 0;) normalise(k, g, coefficients, scratch);
    });
  }

  void backward(bool training, double* sums) {
    const double count = double(norm_.outer * norm_.inner);
    if (!one_by_one(2)) {
      this->sums(sums);
      return input(training ? sums : nullptr, count, true);
    }
    Partials partials(grid_);
    Coefficients<C> coefficients(norm_, grid_);
    parallel<Scratch<C>>(grid_.groups, threads_, false, [&](int64_t g, Scratch<C>& scratch) {
      const int64_t begin = grid_.group_begin(g), end = std::min(begin + grid_.group, grid_.width);
      coefficients.set(begin, end);
      for (int64_t k = 0; k < grid_.chunks; ++k)
        chunk_gradients(grid_, k, g, reading(), coefficients.from(begin), partials, scratch);
      add_chunks(grid_, g, partials);
      for (int64_t c = begin; c < end; ++c)
        finish_gradients(grid_, c, partials, NormActChannel<C>(norm_, c), sums);
      coefficients.set(begin, end, training ? sums : nullptr, count);
      for (int64_t k = grid_.chunks; k-- > 0;) input(k, g, coefficients, scratch);
    });
  }

 private:
  Tensors<T> reading() const { return {tensors_.x, tensors_.grad, nullptr}; }

  bool one_by_one(int64_t tensors) const {
    const int64_t bytes = tensors * norm_.outer * std::min(grid_.group, grid_.width) * norm_.inner * int64_t(sizeof(T));
    return grid_.per_row && bytes <= kCached && grid_.groups >= 2 * threads_;
  }

  // Calls f(chunk, group, scratch) for all.
  template <typename F>
  void each(bool again, F f) {
    parallel<Scratch<C>>(grid_.chunks * grid_.groups, threads_, again, [&](int64_t item, Scratch<C>& scratch) {
      f(item / grid_.groups, item % grid_.groups, scratch);
    });
  }

  void normalise(int64_t chunk, int64_t g, const Coefficients<C>& coefficients, Scratch<C>& scratch) {
    const Factors<C> factors = coefficients.from(grid_.group_begin(g));
    for (int64_t i = grid_.chunk_begin(chunk + 1); i-- > grid_.chunk_begin(chunk);)
      tensors_.pieces(grid_, grid_.tile(i), g, scratch, [&](const Piece<C>& p) { fastgan::normalise(p, factors); });
  }

  void input(int64_t chunk, int64_t g, const Coefficients<C>& coefficients, Scratch<C>& scratch) {
    const Factors<C> factors = coefficients.from(grid_.group_begin(g));
    for (int64_t i = grid_.chunk_begin(chunk + 1); i-- > grid_.chunk_begin(chunk);)
      tensors_.pieces(grid_, grid_.tile(i), g, scratch, [&](const Piece<C>& p) { input_gradient(p, factors); });
  }

  NormAct norm_;
  Grid grid_;
  Tensors<T> tensors_;
  int64_t numel_;
  int threads_;
};

// Calls f(pass) with a Pass of the type.
template <typename F>
void dispatch(const NormAct& norm, NormActType type, int threads, const void* grad, void* out, F f) {
  switch (type) {
    case NormActType::kFloat: return f(Pass<float, float>(norm, threads, grad, out));
    case NormActType::kDouble: return f(Pass<double, double>(norm, threads, grad, out));
    case NormActType::kBFloat16: return f(Pass<BFloat16, float>(norm, threads, grad, out));
    case NormActType::kHalf: return f(Pass<Half, float>(norm, threads, grad, out));
  }
}

bool is_empty(const NormAct& norm) { return norm.outer == 0 || norm.channels == 0 || norm.inner == 0; }

void fill_nan(int64_t n, double* to) { std::fill_n(to, n, std::numeric_limits<double>::quiet_NaN()); }

}  // namespace

void fastgan_norm_act_stats_cpu(const NormAct* norm, NormActType type, double* mean, double* var, int threads) {
  if (is_empty(*norm)) return fill_nan(norm->channels, mean), fill_nan(norm->channels, var);
  dispatch(*norm, type, threads, nullptr, nullptr, [&](auto pass) { pass.stats(mean, var); });
}

void fastgan_norm_act_cpu(const NormAct* norm, NormActType type, void* out, int threads) {
  if (is_empty(*norm)) return;
  dispatch(*norm, type, threads, nullptr, out, [&](auto pass) { pass.normalise(false); });
}

void fastgan_norm_act_sums_cpu(const NormAct* norm, NormActType type, const void* grad, double* sums, int threads) {
  if (is_empty(*norm)) return void(std::fill_n(sums, 2 * norm->channels, 0.0));
  dispatch(*norm, type, threads, grad, nullptr, [&](auto pass) { pass.sums(sums); });
}

void fastgan_norm_act_input_cpu(const NormAct* norm, NormActType type, const void* grad, const double* sums,
                                double count, void* dx, int threads) {
  if (is_empty(*norm)) return;
  dispatch(*norm, type, threads, grad, dx, [&](auto pass) { pass.input(sums, count, false); });
}

void fastgan_norm_act_train_cpu(const NormAct* norm, NormActType type, double* mean, double* var, void* out,
                                int threads) {
  if (is_empty(*norm)) return fill_nan(norm->channels, mean), fill_nan(norm->channels, var);
  dispatch(*norm, type, threads, nullptr, out, [&](auto pass) { pass.train(mean, var); });
}

void fastgan_norm_act_backward_cpu(const NormAct* norm, NormActType type, const void* grad, bool training,
                                   double* sums, void* dx, int threads) {
  if (is_empty(*norm)) return void(std::fill_n(sums, 2 * norm->channels, 0.0));
  dispatch(*norm, type, threads, grad, dx, [&](auto pass) { pass.backward(training, sums); });
}
