#include "polynomial_mmd.h"

#include <numeric>
#include <utility>
#include <vector>

#include "integer_blocks.h"

#ifdef FASTGAN_AVX2
namespace {

using namespace fastgan;

// A sample of a quarter of a group, and a subset that has it.
struct Membership {
  int32_t subset, row;
};

// Which samples are where, and in which subsets.
struct Side : Places {
  // Of quarter q of group g: memberships[begin[4 g + q]], and so on up to begin[4 g + q + 1], subset by subset.
  const int64_t* begin;
  const Membership* memberships;
  const int8_t* members;  // [subsets, stride] -1, all bits, where the sample at this place is a member, 0 elsewhere
  int64_t stride;
};

// Memberships of n samples in subsets, chosen: [subsets, size].
struct Members {
  int64_t n, stride;
  std::vector<int64_t> begin;
  std::vector<Membership> memberships;
  std::vector<int8_t> members;

  Members(const int64_t* chosen, int64_t count, int64_t size, int64_t n, const Cut& cut)
      : n(n), stride(cut.filled(n)), begin(4 * cut.groups(n) + 1), memberships(count * size), members(count * stride) {
    const auto place_of = [&](int64_t sample) {  // number of its quarter, among all, and its row in there
      const int64_t group = sample / kLargest, in_group = sample % kLargest, quarter = cut.layout(n, group).quarter();
      return std::pair(4 * group + in_group / quarter, in_group % quarter);
    };
    for (int64_t i = 0; i < count * size; ++i) ++begin[place_of(chosen[i]).first + 1];
    std::partial_sum(begin.begin(), begin.end(), begin.begin());
    std::vector<int64_t> next(begin.begin(), begin.end() - 1);
    for (int64_t s = 0; s < count; ++s)
      for (int64_t i = 0; i < size; ++i) {
        const int64_t sample = chosen[s * size + i];
        const auto [quarter, row] = place_of(sample);
        memberships[next[quarter]++] = {int32_t(s), int32_t(row)};
        members[s * stride + sample] = -1;
      }
  }

  Side side(const FixedSamples& samples, const int64_t* chosen) const {
    return {{&samples, chosen, n}, begin.data(), memberships.data(), members.data(), stride};
  }
};

// Eight whole masks of a byte each.
FASTGAN_AVX2 __m256 mask_of(const int8_t* members) {
  return _mm256_castsi256_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(members))));
}

// Adds to sums [subsets, 4 parts] those of values [rows, columns] over pairs of a subset's rows with its columns, that many
// times. members: [subsets, stride], from the first column on
template <int kPanels>
FASTGAN_AVX2 void among(const float* values, const Membership* row, const Membership* end, const int8_t* members,
                        int64_t stride, double times, double* sums) {
  while (row < end) {
    const int32_t subset = row->subset;
    __m256 columns[2 * kPanels];
    for (__m256& eight : columns) eight = _mm256_setzero_ps();
    for (; row < end && row->subset == subset; ++row)
      for (int v = 0; v < 2 * kPanels; ++v)
        columns[v] = _mm256_add_ps(columns[v], _mm256_load_ps(values + row->row * kPanels * kPanel + 8 * v));
    __m256 all = _mm256_setzero_ps();
    for (int v = 0; v < 2 * kPanels; ++v)
      all = _mm256_add_ps(all, _mm256_and_ps(columns[v], mask_of(members + subset * stride + 8 * v)));
    const __m256d four =
        _mm256_add_pd(_mm256_cvtps_pd(_mm256_castps256_ps128(all)), _mm256_cvtps_pd(_mm256_extractf128_ps(all, 1)));
    double* const sum = sums + 4 * subset;
    _mm256_storeu_pd(sum, _mm256_fmadd_pd(four, _mm256_set1_pd(times), _mm256_loadu_pd(sum)));
  }
}

// Adds to sums [subsets, 4 parts] those of k over the pairs of a part that are in a subset; of a side with itself each in both
// orders, and no sample with itself.
void add(const Side& x, const Side& y, const Part& part, double* sums) {
  if (part.same && part.first_row() == part.first_column())
    for (int64_t sample = 0; sample < part.columns; ++sample) part.values[sample * (part.columns + 1)] = 0;
  const double times = part.same && part.group != part.column ? 2 : 1;
  const int64_t panels = part.columns / kPanel;
  const auto sum = panels == 4 ? &among<4> : panels == 3 ? &among<3> : panels == 2 ? &among<2> : &among<1>;
  const int64_t* const begin = x.begin + 4 * part.group + part.row_quarter;
  sum(part.values, x.memberships + begin[0], x.memberships + begin[1], y.members + part.first_column(), y.stride, times, sums);
}

