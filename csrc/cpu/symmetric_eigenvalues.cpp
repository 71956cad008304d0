#include "symmetric_eigenvalues.h"

#ifdef _OPENMP
#include <omp.h>
#endif

#include <atomic>
#include <memory>
#include <vector>

#include "avx2.h"
#include "bulge_chasing.h"
#include "large_pages.h"
#include "tridiagonal.h"
#include "waiting.h"

namespace {

using namespace fastgan;

// What depends on the width of the processor's vectors
struct Steps {
  void (*factor)(const Panel&, double* r, double* tau);
  void (*gather)(const Panel&, const double* tau, double* t);
  void (*multiply)(const Panel&, int thread, int threads);
  void (*middle)(const Panel&, const double* t, int threads);
  void (*finish)(const Panel&, int thread, int threads);
  void (*update)(const Panel&, int64_t i, int64_t rows, int64_t from, int64_t to);
  void (*chase)(double* band, int64_t n, Positions&, int thread, int threads);
};

#define FASTGAN_STEPS(NAME, TARGET, BYTES)                                                                        \
  namespace NAME {                                                                                                \
  using V = Vector<double, BYTES>::Type;                                                                          \
  TARGET void factor(const Panel& panel, double* r, double* tau) { factor_panel<V>(panel, r, tau); }              \
  TARGET void gather(const Panel& panel, const double* tau, double* t) { gather_reflectors<V>(panel, tau, t); }   \
  TARGET void product(const Panel& panel, int thread, int threads) { multiply<V>(panel, thread, threads); }       \
  TARGET void between(const Panel& panel, const double* t, int threads) { middle<V>(panel, t, threads); }         \
  TARGET void end(const Panel& panel, int thread, int threads) { finish<V>(panel, thread, threads); }             \
  TARGET void change(const Panel& panel, int64_t i, int64_t rows, int64_t from, int64_t to) {                     \
    update<V>(panel, i, rows, from, to);                                                                          \
  }                                                                                                               \
  TARGET void bulges(double* band, int64_t n, Positions& positions, int thread, int threads) {                     \
    chase<V>(band, n, positions, thread, threads);                                                                \
  }                                                                                                               \
  constexpr Steps steps = {factor, gather, product, between, end, change, bulges};                                \
  }

FASTGAN_STEPS(plain, , 16)
#ifdef FASTGAN_AVX2
FASTGAN_STEPS(avx2, FASTGAN_AVX2, 32)
FASTGAN_STEPS(avx512, __attribute__((target("avx512f,avx512dq,fma"))), 64)
#endif
#undef FASTGAN_STEPS

const Steps& steps_here() {
#ifdef FASTGAN_AVX2
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq")) return avx512::steps;
  if (has_avx2()) return avx2::steps;
#endif
  return plain::steps;
}

// work(thread, threads) in as many threads as there really are: they wait for each other
template <typename Work>
void together(int most, const Work& work) {
#ifdef _OPENMP
#pragma omp parallel num_threads(most)
  work(omp_get_thread_num(), omp_get_num_threads());
#else
  work(0, most > 0);
#endif
}

constexpr double kExtreme = 1e100;  // squares of what is larger than this, or smaller than its inverse, are not safe

constexpr int64_t kReach = kRows + kStrip;  // columns beyond the diagonal that an update touches

// What is overwritten: [n][stride], rows that begin at other places of the cache, with room for a strip behind them
struct Work {
  int64_t n, stride;
  LargePages<double> memory;
  double* a;

