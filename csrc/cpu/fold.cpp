#include "fold.h"

#include <algorithm>
#include <vector>

namespace {

using namespace fastgan;

constexpr int64_t kPartElements = 8192;  // of one part of the statistics: it stays in the first or second cache
constexpr int64_t kPartPixels = 256;     // that are summed in the type of y; parts are merged in double

// ---- which columns an output pixel is the sum of

// For every output index o the pairs (input index, tap) with o = index * stride - padding + tap * dilation.
struct Axis {
  struct Pair {
    int64_t index, tap;
  };
  std::vector<Pair> pairs;
  std::vector<int64_t> begin;  // of the pairs of o; one more at the end

  Axis(const Fold& f, int axis) : begin{0} {
    for (int64_t o = 0; o < f.large[axis]; ++o) {
      for (int64_t tap = 0; tap < f.kernel[axis]; ++tap) {
        const int64_t at = o + f.padding[axis] - tap * f.dilation[axis];
        if (at >= 0 && at % f.stride[axis] == 0 && at / f.stride[axis] < f.small[axis])
          pairs.push_back({at / f.stride[axis], tap});
      }
      begin.push_back(int64_t(pairs.size()));
    }
  }
};

// `count` runs of `length` elements of an output row, one after the other, the first at `out`. Each is the sum of runs
// of columns: the first ones at `taps`, from the first column of that row of the input and of the kernel; the next ones
// `tap_step` further.
struct Band {
  int64_t out, length, count, tap_step;
  std::vector<int64_t> taps;