struct Totals {
  double *within, *across;  // [subsets, 4 parts]
};

// Every pair of two sides: of x with x, of x with y, of y with y.
class Blocks {
 public:
  Blocks(const Cut& cut, int64_t of_x, int64_t of_y) {
    const int64_t counts[2] = {of_x, of_y};
    for (int first = 0; first < 2; ++first)
      for (int64_t row = 0; row < cut.blocks(counts[first]); ++row)
        for (int second = first; second < 2; ++second) add_blocks(cut, first, row, second, counts[second], &places_);
  }

  int64_t count() const { return int64_t(places_.size()); }

  void run(int64_t i, BlockFunction& k, const Side (&sides)[2], const Totals& totals) const {
    const BlockPlace& at = places_[i];
    const Side &x = sides[at.first], &y = sides[at.second];
    double* const sums = at.first == at.second ? totals.within : totals.across;
    k.block(x, at.row, y, at.column, [&](const Part& part) { add(x, y, part, sums); });
  }

 private:
  std::vector<BlockPlace> places_;
};

double total(const double* four) { return (four[0] + four[1]) + (four[2] + four[3]); }

double distance(const PolynomialMmd& mmd, double within, double across) {
  const double size = double(mmd.size);
  return within / (size * (size - 1)) - 2 * across / (size * size);
}

void by_subsets(const PolynomialMmd& mmd, int threads) {
  const Cut cut(mmd.features, mmd.size);
  const Blocks blocks(cut, mmd.size, mmd.size);
  std::vector<int64_t> everyone(mmd.size);
  std::iota(everyone.begin(), everyone.end(), 0);
  const Members all(everyone.data(), 1, mmd.size, mmd.size, cut);
#pragma omp parallel num_threads(threads)
  {
    BlockFunction k(mmd.k, cut);
#pragma omp for schedule(dynamic, 1)
    for (int64_t s = 0; s < mmd.subsets; ++s) {
      const Side sides[2] = {all.side(mmd.x, mmd.first + s * mmd.size), all.side(mmd.y, mmd.second + s * mmd.size)};
      double within[4] = {}, across[4] = {};
      for (int64_t i = 0; i < blocks.count(); ++i) blocks.run(i, k, sides, {within, across});
      mmd.out[s] = distance(mmd, total(within), total(across));
    }
  }
}

void by_pairs(const PolynomialMmd& mmd, int threads) {
  const Cut cut(mmd.features, std::max(mmd.x.n, mmd.y.n));
  const Blocks blocks(cut, mmd.x.n, mmd.y.n);
  const Members in_x(mmd.first, mmd.subsets, mmd.size, mmd.x.n, cut);
  const Members in_y(mmd.second, mmd.subsets, mmd.size, mmd.y.n, cut);
  const Side sides[2] = {in_x.side(mmd.x, nullptr), in_y.side(mmd.y, nullptr)};
  const int64_t each = 4 * mmd.subsets;
  std::vector<double> sums(2 * blocks.count() * each);  // each block's own, so that they add up in one order
#pragma omp parallel num_threads(threads)
  {
    BlockFunction k(mmd.k, cut);
#pragma omp for schedule(dynamic, 1)
    for (int64_t i = 0; i < blocks.count(); ++i) {
      double* const own = sums.data() + 2 * i * each;
      blocks.run(i, k, sides, {own, own + each});
    }
  }
  for (int64_t s = 0; s < mmd.subsets; ++s) {
    double within = 0, across = 0;
    for (int64_t i = 0; i < blocks.count(); ++i) {
      within += total(sums.data() + 2 * i * each + 4 * s);
      across += total(sums.data() + (2 * i + 1) * each + 4 * s);
    }
    mmd.out[s] = distance(mmd, within, across);
  }
}

}  // namespace

void fastgan_polynomial_mmd_cpu(const PolynomialMmd* mmd, int threads) {
  mmd->shared ? by_pairs(*mmd, threads) : by_subsets(*mmd, threads);
}
#else
void fastgan_polynomial_mmd_cpu(const fastgan::PolynomialMmd*, int) {}
#endif
