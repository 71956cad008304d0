// Bindings of normalisation and activation.
#pragma once

#include "bind/common.h"
#include "norm_act.h"

namespace {

// Addresses: x, mean, var, weight, bias. Sizes: outer, channels, inner.
NormAct norm_act(const std::array<Address, 5>& a, const std::array<int64_t, 3>& sizes, double eps, int act,
                 double slope) {
  return {at<const void>(a[0]),   sizes[0],               sizes[1],
          sizes[2],               at<const double>(a[1]), at<const double>(a[2]),
          at<const void>(a[3]),   at<const void>(a[4]),   eps,
          NormActKind(act),       slope};
}

void define_norm_act_cpu(py::module_& m) {
  const py::call_guard<py::gil_scoped_release> released;
  py::class_<NormAct>(m, "NormAct")
      .def(py::init(&norm_act), py::arg("addresses"), py::arg("sizes"), py::arg("eps"), py::arg("act"),
           py::arg("slope"));
  m.def(
      "norm_act_stats_cpu",
      [](const NormAct& norm, int type, Address mean, Address var, int threads) {
        fastgan_norm_act_stats_cpu(&norm, NormActType(type), at<double>(mean), at<double>(var), threads);
      },
      released, py::arg("norm"), py::arg("type"), py::arg("mean"), py::arg("var"), py::arg("threads"));
  m.def(
      "norm_act_cpu",
      [](const NormAct& norm, int type, Address out, int threads) {
        fastgan_norm_act_cpu(&norm, NormActType(type), at<void>(out), threads);
      },
      released, py::arg("norm"), py::arg("type"), py::arg("out"), py::arg("threads"));
  m.def(
      "norm_act_sums_cpu",
      [](const NormAct& norm, int type, Address grad, Address sums, int threads) {
        fastgan_norm_act_sums_cpu(&norm, NormActType(type), at<const void>(grad), at<double>(sums), threads);
      },
      released, py::arg("norm"), py::arg("type"), py::arg("grad"), py::arg("sums"), py::arg("threads"));
  m.def(
      "norm_act_input_cpu",
      [](const NormAct& norm, int type, Address grad, Address sums, double count, Address dx, int threads) {
        fastgan_norm_act_input_cpu(&norm, NormActType(type), at<const void>(grad), at<const double>(sums), count,
                                   at<void>(dx), threads);
      },
      released, py::arg("norm"), py::arg("type"), py::arg("grad"), py::arg("sums"), py::arg("count"), py::arg("dx"),
      py::arg("threads"));
  m.def(
      "norm_act_train_cpu",
      [](const NormAct& norm, int type, Address mean, Address var, Address out, int threads) {
        fastgan_norm_act_train_cpu(&norm, NormActType(type), at<double>(mean), at<double>(var), at<void>(out), threads);
      },
      released, py::arg("norm"), py::arg("type"), py::arg("mean"), py::arg("var"), py::arg("out"), py::arg("threads"));
  m.def(
      "norm_act_backward_cpu",
      [](const NormAct& norm, int type, Address grad, bool training, Address sums, Address dx, int threads) {
        fastgan_norm_act_backward_cpu(&norm, NormActType(type), at<const void>(grad), training, at<double>(sums),
                                      at<void>(dx), threads);
      },
      released, py::arg("norm"), py::arg("type"), py::arg("grad"), py::arg("training"), py::arg("sums"),
      py::arg("dx"), py::arg("threads"));
}

#ifdef FASTGAN_CUDA
void define_norm_act_cuda(py::module_& m) {
  m.def("norm_act_scratch", &fastgan_norm_act_scratch, py::arg("norm"), py::arg("device"), "Bytes.");
  m.def(
      "norm_act_stats_cuda",
      [](const NormAct& norm, int type, Address mean, Address var, Address scratch, int device, Address stream) {
        return fastgan_norm_act_stats_cuda(&norm, NormActType(type), at<double>(mean), at<double>(var),
                                           at<void>(scratch), device, at<void>(stream));
      },
      py::arg("norm"), py::arg("type"), py::arg("mean"), py::arg("var"), py::arg("scratch"), py::arg("device"),
      py::arg("stream"));
  m.def(
      "norm_act_cuda",
      [](const NormAct& norm, int type, Address out, int device, Address stream) {
        return fastgan_norm_act_cuda(&norm, NormActType(type), at<void>(out), device, at<void>(stream));
      },
      py::arg("norm"), py::arg("type"), py::arg("out"), py::arg("device"), py::arg("stream"));
  m.def(
      "norm_act_sums_cuda",
      [](const NormAct& norm, int type, Address grad, Address sums, Address scratch, int device, Address stream) {
        return fastgan_norm_act_sums_cuda(&norm, NormActType(type), at<const void>(grad), at<double>(sums),
                                          at<void>(scratch), device, at<void>(stream));
      },
      py::arg("norm"), py::arg("type"), py::arg("grad"), py::arg("sums"), py::arg("scratch"), py::arg("device"),
      py::arg("stream"));
  m.def(
      "norm_act_input_cuda",
      [](const NormAct& norm, int type, Address grad, Address sums, double count, Address dx, int device,
         Address stream) {
        return fastgan_norm_act_input_cuda(&norm, NormActType(type), at<const void>(grad), at<const double>(sums),
                                           count, at<void>(dx), device, at<void>(stream));
      },
      py::arg("norm"), py::arg("type"), py::arg("grad"), py::arg("sums"), py::arg("count"), py::arg("dx"),
      py::arg("device"), py::arg("stream"));
  m.def(
      "norm_act_train_cuda",
      [](const NormAct& norm, int type, Address mean, Address var, Address out, bool fused, Address scratch, int device,
         Address stream) {
        return fastgan_norm_act_train_cuda(&norm, NormActType(type), at<double>(mean), at<double>(var), at<void>(out),
                                           at<void>(scratch), fused, device, at<void>(stream));
      },
      py::arg("norm"), py::arg("type"), py::arg("mean"), py::arg("var"), py::arg("out"), py::arg("fused"),
      py::arg("scratch"), py::arg("device"), py::arg("stream"));
  m.def(
      "norm_act_backward_cuda",
      [](const NormAct& norm, int type, Address grad, bool training, Address sums, Address dx, bool fused,
         Address scratch, int device, Address stream) {
        return fastgan_norm_act_backward_cuda(&norm, NormActType(type), at<const void>(grad), training,
                                              at<double>(sums), at<void>(dx), at<void>(scratch), fused, device,
                                              at<void>(stream));
      },
      py::arg("norm"), py::arg("type"), py::arg("grad"), py::arg("training"), py::arg("sums"), py::arg("dx"),
      py::arg("fused"), py::arg("scratch"), py::arg("device"), py::arg("stream"));
}
#endif

}  // namespace
