#include "symmetric_eigenvalues.h"

#include <memory>

#include "bulge_chasing.h"
#include "tridiagonal.h"

namespace {

using namespace fastgan;

// What depends on the width of the processor's vectors
struct Steps {
  void (*factor)(const Panel&, double* r, double* tau);
  void (*gather)(const Panel&, const double* tau, double* t);
  void (*multiply)(const Panel&, int thread, int threads);
  void (*middle)(const Panel&, const double* t, int threads);
  void (*finish)(const Panel&, int thread, int threads);
  void (*update)(const Panel&, int thread, int threads);
  void (*chase)(double* band, int64_t n);
};

#define FASTGAN_STEPS(NAME, TARGET, BYTES)                                                                        \
  namespace NAME {                                                                                                \
  using V = Vector<BYTES>::Type;                                                                                  \
  TARGET void factor(const Panel& panel, double* r, double* tau) { factor_panel<V>(panel, r, tau); }              \
  TARGET void gather(const Panel& panel, const double* tau, double* t) { gather_reflectors<V>(panel, tau, t); }   \
  TARGET void product(const Panel& panel, int thread, int threads) { multiply<V>(panel, thread, threads); }       \
  TARGET void between(const Panel& panel, const double* t, int threads) { middle<V>(panel, t, threads); }         \
  TARGET void end(const Panel& panel, int thread, int threads) { finish<V>(panel, thread, threads); }             \
  TARGET void change(const Panel& panel, int thread, int threads) { update<V>(panel, thread, threads); }          \
  TARGET void bulges(double* band, int64_t n) { chase<V>(band, n); }                                              \
  constexpr Steps steps = {factor, gather, product, between, end, change, bulges};                                \
  }

FASTGAN_STEPS(plain, , 16)
#if defined(__x86_64__) && defined(__GNUC__)
FASTGAN_STEPS(avx2, __attribute__((target("avx2,fma"))), 32)
FASTGAN_STEPS(avx512, __attribute__((target("avx512f,avx512dq,fma"))), 64)
#endif
#undef FASTGAN_STEPS

const Steps& steps_here() {
#if defined(__x86_64__) && defined(__GNUC__)
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq")) return avx512::steps;
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return avx2::steps;
#endif
  return plain::steps;
}

template <typename Work>
void in_threads(int threads, const Work& work) {
#pragma omp parallel for num_threads(threads) schedule(static, 1)
  for (int thread = 0; thread < threads; ++thread) work(thread);
}

void to_band(const SymmetricEigenvalues& of, const Steps& steps, int threads) {
  const int64_t n = of.n, room = (n + kStrip - 1) / kStrip * kStrip;
  const auto doubles = [](int64_t count) { return std::unique_ptr<double[]>(new double[count]()); };
  const auto left = doubles(room * 2 * kBand), right = doubles(room * 2 * kBand), strips = doubles(room * kBand);
  const auto y = doubles(threads * room * kBand), small = doubles(3 * kBand * kBand);
  double tau[kBand], r[kBand * kBand];
  for (int64_t start = 0; n - start - kBand > 1; start += kBand) {
    const int64_t first = start + kBand, m = n - first;
    const Panel panel = {of.a,      of.stride, first,    m,           left.get(), right.get(),
                         strips.get(), y.get(),   room, small.get(), small.get() + kBand * kBand};
    double* t = small.get() + 2 * kBand * kBand;
    for (int64_t i = 0; i < m; ++i)
      memcpy(panel.left + i * 2 * kBand, of.a + (first + i) * of.stride + start, kBand * sizeof(double));
    steps.factor(panel, r, tau);
    for (int64_t i = 0; i < std::min<int64_t>(m, kBand); ++i)
      for (int64_t c = i; c < kBand; ++c) of.a[(first + i) * of.stride + start + c] = r[i * kBand + c];
    steps.gather(panel, tau, t);
    const int here = m < 4 * kBlock ? 1 : threads;
    in_threads(here, [&](int thread) { steps.multiply(panel, thread, here); });
    steps.middle(panel, t, here);
    in_threads(here, [&](int thread) { steps.finish(panel, thread, here); });
    in_threads(here, [&](int thread) { steps.update(panel, thread, here); });
  }
}

}  // namespace

int fastgan_symmetric_eigenvalues_cpu(const SymmetricEigenvalues* of, int threads) {
  const Steps& steps = steps_here();
  const int64_t n = of->n;
  to_band(*of, steps, threads);
  const std::unique_ptr<double[]> band(new double[(n + kBand) * kBandRows]());
  for (int64_t i = 0; i < n; ++i)
    for (int64_t j = std::max<int64_t>(0, i - kBand); j <= i; ++j)
      *element(band.get(), i, j) = of->a[i * of->stride + j];
  steps.chase(band.get(), n);
  const std::unique_ptr<double[]> beside(new double[n]);
  for (int64_t j = 0; j < n; ++j) of->values[j] = band[j * kBandRows], beside[j] = band[j * kBandRows + 1];
  return tridiagonal_eigenvalues(of->values, beside.get(), n) ? 0 : 1;
}
