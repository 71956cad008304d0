#include "polynomial_mmd.h"

#include <numeric>
#include <utility>
#include <vector>

#include "integer_products.h"
#include "large_pages.h"

#ifdef FASTGAN_AVX2
namespace {

using namespace fastgan;

constexpr int64_t kLargest = 256;  // samples of a group
constexpr int64_t kGroups = 8;     // of rows, a block, whose operands are kept while groups of columns pass

int64_t parts(int64_t count, int64_t of) { return (count + of - 1) / of; }

// Sides into groups, and those into blocks. All groups are as large as they can be but a side's last.
struct Cut {
  int64_t features;
  int64_t kept;         // groups of a block
  GroupLayout largest;  // of all groups

  // most: samples of a side
  Cut(int64_t features, int64_t most)
      : features(features), kept(std::min(kGroups, groups(most))), largest(layout(most, 0)) {}

  int64_t groups(int64_t count) const { return parts(count, kLargest); }
  int64_t blocks(int64_t count) const { return parts(groups(count), kept); }
  // Samples up to where a side's last group ends.
  int64_t filled(int64_t count) const { return parts(count, 4 * kPanel) * 4 * kPanel; }
  // Of a side's group.
  GroupLayout layout(int64_t count, int64_t group) const {
    return {features, std::min(kLargest, filled(count) - group * kLargest) / (4 * kPanel)};
  }
};

// A sample of a quarter of a group, and a subset that has it.
struct Membership {
  int32_t subset, row;
};

// Which samples are where, and in which subsets.
struct Side {
  const FixedSamples* samples;
  const int64_t* chosen;  // [count] samples, or null: the first `count` as they are
  int64_t count;
  // Of quarter q of group g: memberships[begin[4 g + q]], and so on up to begin[4 g + q + 1], subset by subset.
  const int64_t* begin;
  const Membership* memberships;
  const int8_t* members;  // [subsets, stride] -1, all bits, where the sample at this place is a member, 0 elsewhere
  int64_t stride;

  int64_t at(int64_t place) const {
    const int64_t last = std::min(place, count - 1);  // a group is filled up with the last sample
    return chosen ? chosen[last] : last;
  }
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
    return {&samples, chosen, n, begin.data(), memberships.data(), members.data(), stride};
  }
};

// A group of samples, packed for products from the left or from the right.
struct Group {
  GroupLayout layout;
  Operands operands;
  float* units;    // [samples]
  float* base[2];  // [samples]
};

// Memory for groups.
class Groups {
 public:
  Groups(const GroupLayout& largest, int64_t count)
      : largest_(largest), values_(count * kOperands * largest.part_bytes()), pairs_(count * kParts * largest.quarter()),
        numbers_(count * 3 * largest.samples()) {}

  Group at(int64_t i, const GroupLayout& layout) const {
    float* const numbers = numbers_.begin() + i * 3 * largest_.samples();
    return {layout,
            {values_.begin() + i * kOperands * largest_.part_bytes(), pairs_.begin() + i * kParts * largest_.quarter()},
            numbers,
            {numbers + layout.samples(), numbers + 2 * layout.samples()}};
  }

 private:
  GroupLayout largest_;
  LargePages<char> values_;
  LargePages<int32_t> pairs_;
  LargePages<float> numbers_;
};

// Sums of k over pairs of samples, block by block, in the memory of one thread.
class Worker {
 public:
  Worker(const PolynomialMmd& mmd, const Cut& cut)
      : mmd_(mmd), cut_(cut), left_(cut.largest, cut.kept), right_(cut.largest, 1), slices_(kParts * kSliceBytes),
        rows_(cut.largest.samples()), own_(kOperands * cut.largest.quarter()), sums_(kParts * products()),
        inner_(7 * products()), values_(products()) {}

  // Adds to sums [subsets, 4 parts] those of k over the pairs of block `row` of x with group `column` of y that are in a subset;
  // of a side with itself those up to the diagonal, each in both orders, and no sample with itself.
  void block(const Side& x, int64_t row, const Side& y, int64_t column, double* sums) {
    const int64_t first = row * cut_.kept, end = std::min(first + cut_.kept, cut_.groups(x.count));
    if (x.samples != of_ || x.chosen != chosen_ || row != row_)
      for (int64_t i = first; i < end; ++i) pack(x, i, kLeftTerms, left_.at(i - first, cut_.layout(x.count, i)));
    of_ = x.samples, chosen_ = x.chosen, row_ = row;
    const Group columns = right_.at(0, cut_.layout(y.count, column));
    pack(y, column, kRightTerms, columns);
    for (int64_t i = first; i < (&x == &y ? std::min(end, column + 1) : end); ++i) {
      const Group rows = left_.at(i - first, cut_.layout(x.count, i));
      group_products(rows.layout, rows.operands, columns.layout, columns.operands, sums_.begin(), inner_.begin());
      add(x, i, rows, y, column, columns, sums);
    }
  }