  bool continues_with(const Band& next, int64_t distance) const {
    if (next.length != length || next.taps.size() != taps.size()) return false;
    for (size_t t = 0; t < taps.size(); ++t)
      if (next.taps[t] - taps[t] != distance) return false;
    return true;
  }
};

// Neighbouring pixels whose columns are neighbours become one run, equal runs at equal distances one band.
std::vector<Band> bands_of(const Fold& f) {
  const Axis axis(f, 1);
  const int64_t c = f.channels, pixel = f.kernel[0] * f.kernel[1] * c;
  std::vector<Band> runs, bands;
  for (int64_t o = 0; o < f.large[1]; ++o) {
    Band one = {o * c, c, 1, 0, {}};
    for (int64_t p = axis.begin[o]; p < axis.begin[o + 1]; ++p)
      one.taps.push_back(axis.pairs[p].index * pixel + axis.pairs[p].tap * c);
    Band shorter = one;  // as if it were of the length of the run before it
    if (!runs.empty()) shorter.length = runs.back().length;
    if (!runs.empty() && runs.back().continues_with(shorter, runs.back().length))
      runs.back().length += c;
    else
      runs.push_back(one);
  }
  for (const Band& run : runs) {
    Band* last = bands.empty() ? nullptr : &bands.back();
    const int64_t distance = last && !run.taps.empty() && !last->taps.empty() ? run.taps[0] - last->taps[0] : 0;
    if (last && last->count == 1 && last->continues_with(run, distance))
      last->count = 2, last->tap_step = distance;
    else if (last && last->continues_with(run, last->count * last->tap_step))
      ++last->count;
    else
      bands.push_back(run);
  }
  return bands;
}

// ---- the sums

// out = the sum of kLength elements at each tap, in registers.
template <int kTaps, int64_t kLength, typename T>
FASTGAN_HD void sum_short(const T* const* taps, int64_t from, T* out) {
  T sum[kLength];
  memcpy(sum, taps[0] + from, sizeof(sum));
  for (int t = 1; t < kTaps; ++t)
    for (int64_t e = 0; e < kLength; ++e) sum[e] += taps[t][from + e];
  memcpy(out, sum, sizeof(sum));
}

// Runs of kLength, where that is less than a register holds: all but the last are summed with the elements after them,
// kWide in all, which the next run overwrites; where columns go on that far.
template <int kTaps, int64_t kLength, int64_t kWide, typename T>
FASTGAN_HD void sum_short_runs(const Band& band, const T* const* taps, T* out) {
  const int64_t tap_step = band.tap_step, wide = tap_step >= kWide - kLength ? band.count - 1 : 0;
  int64_t r = 0;
  for (; r < wide; ++r) sum_short<kTaps, kWide>(taps, r * tap_step, out + r * kLength);
  for (; r < band.count; ++r) sum_short<kTaps, kLength>(taps, r * tap_step, out + r * kLength);
}

template <int kTaps, typename T>
FASTGAN_HD void sum_long_runs(const Band& band, const T* const* taps, T* out) {
  const int64_t length = band.length;
  for (int64_t r = 0; r < band.count; ++r) {
    const int64_t from = r * band.tap_step;
    T* __restrict__ to = out + r * band.length;
    for (int64_t e = 0; e < length; ++e) {
      T sum = taps[0][from + e];
      for (int t = 1; t < kTaps; ++t) sum += taps[t][from + e];
      to[e] = sum;
    }
  }
}

// Lengths of images with few channels, which a loop of unknown length is slow for.
template <int kTaps, typename T>
FASTGAN_HD void sum_taps(const Band& band, const T* const* taps, T* out) {
  switch (band.length) {
    case 1: return sum_short_runs<kTaps, 1, 1>(band, taps, out);
    case 2: return sum_short_runs<kTaps, 2, 2>(band, taps, out);
    case 3: return sum_short_runs<kTaps, 3, 4>(band, taps, out);
    case 4: return sum_short_runs<kTaps, 4, 4>(band, taps, out);
    case 6: return sum_short_runs<kTaps, 6, 8>(band, taps, out);
    case 8: return sum_short_runs<kTaps, 8, 8>(band, taps, out);
    default: return sum_long_runs<kTaps>(band, taps, out);
  }
}

template <typename T>
FASTGAN_HD void sum_band(const Band& band, const T* const* taps, int count, T* __restrict__ out) {
  switch (count) {
    case 1: return sum_taps<1>(band, taps, out);
    case 2: return sum_taps<2>(band, taps, out);
    case 4: return sum_taps<4>(band, taps, out);
  }
  for (int64_t r = 0; r < band.count; ++r) {
    T* __restrict__ to = out + r * band.length;
    for (int64_t e = 0; e < band.length; ++e) to[e] = 0;
    for (int t = 0; t < count; ++t) {
      const T* __restrict__ from = taps[t] + r * band.tap_step;
      for (int64_t e = 0; e < band.length; ++e) to[e] += from[e];
    }
  }
}

template <typename T>
FASTGAN_HD void add(const T* __restrict__ from, int64_t n, T* __restrict__ to) {
  for (int64_t i = 0; i < n; ++i) to[i] += from[i];
}

// Mean and sum of squared differences of x [pixels, channels] per channel. Differences from the first pixel give a
// mean that is nearly right, however large it is; differences from that one the rest.
template <typename T>
FASTGAN_HD void moments(const T* __restrict__ x, int64_t pixels, int64_t channels, T* __restrict__ work,
                        double* __restrict__ mean, double* __restrict__ squares) {
  T *__restrict__ near = work, *__restrict__ first = work + channels, *__restrict__ second = work + 2 * channels;
  for (int64_t c = 0; c < channels; ++c) near[c] = x[c], first[c] = second[c] = 0;
  for (int64_t p = 0; p < pixels; ++p)
    for (int64_t c = 0; c < channels; ++c) first[c] += x[p * channels + c] - near[c];
  for (int64_t c = 0; c < channels; ++c) near[c] += first[c] / T(pixels), first[c] = 0;
  for (int64_t p = 0; p < pixels; ++p) {
    for (int64_t c = 0; c < channels; ++c) {
      const T d = x[p * channels + c] - near[c];
      first[c] += d;
      second[c] += d * d;
    }
  }
  for (int64_t c = 0; c < channels; ++c) {
    const double off = double(first[c]) / double(pixels);
    mean[c] = double(near[c]) + off;
    squares[c] = std::max(double(second[c]) - off * double(first[c]), 0.0);
  }
}

template <NormActKind kKind, typename T>
FASTGAN_HD void activate_by(T slope, int64_t n, T* x) {
  for (int64_t i = 0; i < n; ++i) x[i] = norm_act_value<kKind>(x[i], slope);
}

template <typename T>
FASTGAN_HD void activate_any(NormActKind act, T slope, int64_t n, T* x) {
  switch (act) {
    case NormActKind::kNone: return;
    case NormActKind::kRelu: return activate_by<NormActKind::kRelu>(slope, n, x);
    case NormActKind::kLeakyRelu: return activate_by<NormActKind::kLeakyRelu>(slope, n, x);
    case NormActKind::kTanh: return activate_by<NormActKind::kTanh>(slope, n, x);
    case NormActKind::kSigmoid: return activate_by<NormActKind::kSigmoid>(slope, n, x);
    case NormActKind::kSilu: return activate_by<NormActKind::kSilu>(slope, n, x);
    case NormActKind::kGelu: return activate_by<NormActKind::kGelu>(slope, n, x);
  }
}

// out = act'(z) grad where a = act(z), for activations whose slope that tells.
template <typename T>
FASTGAN_HD void times_slopes_any(NormActKind act, T slope, const T* __restrict__ grad, const T* __restrict__ a,
                                 int64_t n, T* __restrict__ out) {
  switch (act) {
    case NormActKind::kRelu:
      for (int64_t i = 0; i < n; ++i) out[i] = a[i] <= 0 ? T(0) : grad[i];
      return;
    case NormActKind::kLeakyRelu:
      for (int64_t i = 0; i < n; ++i) out[i] = a[i] > 0 ? grad[i] : grad[i] * slope;
      return;
    case NormActKind::kTanh:
      for (int64_t i = 0; i < n; ++i) out[i] = grad[i] * (T(1) - a[i] * a[i]);
      return;
    case NormActKind::kSigmoid:
      for (int64_t i = 0; i < n; ++i) out[i] = grad[i] * (a[i] * (T(1) - a[i]));
      return;
    default:
      for (int64_t i = 0; i < n; ++i) out[i] = grad[i];
  }
}

// target_clones does not go with templates: plain functions per type.
#define FASTGAN_FOLD_LOOPS(T)                                                                                      \
  FASTGAN_CLONES void sum_of(const Band& band, const T* const* taps, int count, T* out) {                          \
    sum_band(band, taps, count, out);                                                                              \
  }                                                                                                                \
  FASTGAN_CLONES void add_to(const T* from, int64_t n, T* to) { add(from, n, to); }                                \
  FASTGAN_CLONES void activate(NormActKind act, T slope, int64_t n, T* x) { activate_any(act, slope, n, x); }      \
  FASTGAN_CLONES void times_slopes(NormActKind act, T slope, const T* grad, const T* a, int64_t n, T* out) {       \
    times_slopes_any(act, slope, grad, a, n, out);                                                                 \
  }                                                                                                                \
  FASTGAN_CLONES void moments_of(const T* x, int64_t pixels, int64_t channels, T* work, double* mean, double* m2) { \
    moments(x, pixels, channels, work, mean, m2);                                                                  \
  }
FASTGAN_FOLD_LOOPS(float)
FASTGAN_FOLD_LOOPS(double)

// ---- fold

int64_t rows_of_part(const Fold& f) {
  const int64_t pixels = std::min(kPartPixels, kPartElements / std::max<int64_t>(f.channels, 1));
  return std::max<int64_t>(pixels / std::max<int64_t>(f.large[1], 1), 1);
}

int64_t parts_of_sample(const Fold& f) { return (f.large[0] + rows_of_part(f) - 1) / rows_of_part(f); }

template <typename T>
struct Folding {
  const Fold& f;
  const FoldAct& act;
  const T* columns;
  T* y;
  double* parts;
  Axis rows;
  std::vector<Band> bands;
  std::vector<T> bias;  // of one row
  int64_t row;          // elements of one row of y

