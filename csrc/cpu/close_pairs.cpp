#include "close_pairs.h"

#include <cmath>
#include <limits>
#include <memory>
#include <mutex>
#include <utility>
#include <vector>

#include "integer_blocks.h"

#ifdef FASTGAN_AVX2
namespace {

using namespace fastgan;

constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr PairFunction kLeast = {-2, 0, 0, 1};

// A float per place, up to where the last group ends: no pair of a place behind the last sample is close.
std::vector<float> limits(const Cut& cut, int64_t count, float of_all) {
  std::vector<float> out(cut.filled(count), -kInfinity);
  std::fill_n(out.begin(), count, of_all);
  return out;
}

// Calls take(place of x, place of y, value) for values up to the greater of the limits of both.
template <typename Take>
FASTGAN_AVX2 void each_within(const Part& part, const float* x_limits, const float* y_limits, const Take& take) {
  const int64_t first_row = part.first_row(), first_column = part.first_column();
  for (int64_t row = 0; row < part.rows; ++row) {
    const float* const values = part.values + row * part.columns;
    const __m256 limit = _mm256_set1_ps(x_limits[first_row + row]);
    for (int64_t column = 0; column < part.columns; column += 8) {
      const __m256 either = _mm256_max_ps(limit, _mm256_loadu_ps(y_limits + first_column + column));
      unsigned close = _mm256_movemask_ps(_mm256_cmp_ps(_mm256_load_ps(values + column), either, _CMP_LE_OQ));
      for (; close != 0; close &= close - 1) {
        const int64_t at = column + __builtin_ctz(close);
        take(first_row + row, first_column + at, values[at]);
      }
    }
  }
}

// ---- the nearest

struct Neighbour {
  float least;
  int32_t who;

  bool operator<(const Neighbour& other) const {
    return least < other.least || (least == other.least && who < other.who);
  }
};

// Of each sample the nearest that one thread has seen, ascending.
class Lists {
 public:
  Lists(const Cut& cut, int64_t n, int64_t count)
      : n_(n), count_(count), limits_(limits(cut, n, kInfinity)), lists_(n * count, {kInfinity, INT32_MAX}) {}

  const float* limits_of_all() const { return limits_.data(); }
  const Neighbour* of(int64_t sample) const { return lists_.data() + sample * count_; }

  // Places behind the last sample are nobody's neighbours.
  void offer_both(int64_t i, int64_t j, float least) {
    if (i >= n_ || j >= n_) return;
    offer(i, {least, int32_t(j)});
    offer(j, {least, int32_t(i)});
  }

 private:
  void offer(int64_t sample, Neighbour one) {
    Neighbour* const list = lists_.data() + sample * count_;
    if (!(one < list[count_ - 1])) return;
    int64_t place = count_ - 1;
    for (; place > 0 && one < list[place - 1]; --place) list[place] = list[place - 1];
    list[place] = one;
    limits_[sample] = list[count_ - 1].least;
  }

  int64_t n_, count_;
  std::vector<float> limits_;
  std::vector<Neighbour> lists_;
};

// The nearest of one sample in the lists of all threads.
void merge(const std::vector<std::unique_ptr<Lists>>& of_threads, int64_t sample, const Nearest& to) {
  std::vector<Neighbour> all;
  for (const auto& lists : of_threads) all.insert(all.end(), lists->of(sample), lists->of(sample) + to.count);
  std::partial_sort(all.begin(), all.begin() + to.count, all.end());
  for (int64_t k = 0; k < to.count; ++k) {
    to.least[sample * to.count + k] = all[k].least;
    to.who[sample * to.count + k] = all[k].who;
  }
}

// ---- within borders

// Adds to counters that all threads share; seldom enough.
template <typename T>
T add_one(T* counter) {
  return __atomic_fetch_add(counter, T(1), __ATOMIC_RELAXED);
}

// The greatest border of any rule.
std::vector<float> greatest(const Cut& cut, int64_t count, int64_t rules, const float* borders) {
  std::vector<float> out = limits(cut, count, -kInfinity);
  for (int64_t r = 0; r < rules; ++r)
    for (int64_t i = 0; i < count; ++i) out[i] = std::max(out[i], borders[r * count + i]);
  return out;
}

// Whether it is certain that a pair is inside: then it is counted. `doubtful` gets the bit where it is not known.
bool is_inside(float least, float width, float border, int32_t bit, int32_t* doubtful) {
  if (least > border) return false;
  if (least + width < border) return true;
  *doubtful |= bit;
  return false;
}

void decide(const Within& of, int64_t i, int64_t j, float least, int64_t* pairs) {
  const float width = 2 * (of.x_margin[i] + of.y_margin[j]);
  int32_t doubtful = 0;
  for (int64_t r = 0; r < of.rules; ++r) {
    const int64_t in_x = r * of.x.n + i, in_y = r * of.y.n + j;
    if (is_inside(least, width, of.x_border[in_x], 1 << 2 * r, &doubtful)) add_one(of.around_y + in_y), add_one(of.inside_x + in_x);
    if (is_inside(least, width, of.y_border[in_y], 2 << 2 * r, &doubtful)) add_one(of.around_x + in_x);
  }
  if (doubtful == 0) return;
  const int64_t at = add_one(pairs);
  if (at < of.room) of.doubtful[at] = {int32_t(i), int32_t(j), doubtful};
}

// ---- in double

FASTGAN_AVX2 __m256d four_of(const float* from) { return _mm256_cvtps_pd(_mm_loadu_ps(from)); }
FASTGAN_AVX2 __m256d four_of(const double* from) { return _mm256_loadu_pd(from); }

template <typename T>
FASTGAN_AVX2 double distance(const T* x, const T* y, int64_t d) {
  __m256d sums[4];
  for (__m256d& sum : sums) sum = _mm256_setzero_pd();
  int64_t k = 0;
  for (; k + 16 <= d; k += 16)
    for (int v = 0; v < 4; ++v) {
      const __m256d apart = _mm256_sub_pd(four_of(x + k + 4 * v), four_of(y + k + 4 * v));
      sums[v] = _mm256_fmadd_pd(apart, apart, sums[v]);
    }
  double lanes[4], rest = 0;
  _mm256_storeu_pd(lanes, _mm256_add_pd(_mm256_add_pd(sums[0], sums[1]), _mm256_add_pd(sums[2], sums[3])));
  for (; k < d; ++k) rest += (double(x[k]) - double(y[k])) * (double(x[k]) - double(y[k]));
  return std::sqrt((lanes[0] + lanes[1]) + (lanes[2] + lanes[3]) + rest);
}

template <typename T>
void distances(const PairDistances& of, int threads) {
  const T *const x = static_cast<const T*>(of.x), *const y = static_cast<const T*>(of.y);
#pragma omp parallel for num_threads(threads) schedule(static)
  for (int64_t p = 0; p < of.count; ++p) of.out[p] = distance(x + of.i[p] * of.d, y + of.j[p] * of.d, of.d);
}

}  // namespace