 private:
  // Of the largest part.
  int64_t products() const { return cut_.largest.quarter() * cut_.largest.quarter(); }

  void pack(const Side& from, int64_t group, const AllTerms& terms, const Group& to) {
    for (int64_t i = 0; i < to.layout.samples(); ++i) {
      const int64_t sample = from.at(group * kLargest + i);
      rows_[i] = from.samples->values + sample * mmd_.features;
      to.units[i] = from.samples->units[sample];
      for (int s = 0; s < 2; ++s) to.base[s][i] = from.samples->base[s][sample];
    }
    make_operands(to.layout, rows_.data(), terms, to.operands, slices_.begin(), own_.begin());
  }

  // k of a part, a quarter of one group with a quarter of another, into values_ [rows, columns].
  FASTGAN_AVX2 void part_values(const Group& x, const Group& y, int64_t part, bool same) {
    const int64_t rows = x.layout.quarter(), columns = y.layout.quarter();
    const int32_t *const sums = sums_.begin() + part * rows * columns, *const of_rows = x.operands.pairs + part * rows,
                  *const of_columns = y.operands.pairs + part * columns;
    const float *const row_units = x.units + part / 4 * rows, *const row_base = x.base[!same] + part / 4 * rows,
                *const column_units = y.units + part % 4 * columns, *const column_base = y.base[!same] + part % 4 * columns;
    const __m256 shift = _mm256_set1_ps(mmd_.shift), middle = _mm256_set1_ps(mmd_.middle);
    for (int64_t row = 0; row < rows; ++row) {
      const __m256 unit = _mm256_set1_ps(mmd_.gamma * row_units[row]), base = _mm256_set1_ps(row_base[row]);
      const __m256i of_row = _mm256_set1_epi32(of_rows[row]);
      for (int64_t column = 0; column < columns; column += 8) {
        const int32_t* const at = sums + column / kPanel * kPanel * rows + row * kPanel + column % kPanel;
        const __m256i pairs = _mm256_add_epi32(of_row, _mm256_load_si256(reinterpret_cast<const __m256i*>(of_columns + column)));
        const __m256i sum = _mm256_sub_epi32(_mm256_load_si256(reinterpret_cast<const __m256i*>(at)), pairs);
        const __m256 units = _mm256_mul_ps(unit, _mm256_load_ps(column_units + column));
        const __m256 bases = _mm256_add_ps(base, _mm256_load_ps(column_base + column));
        const __m256 value = _mm256_add_ps(_mm256_fmadd_ps(_mm256_cvtepi32_ps(sum), units, bases), middle);
        __m256 power = value;
        for (int i = 1; i < mmd_.degree; ++i) power = _mm256_mul_ps(power, value);
        _mm256_store_ps(values_.begin() + row * columns + column, _mm256_sub_ps(power, shift));
      }
    }
  }

