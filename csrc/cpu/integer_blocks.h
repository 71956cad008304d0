// Functions of the inner products of all pairs of two sides, block by block: integer_products.h over groups of samples.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "fixed_point.h"
#include "integer_products.h"
#include "large_pages.h"

#ifdef FASTGAN_AVX2
namespace fastgan {
namespace {

constexpr int64_t kLargest = 256;  // samples of a group
constexpr int64_t kGroups = 8;     // of rows, a block, whose operands are kept while groups of columns pass

inline int64_t parts(int64_t count, int64_t of) { return (count + of - 1) / of; }

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

// Which samples are where.
struct Places {
  const FixedSamples* samples;
  const int64_t* chosen;  // [count] samples, or null: the first `count` as they are
  int64_t count;

  int64_t at(int64_t place) const {
    const int64_t last = std::min(place, count - 1);  // a group is filled up with the last sample
    return chosen ? chosen[last] : last;
  }
};

// A block of rows of one side with a group of columns of another.
struct BlockPlace {
  int first;
  int64_t row;
  int second;
  int64_t column;
};

// Block `row` of side `first` with `count` samples of side `second`, every pair once; of a side with itself from that block on.
inline void add_blocks(const Cut& cut, int first, int64_t row, int second, int64_t count, std::vector<BlockPlace>* places) {
  for (int64_t column = second == first ? row * cut.kept : 0; column < cut.groups(count); ++column)
    places->push_back({first, row, second, column});
}

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

// The function of pairs of a quarter of a group of rows with a quarter of a group of columns.
struct Part {
  bool same;              // of a side with itself
  int64_t group, column;  // numbers of the groups
  int64_t row_quarter, column_quarter;
  int64_t rows, columns;  // of the quarters, multiples of kPanel
  float* values;          // [rows, columns]

  int64_t first_row() const { return group * kLargest + row_quarter * rows; }
  int64_t first_column() const { return column * kLargest + column_quarter * columns; }
};

// Computes blocks in the memory of one thread.
class BlockFunction {
 public:
  BlockFunction(const PairFunction& k, const Cut& cut)
      : k_(k), cut_(cut), left_(cut.largest, cut.kept), right_(cut.largest, 1), slices_(kParts * kSliceBytes),
        rows_(cut.largest.samples()), own_(kOperands * cut.largest.quarter()), sums_(kParts * products()),
        inner_(7 * products()), values_(products()) {}

  // Visits the parts of block `row` of x with group `column` of y; of a side with itself those of groups up to that one, where
  // the group with itself has each pair twice.
  template <typename Visit>
  void block(const Places& x, int64_t row, const Places& y, int64_t column, const Visit& visit) {
    const bool same = x.samples == y.samples;
    const int64_t first = row * cut_.kept, end = std::min(first + cut_.kept, cut_.groups(x.count));
    if (x.samples != of_ || x.chosen != chosen_ || row != row_)
      for (int64_t i = first; i < end; ++i) pack(x, i, kLeftTerms, left_.at(i - first, cut_.layout(x.count, i)));
    of_ = x.samples, chosen_ = x.chosen, row_ = row;
    const Group columns = right_.at(0, cut_.layout(y.count, column));
    pack(y, column, kRightTerms, columns);
    for (int64_t i = first; i < (same ? std::min(end, column + 1) : end); ++i) {
      const Group rows = left_.at(i - first, cut_.layout(x.count, i));
      group_products(rows.layout, rows.operands, columns.layout, columns.operands, sums_.begin(), inner_.begin());
      for (int64_t part = 0; part < kParts; ++part) {
        part_values(rows, columns, part, same);
        visit(Part{same, i, column, part / 4, part % 4, rows.layout.quarter(), columns.layout.quarter(), values_.begin()});
      }
    }
  }

 private:
  // Of the largest part.
  int64_t products() const { return cut_.largest.quarter() * cut_.largest.quarter(); }

  void pack(const Places& from, int64_t group, const AllTerms& terms, const Group& to) {
    for (int64_t i = 0; i < to.layout.samples(); ++i) {
      const int64_t sample = from.at(group * kLargest + i);
      rows_[i] = from.samples->values + sample * cut_.features;
      to.units[i] = from.samples->units[sample];
      for (int s = 0; s < 2; ++s) to.base[s][i] = from.samples->base[s][sample];
    }
    make_operands(to.layout, rows_.data(), terms, to.operands, slices_.begin(), own_.begin());
  }

  // The function of a part's pairs, a quarter of one group with a quarter of another, into values_ [rows, columns].
  FASTGAN_AVX2 void part_values(const Group& x, const Group& y, int64_t part, bool same) {
    const int64_t rows = x.layout.quarter(), columns = y.layout.quarter();
    const int32_t *const sums = sums_.begin() + part * rows * columns, *const of_rows = x.operands.pairs + part * rows,
                  *const of_columns = y.operands.pairs + part * columns;
    const float *const row_units = x.units + part / 4 * rows, *const row_base = x.base[!same] + part / 4 * rows,
                *const column_units = y.units + part % 4 * columns, *const column_base = y.base[!same] + part % 4 * columns;
    const __m256 shift = _mm256_set1_ps(k_.shift), middle = _mm256_set1_ps(k_.middle);
    for (int64_t row = 0; row < rows; ++row) {
      const __m256 unit = _mm256_set1_ps(k_.gamma * row_units[row]), base = _mm256_set1_ps(row_base[row]);
      const __m256i of_row = _mm256_set1_epi32(of_rows[row]);
      for (int64_t column = 0; column < columns; column += 8) {
        const int32_t* const at = sums + column / kPanel * kPanel * rows + row * kPanel + column % kPanel;
        const __m256i pairs = _mm256_add_epi32(of_row, _mm256_load_si256(reinterpret_cast<const __m256i*>(of_columns + column)));
        const __m256i sum = _mm256_sub_epi32(_mm256_load_si256(reinterpret_cast<const __m256i*>(at)), pairs);
        const __m256 units = _mm256_mul_ps(unit, _mm256_load_ps(column_units + column));
        const __m256 bases = _mm256_add_ps(base, _mm256_load_ps(column_base + column));
        const __m256 value = _mm256_add_ps(_mm256_fmadd_ps(_mm256_cvtepi32_ps(sum), units, bases), middle);
        __m256 power = value;
        for (int i = 1; i < k_.degree; ++i) power = _mm256_mul_ps(power, value);
        _mm256_store_ps(values_.begin() + row * columns + column, _mm256_sub_ps(power, shift));
      }
    }
  }

  PairFunction k_;
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

}  // namespace
}  // namespace fastgan
#endif