void fastgan_nearest_cpu(const Nearest* of, int threads) {
  const Cut cut(of->features, of->x.n);
  const Places places{&of->x, nullptr, of->x.n};
  std::vector<BlockPlace> blocks;
  for (int64_t row = 0; row < cut.blocks(of->x.n); ++row) add_blocks(cut, 0, row, 0, of->x.n, &blocks);
  std::vector<std::unique_ptr<Lists>> of_threads;
  std::mutex adding;
#pragma omp parallel num_threads(threads)
  {
    BlockFunction least(kLeast, cut);
    auto own = std::make_unique<Lists>(cut, of->x.n, of->count);
    Lists& lists = *own;
    {
      const std::lock_guard<std::mutex> lock(adding);
      of_threads.push_back(std::move(own));
    }
#pragma omp for schedule(dynamic, 1)
    for (int64_t b = 0; b < int64_t(blocks.size()); ++b)
      least.block(places, blocks[b].row, places, blocks[b].column, [&](const Part& part) {
        const bool on_diagonal = part.group == part.column;
        each_within(part, lists.limits_of_all(), lists.limits_of_all(), [&](int64_t i, int64_t j, float value) {
          if (!on_diagonal || i < j) lists.offer_both(i, j, value);
        });
      });
#pragma omp for schedule(static)
    for (int64_t sample = 0; sample < of->x.n; ++sample) merge(of_threads, sample, *of);
  }
}

int64_t fastgan_within_cpu(const Within* of, int threads) {
  const Cut cut(of->features, std::max(of->x.n, of->y.n));
  const Places x{&of->x, nullptr, of->x.n}, y{&of->y, nullptr, of->y.n};
  const std::vector<float> x_limits = greatest(cut, x.count, of->rules, of->x_border),
                           y_limits = greatest(cut, y.count, of->rules, of->y_border);
  std::vector<BlockPlace> blocks;
  for (int64_t row = 0; row < cut.blocks(x.count); ++row) add_blocks(cut, 0, row, 1, y.count, &blocks);
  int64_t pairs = 0;
#pragma omp parallel num_threads(threads)
  {
    BlockFunction least(kLeast, cut);
#pragma omp for schedule(dynamic, 1)
    for (int64_t b = 0; b < int64_t(blocks.size()); ++b) {
      if (__atomic_load_n(&pairs, __ATOMIC_RELAXED) > of->room) continue;
      least.block(x, blocks[b].row, y, blocks[b].column, [&](const Part& part) {
        each_within(part, x_limits.data(), y_limits.data(), [&](int64_t i, int64_t j, float value) {
          if (i < x.count && j < y.count) decide(*of, i, j, value, &pairs);
        });
      });
    }
  }
  return pairs;
}

bool fastgan_pair_distances_here() { return has_avx2(); }

void fastgan_pair_distances_cpu(const PairDistances* of, int threads) {
  of->wide ? distances<double>(*of, threads) : distances<float>(*of, threads);
}
#else
void fastgan_nearest_cpu(const fastgan::Nearest*, int) {}
int64_t fastgan_within_cpu(const fastgan::Within*, int) { return 0; }
bool fastgan_pair_distances_here() { return false; }
void fastgan_pair_distances_cpu(const fastgan::PairDistances*, int) {}
#endif
