// Bindings of what metrics compute with.
#pragma once

#include "bind/common.h"
#include "close_pairs.h"
#include "polynomial_mmd.h"
#include "symmetric_eigenvalues.h"
#include "symmetric_product.h"

namespace {

// ---- samples in fixed point

// of: values, units, both bases
FixedSamples fixed_samples(const std::array<Address, 4>& of, int64_t n) {
  return {at<const int16_t>(of[0]), at<const float>(of[1]), {at<const float>(of[2]), at<const float>(of[3])}, n};
}

// addresses: x, centre, units, partners within the set and with the other one;  sizes: n, d, features
ToFixed to_fixed(const std::array<Address, 5>& addresses, const std::array<int64_t, 3>& sizes) {
  return {at<const float>(addresses[0]),
          at<const float>(addresses[1]),
          sizes[0],
          sizes[1],
          sizes[2],
          at<const float>(addresses[2]),
          {at<const float>(addresses[3]), at<const float>(addresses[4])}};
}

// ---- polynomial_mmd

// sizes: samples of x and of y, features, subsets, size;  factors: gamma, middle, shift
void polynomial_mmd_cpu(const std::array<Address, 4>& x, const std::array<Address, 4>& y, std::array<Address, 2> members,
                        std::array<int64_t, 5> sizes, std::array<float, 3> factors, int degree, bool shared, Address out,
                        int threads) {
  const PolynomialMmd mmd = {fixed_samples(x, sizes[0]),
                             fixed_samples(y, sizes[1]),
                             sizes[2],
                             at<const int64_t>(members[0]),
                             at<const int64_t>(members[1]),
                             sizes[3],
                             sizes[4],
                             {factors[0], factors[1], factors[2], degree},
                             shared,
                             at<double>(out)};
  fastgan_polynomial_mmd_cpu(&mmd, threads);
}

// ---- close_pairs

// out: least, who;  sizes: n, features, count
void nearest_cpu(const std::array<Address, 4>& x, std::array<Address, 2> out, std::array<int64_t, 3> sizes, int threads) {
  const Nearest of = {fixed_samples(x, sizes[0]), sizes[1], sizes[2], at<float>(out[0]), at<int64_t>(out[1])};
  fastgan_nearest_cpu(&of, threads);
}

// limits: margins of x and of y, borders of x and of y;  out: around_y, inside_x, around_x, doubtful;
// sizes: n, m, features, rules, room
int64_t within_cpu(const std::array<Address, 4>& x, const std::array<Address, 4>& y, std::array<Address, 4> limits,
                   std::array<Address, 4> out, std::array<int64_t, 5> sizes, int threads) {
  const Within of = {fixed_samples(x, sizes[0]),
                     fixed_samples(y, sizes[1]),
                     sizes[2],
                     at<const float>(limits[0]),
                     at<const float>(limits[1]),
                     sizes[3],
                     at<const float>(limits[2]),
                     at<const float>(limits[3]),
                     at<int32_t>(out[0]),
                     at<int32_t>(out[1]),
                     at<int32_t>(out[2]),
                     at<DoubtfulPair>(out[3]),
                     sizes[4]};
  return fastgan_within_cpu(&of, threads);
}

// samples: x, y;  pairs: i, j;  sizes: d, count
void pair_distances_cpu(std::array<Address, 2> samples, bool wide, std::array<Address, 2> pairs,
                        std::array<int64_t, 2> sizes, Address out, int threads) {
  const PairDistances of = {
      at<const void>(samples[0]),  at<const void>(samples[1]),  wide,     sizes[0],
      at<const int64_t>(pairs[0]), at<const int64_t>(pairs[1]), sizes[1], at<double>(out)};
  fastgan_pair_distances_cpu(&of, threads);
}

void define_metrics_cpu(py::module_& m) {
  m.def(
      "symmetric_eigenvalues_cpu",
      [](Address a, Address values, int64_t n, int64_t stride, int threads) {
        const SymmetricEigenvalues of = {at<const double>(a), n, stride, at<double>(values)};
        return fastgan_symmetric_eigenvalues_cpu(&of, threads);
      },
      py::call_guard<py::gil_scoped_release>(), py::arg("a"), py::arg("values"), py::arg("n"), py::arg("stride"),
      py::arg("threads"));
  m.def(
      "fixed_range_cpu",
      [](Address x, Address centre, std::array<int64_t, 2> sizes, Address norms, Address largest, int threads) {
        const ToFixed from = to_fixed({x, centre, 0, 0, 0}, {sizes[0], sizes[1], 0});
        fastgan_fixed_range_cpu(&from, at<float>(norms), at<float>(largest), threads);
      },
      py::call_guard<py::gil_scoped_release>(), py::arg("x"), py::arg("centre"), py::arg("sizes"), py::arg("norms"),
      py::arg("largest"), py::arg("threads"));
  m.def(
      "to_fixed_cpu",
      [](const std::array<Address, 5>& addresses, const std::array<int64_t, 3>& sizes, Address values, Address alone,
         int threads) {
        const ToFixed from = to_fixed(addresses, sizes);
        fastgan_to_fixed_cpu(&from, at<int16_t>(values), at<double>(alone), threads);
      },
      py::call_guard<py::gil_scoped_release>(), py::arg("addresses"), py::arg("sizes"), py::arg("values"), py::arg("alone"),
      py::arg("threads"));
  m.def("fixed_point_here", &fastgan_fixed_point_here);
  m.def("polynomial_mmd_cpu", &polynomial_mmd_cpu, py::call_guard<py::gil_scoped_release>(), py::arg("x"), py::arg("y"),
        py::arg("members"), py::arg("sizes"), py::arg("factors"), py::arg("degree"), py::arg("shared"), py::arg("out"),
        py::arg("threads"));
  m.def("nearest_cpu", &nearest_cpu, py::call_guard<py::gil_scoped_release>(), py::arg("x"), py::arg("out"), py::arg("sizes"),
        py::arg("threads"));
  m.def("within_cpu", &within_cpu, py::call_guard<py::gil_scoped_release>(), py::arg("x"), py::arg("y"), py::arg("limits"),
        py::arg("out"), py::arg("sizes"), py::arg("threads"));
  m.def("pair_distances_here", &fastgan_pair_distances_here);
  m.def("pair_distances_cpu", &pair_distances_cpu, py::call_guard<py::gil_scoped_release>(), py::arg("samples"),
        py::arg("wide"), py::arg("pairs"), py::arg("sizes"), py::arg("out"), py::arg("threads"));
}

#ifdef FASTGAN_CUDA
void define_metrics_cuda(py::module_& m) {
  m.def(
      "symmetric_product_cuda",
      [](Address a, Address b, Address out, std::array<int64_t, 3> sizes, std::array<double, 3> factors, int device,
         Address stream) {
        const SymmetricProduct product = {at<const double>(a), at<const double>(b), at<double>(out), sizes[0],
                                          sizes[1],           sizes[2],            factors[0],      factors[1],
                                          factors[2]};
        return fastgan_symmetric_product_cuda(&product, device, at<void>(stream));
      },
      py::arg("a"), py::arg("b"), py::arg("out"), py::arg("sizes"), py::arg("factors"), py::arg("device"),
      py::arg("stream"));
}
#endif

}  // namespace