  Folding(const Fold& f, const FoldAct& act, const void* columns, void* y, double* parts)
      : f(f), act(act), columns(static_cast<const T*>(columns)), y(static_cast<T*>(y)), parts(parts), rows(f, 0),
        bands(bands_of(f)), row(f.large[1] * f.channels) {
    if (!act.bias) return;
    bias.resize(row);
    for (int64_t i = 0; i < row; ++i) bias[i] = static_cast<const T*>(act.bias)[i % f.channels];
  }

  void sum_row(int64_t sample, int64_t o, T* out, std::vector<const T*>& taps) const {
    const int64_t line = f.kernel[1] * f.channels, across = f.small[1] * f.kernel[0] * line;
    const T* from = columns + sample * f.small[0] * across;
    for (const Band& band : bands) {
      taps.clear();
      for (int64_t p = rows.begin[o]; p < rows.begin[o + 1]; ++p)
        for (const int64_t tap : band.taps)
          taps.push_back(from + rows.pairs[p].index * across + rows.pairs[p].tap * line + tap);
      sum_of(band, taps.data(), int(taps.size()), out + band.out);
    }
  }

  // Part number `part` of all: some rows of one sample. `work`: 3 * channels.
  void run(int64_t part, std::vector<const T*>& taps, T* work) const {
    const int64_t per_sample = parts_of_sample(f), sample = part / per_sample;
    const int64_t begin = part % per_sample * rows_of_part(f), end = std::min(begin + rows_of_part(f), f.large[0]);
    T* out = y + (sample * f.large[0] + begin) * row;
    if (columns != y)
      for (int64_t o = begin; o < end; ++o) sum_row(sample, o, out + (o - begin) * row, taps);
    if (act.bias)
      for (int64_t o = begin; o < end; ++o) add_to(bias.data(), row, out + (o - begin) * row);
    activate(act.act, T(act.slope), (end - begin) * row, out);
    double* mean = parts + part * 2 * f.channels;
    if (parts) moments_of(out, (end - begin) * f.large[1], f.channels, work, mean, mean + f.channels);
  }
};

template <typename T>
void fold(const Fold& f, const FoldAct& act, const void* columns, void* y, double* parts, int threads) {
  const int64_t count = f.samples * parts_of_sample(f);
  if (count == 0 || f.large[1] * f.channels == 0) return;
  const Folding<T> folding(f, act, columns, y, parts);
#pragma omp parallel num_threads(threads) if (threads > 1)
  {
    std::vector<const T*> taps;
    std::vector<T> work(3 * f.channels);
#pragma omp for schedule(static)
    for (int64_t part = 0; part < count; ++part) folding.run(part, taps, work.data());
  }
}

// ---- unfold

template <typename T>
struct Unfolding {
  const Fold& f;
  const FoldAct& act;
  const T *grad, *a;
  T* columns;
  int64_t c, reach;  // elements of a pixel, and of what a row of input pixels reaches of a row of y