  explicit Work(int64_t size)
      : n(size), stride(n + 8 + 8 * (n % 512 > 495)), memory(n * stride), a(memory.begin()) {}
};

// The lower triangle of `of` into `work`, over its largest absolute value where that is extreme. Returns what it was
// divided by; 0 where a number is not finite.
double copied(const SymmetricEigenvalues& of, const Work& work, int most) {
  std::atomic<bool> finite{true};
  std::vector<double> largest(most, 0.0);
  const auto rows_of = [&](int thread, int threads, auto&& use) {
    for (int64_t i = 0; i < of.n; ++i)
      if (i / 16 % threads == thread) use(of.a + i * of.stride, work.a + i * work.stride, i + 1);
  };
  together(most, [&](int thread, int threads) {
    double high = 0, sum = 0;
    rows_of(thread, threads, [&](const double* from, double* to, int64_t count) {
      for (int64_t j = 0; j < count; ++j) {
        to[j] = from[j], high = std::max(high, std::fabs(from[j]));
        sum += from[j] * 0;  // NaN of what is not finite
      }
      memset(to + count, 0, std::min<int64_t>(kReach, work.stride - count) * sizeof(double));
    });
    largest[thread] = high;
    if (sum != 0) finite = false;
  });
  const double size = *std::max_element(largest.begin(), largest.end());
  if (!finite) return 0;
  if (size == 0 || (size > 1 / kExtreme && size < kExtreme)) return 1;
  together(most, [&](int thread, int threads) {
    rows_of(thread, threads, [&](const double*, double* to, int64_t count) {
      for (int64_t j = 0; j < count; ++j) to[j] /= size;
    });
  });
  return size;
}

void to_band(const Work& of, const Steps& steps, int most) {
  const int64_t n = of.n, room = (n + kStrip - 1) / kStrip * kStrip;
  if (n <= kBand + 1) return;
  const auto doubles = [](int64_t count) { return std::unique_ptr<double[]>(new double[count]()); };
  const auto left = doubles(2 * room * 2 * kBand), right = doubles(room * 2 * kBand), strips = doubles(room * kBand);
  const auto y = doubles(most * room * kBand), small = doubles(3 * kBand * kBand);
  double* t = small.get() + 2 * kBand * kBand;
  const auto panel_at = [&](int64_t start) {  // its left factor lies where that of the one before does not
    const int64_t first = start + kBand;
    return Panel{of.a,  of.stride,    first,   n - first, left.get() + start / kBand % 2 * room * 2 * kBand,
                 right.get(), strips.get(), y.get(), room,      small.get(), small.get() + kBand * kBand};
  };
  const auto prepare = [&](const Panel& panel) {
    double tau[kBand], r[kBand * kBand];
    double* columns = of.a + panel.first * of.stride + panel.first - kBand;
    for (int64_t i = 0; i < panel.m; ++i)
      memcpy(panel.left + i * 2 * kBand, columns + i * of.stride, kBand * sizeof(double));
    steps.factor(panel, r, tau);
    for (int64_t i = 0; i < std::min<int64_t>(panel.m, kBand); ++i)
      for (int64_t c = i; c < kBand; ++c) columns[i * of.stride + c] = r[i * kBand + c];
    steps.gather(panel, tau, t);
  };
  Meeting meeting;
  std::atomic<int64_t> left_over{0};  // blocks of rows of an update
  prepare(panel_at(0));
  together(most, [&](int thread, int threads) {
    for (int64_t start = 0; n - start - kBand > 1; start += kBand) {
      const Panel panel = panel_at(start);
      const int here = panel.m < 4 * kBlock ? 1 : threads;
      if (thread >= here) break;
      steps.multiply(panel, thread, here);
      meeting.wait(here);
      if (thread == 0) {
        steps.middle(panel, t, here);
        left_over = (panel.m + kBlock - 1) / kBlock;
      }
      meeting.wait(here);
      steps.finish(panel, thread, here);
      meeting.wait(here);
      if (thread == 0) {  // the next panel first, so that it is factored while others go on
        steps.update(panel, 0, panel.m, 0, kBand);
        if (panel.m - kBand > 1) prepare(panel_at(start + kBand));
      }
      for (int64_t block; (block = --left_over) >= 0;)
        steps.update(panel, block * kBlock, std::min<int64_t>(kBlock, panel.m - block * kBlock), kBand, panel.m);
      meeting.wait(here);
    }
  });
}

void to_tridiagonal(double* band, int64_t n, const Steps& steps, int threads) {
  Positions positions;
  const int most = static_cast<int>(std::min<int64_t>({threads, n / (8 * kBand) + 1, kChasers}));
  together(most, [&](int thread, int there) { steps.chase(band, n, positions, thread, there); });
}

}  // namespace

int fastgan_symmetric_eigenvalues_cpu(const SymmetricEigenvalues* of, int threads) {
  const Steps& steps = steps_here();
  const int64_t n = of->n;
  const Work work(n);
  const double size = copied(*of, work, threads);
  if (size == 0) return 1;
  to_band(work, steps, threads);
  const LargePages<double> band((n + kBand) * kBandRows);
  memset(band.begin(), 0, (n + kBand) * kBandRows * sizeof(double));
  for (int64_t i = 0; i < n; ++i)
    for (int64_t j = std::max<int64_t>(0, i - kBand); j <= i; ++j)
      *element(band.begin(), i, j) = work.a[i * work.stride + j];
  to_tridiagonal(band.begin(), n, steps, threads);
  const std::unique_ptr<double[]> beside(new double[n]);
  for (int64_t j = 0; j < n; ++j)
    of->values[j] = band.begin()[j * kBandRows], beside[j] = band.begin()[j * kBandRows + 1];
  const bool converged = tridiagonal_eigenvalues(of->values, beside.get(), n);
  if (size != 1)
    for (int64_t j = 0; j < n; ++j) of->values[j] *= size;
  return converged ? 0 : 1;
}