  // Eight whole masks of a byte each.
  static FASTGAN_AVX2 __m256 mask_of(const int8_t* members) {
    return _mm256_castsi256_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(members))));
  }

  // Adds to sums [subsets, 4 parts] those of values_ over pairs of a subset's rows with its columns, that many times.
  // members: [subsets, stride], from the first column on
  template <int kPanels>
  FASTGAN_AVX2 void among(const Membership* row, const Membership* end, const int8_t* members, int64_t stride, double times,
                          double* sums) const {
    while (row < end) {
      const int32_t subset = row->subset;
      __m256 columns[2 * kPanels];
      for (__m256& eight : columns) eight = _mm256_setzero_ps();
      for (; row < end && row->subset == subset; ++row)
        for (int v = 0; v < 2 * kPanels; ++v)
          columns[v] = _mm256_add_ps(columns[v], _mm256_load_ps(values_.begin() + row->row * kPanels * kPanel + 8 * v));
      __m256 all = _mm256_setzero_ps();
      for (int v = 0; v < 2 * kPanels; ++v)
        all = _mm256_add_ps(all, _mm256_and_ps(columns[v], mask_of(members + subset * stride + 8 * v)));
      const __m256d four =
          _mm256_add_pd(_mm256_cvtps_pd(_mm256_castps256_ps128(all)), _mm256_cvtps_pd(_mm256_extractf128_ps(all, 1)));
      double* const sum = sums + 4 * subset;
      _mm256_storeu_pd(sum, _mm256_fmadd_pd(four, _mm256_set1_pd(times), _mm256_loadu_pd(sum)));
    }
  }

  // Sums of k, whose products sums_ has, over pairs of group i of x with group j of y.
  void add(const Side& x, int64_t i, const Group& rows, const Side& y, int64_t j, const Group& columns, double* sums) {
    const bool same = &x == &y, on_diagonal = same && i == j;
    const double times = same && !on_diagonal ? 2 : 1;
    const int64_t quarter = columns.layout.quarter();
    for (int64_t part = 0; part < kParts; ++part) {
      part_values(rows, columns, part, same);
      if (on_diagonal && part / 4 == part % 4)
        for (int64_t sample = 0; sample < quarter; ++sample) values_.begin()[sample * (quarter + 1)] = 0;
      const auto sum = columns.layout.panels == 4   ? &Worker::among<4>
                       : columns.layout.panels == 3 ? &Worker::among<3>
                       : columns.layout.panels == 2 ? &Worker::among<2>
                                                    : &Worker::among<1>;
      const int64_t* const begin = x.begin + 4 * i + part / 4;
      (this->*sum)(x.memberships + begin[0], x.memberships + begin[1], y.members + j * kLargest + part % 4 * quarter, y.stride,
                   times, sums);
    }
  }

  const PolynomialMmd& mmd_;
  Cut cut_;
  Groups left_, right_;
  LargePages<char> slices_;
  std::vector<const int16_t*> rows_;
  LargePages<int32_t> own_, sums_, inner_;
  LargePages<float> values_;
  // What left_ has.
  const FixedSamples* of_ = nullptr;
  const int64_t* chosen_ = nullptr;
  int64_t row_ = -1;
};

struct Totals {
  double *within, *across;  // [subsets, 4 parts]
};

// Every pair of two sides, by a block of rows and a group of columns: of x with x, of x with y, of y with y.
class Blocks {
 public:
  Blocks(const Cut& cut, int64_t of_x, int64_t of_y) {
    const int64_t counts[2] = {of_x, of_y};
    for (int first = 0; first < 2; ++first)
      for (int64_t row = 0; row < cut.blocks(counts[first]); ++row)
        for (int second = first; second < 2; ++second)
          for (int64_t column = second == first ? row * cut.kept : 0; column < cut.groups(counts[second]); ++column)
            places_.push_back({first, row, second, column});
  }

  int64_t count() const { return int64_t(places_.size()); }

  void run(int64_t i, Worker& worker, const Side (&sides)[2], const Totals& totals) const {
    const Place& at = places_[i];
    worker.block(sides[at.first], at.row, sides[at.second], at.column, at.first == at.second ? totals.within : totals.across);
  }

 private:
  struct Place {
    int first;
    int64_t row;
    int second;
    int64_t column;
  };
  std::vector<Place> places_;
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
    Worker worker(mmd, cut);
#pragma omp for schedule(dynamic, 1)
    for (int64_t s = 0; s < mmd.subsets; ++s) {
      const Side sides[2] = {all.side(mmd.x, mmd.first + s * mmd.size), all.side(mmd.y, mmd.second + s * mmd.size)};
      double within[4] = {}, across[4] = {};
      for (int64_t i = 0; i < blocks.count(); ++i) blocks.run(i, worker, sides, {within, across});
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
    Worker worker(mmd, cut);
#pragma omp for schedule(dynamic, 1)
    for (int64_t i = 0; i < blocks.count(); ++i) {
      double* const own = sums.data() + 2 * i * each;
      blocks.run(i, worker, sides, {own, own + each});
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

bool fastgan_polynomial_mmd_here() {
  // Where vectors are wider, products in floating point are as fast; not measured there.
  return has_avx2() && !__builtin_cpu_supports("avx512f");
}

void fastgan_polynomial_mmd_cpu(const PolynomialMmd* mmd, int threads) {
  mmd->shared ? by_pairs(*mmd, threads) : by_subsets(*mmd, threads);
}
#else
bool fastgan_polynomial_mmd_here() { return false; }

void fastgan_polynomial_mmd_cpu(const fastgan::PolynomialMmd*, int) {}
#endif