  // What input row h reaches of the gradient, a row for each tap. Outside of the image `lines` are 0 and stay so.
  void gather(int64_t sample, int64_t h, T* lines) const {
    const int64_t row = f.large[1] * c, before = std::min(f.padding[1] * c, reach);
    const int64_t inside = std::max<int64_t>(std::min(row, reach - before), 0);
    for (int64_t i = 0; i < f.kernel[0]; ++i) {
      T* line = lines + i * reach;
      const int64_t o = h * f.stride[0] - f.padding[0] + i * f.dilation[0];
      if (o < 0 || o >= f.large[0]) {
        std::fill_n(line, reach, T(0));
        continue;
      }
      const int64_t from = (sample * f.large[0] + o) * row;
      if (a)
        times_slopes(act.act, T(act.slope), grad + from, a + from, inside, line + before);
      else
        memcpy(line + before, grad + from, inside * sizeof(T));
    }
  }

  // kRun: elements that are together in `lines` and in the columns, or 0 for any.
  template <int64_t kRun>
  void scatter(const T* lines, T* to) const {
    const bool dense = f.dilation[1] == 1;
    const int64_t run = kRun ? kRun : dense ? f.kernel[1] * c : c, runs = dense ? 1 : f.kernel[1];
    for (int64_t w = 0; w < f.small[1]; ++w)
      for (int64_t i = 0; i < f.kernel[0]; ++i)
        for (int64_t j = 0; j < runs; ++j, to += run)
          memcpy(to, lines + i * reach + (w * f.stride[1] + j * f.dilation[1]) * c, run * sizeof(T));
  }

  void run(int64_t line, T* lines) const {
    gather(line / f.small[0], line % f.small[0], lines);
    T* to = columns + line * f.small[1] * f.kernel[0] * f.kernel[1] * c;
    const int64_t run = f.dilation[1] == 1 ? f.kernel[1] * c : 0;
    run == 4 ? scatter<4>(lines, to) : run == 12 ? scatter<12>(lines, to) : scatter<0>(lines, to);
  }
};

template <typename T>
void unfold(const Fold& f, const FoldAct& act, const void* grad, const void* a, void* columns, int threads) {
  const int64_t reach = ((f.small[1] - 1) * f.stride[1] + (f.kernel[1] - 1) * f.dilation[1] + 1) * f.channels;
  const Unfolding<T> unfolding = {f, act, static_cast<const T*>(grad),
                                  act.act == NormActKind::kNone ? nullptr : static_cast<const T*>(a),
                                  static_cast<T*>(columns), f.channels, reach};
  const int64_t lines = f.samples * f.small[0];
  if (lines * f.small[1] * f.channels == 0) return;
#pragma omp parallel num_threads(threads) if (threads > 1)
  {
    std::vector<T> work(f.kernel[0] * reach);
#pragma omp for schedule(static)
    for (int64_t line = 0; line < lines; ++line) unfolding.run(line, work.data());
  }
}

}  // namespace

void fastgan_fold_cpu(const Fold* f, const FoldAct* act, NormActType type, const void* columns, void* y,
                      double* parts, int threads) {
  if (type == NormActType::kDouble) return fold<double>(*f, *act, columns, y, parts, threads);
  fold<float>(*f, *act, columns, y, parts, threads);
}

int64_t fastgan_fold_parts(const Fold* f) { return f->samples * parts_of_sample(*f); }

void fastgan_fold_stats_cpu(const Fold* f, const double* parts, double* mean, double* var) {
  const int64_t c = f->channels, per_sample = parts_of_sample(*f), count = f->samples * per_sample;
  const int64_t full = rows_of_part(*f) * f->large[1], all = f->large[0] * f->large[1];
  const auto pixels = [&](int64_t part) {
    return double(part % per_sample + 1 < per_sample ? full : all - (per_sample - 1) * full);
  };
  const double total = double(f->samples) * double(all);
  std::fill_n(mean, c, total > 0 ? 0.0 : NAN);
  std::fill_n(var, c, total > 0 ? 0.0 : NAN);
  for (int64_t p = 0; p < count; ++p)
    for (int64_t i = 0; i < c; ++i) mean[i] += pixels(p) / total * parts[p * 2 * c + i];
  for (int64_t p = 0; p < count; ++p) {
    for (int64_t i = 0; i < c; ++i) {
      const double d = parts[p * 2 * c + i] - mean[i];
      var[i] += (parts[(p * 2 + 1) * c + i] + pixels(p) * d * d) / total;
    }
  }
}

void fastgan_unfold_cpu(const Fold* f, const FoldAct* act, NormActType type, const void* grad, const void* a,
                        void* columns, int threads) {
  if (type == NormActType::kDouble) return unfold<double>(*f, *act, grad, a, columns, threads);
  unfold<float>(*f, *act, grad, a, columns, threads);
}
