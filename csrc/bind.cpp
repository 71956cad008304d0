// The extension module fastgan._C: addresses in, nothing out. Python (fastgan/kernels) owns and checks every tensor.
#include <algorithm>

#include "adam_ema.h"
#include "bind/common.h"
#include "bind/data.h"
#include "bind/metrics.h"
#include "bind/normalisation.h"
#include "counter_noise.h"
#include "device.h"
#include "fold.h"
#include "masked_act.h"
#include "modulated_act.h"
#include "winograd.h"

namespace {

// Counts up with every change of a signature below; fastgan/kernels/_runtime/extension.py expects the same number.
constexpr int kAbi = 11;

// ---- adam_ema

// The lists of one call, held as long as it lasts.
struct AdamEmaCall {
  Addresses params, grads, exp_avgs, exp_avg_sqs, emas;
  std::vector<int64_t> sizes;
  AdamEmaScalars scalars;

  AdamEmaTensors tensors() const {
    for (const Addresses* list : {&grads, &exp_avgs, &exp_avg_sqs})
      if (list->size() != params.size()) throw std::invalid_argument("adam_ema: lists of different lengths");
    if (sizes.size() != params.size() || (!emas.empty() && emas.size() != params.size()))
      throw std::invalid_argument("adam_ema: lists of different lengths");
    return {int64_t(params.size()), pointers<void>(params), pointers<const void>(grads), pointers<void>(exp_avgs),
            pointers<void>(exp_avg_sqs), emas.empty() ? nullptr : pointers<void>(emas), sizes.data()};
  }

  template <typename T>
  static T* const* pointers(const Addresses& list) {
    static_assert(sizeof(Address) == sizeof(T*), "addresses are pointers");
    return reinterpret_cast<T* const*>(list.data());
  }
};

// Scalars: step, lr, beta1, beta2, ema_decay, grad_scale (double), skip (bool).
AdamEmaCall adam_ema_call(Addresses params, Addresses grads, Addresses exp_avgs, Addresses exp_avg_sqs,
                          Addresses emas, std::vector<int64_t> sizes, const std::array<Address, 7>& s, double eps) {
  const auto number = [&s](int i) { return at<const double>(s[i]); };
  const AdamEmaScalars scalars = {at<double>(s[0]), number(1), number(2),          number(3),
                                  number(4),        number(5), at<const bool>(s[6]), eps};
  return {std::move(params), std::move(grads), std::move(exp_avgs), std::move(exp_avg_sqs),
          std::move(emas),   std::move(sizes), scalars};
}

// ---- counter_noise

CounterNoise counter_noise(uint64_t seed, uint32_t stream, Address index, int64_t samples, int64_t elements,
                           int64_t high, Address out) {
  return {seed, stream, at<const int64_t>(index), samples, elements, high, at<void>(out)};
}

// ---- fold

// Everything twice: rows and columns. Sizes: small, large, kernel, stride, padding, dilation.
Fold fold(int64_t samples, int64_t channels, const std::array<std::array<int64_t, 2>, 6>& sizes) {
  Fold fold = {samples, channels, {}, {}, {}, {}, {}, {}};
  int64_t* fields[6] = {fold.small, fold.large, fold.kernel, fold.stride, fold.padding, fold.dilation};
  for (int i = 0; i < 6; ++i) std::copy(sizes[i].begin(), sizes[i].end(), fields[i]);
  return fold;
}

// ---- masked_act

// Addresses: in, out, mask, bias, scale. Sizes: numel, channels, inner, sample.
MaskedAct masked_act(const std::array<Address, 5>& a, const std::array<int64_t, 4>& sizes, double slope) {
  return {at<const void>(a[0]), at<void>(a[1]), at<uint8_t>(a[2]), at<const void>(a[3]), at<const void>(a[4]),
          sizes[0],             sizes[1],       sizes[2],          sizes[3],             slope};
}

// ---- modulated_act

// Addresses: x, scale, noise, strength, bias. Sizes: samples, channels, pixels. Flags: channels_last, shared_noise.
ModulatedAct modulated_act(const std::array<Address, 5>& a, const std::array<int64_t, 3>& sizes,
                           const std::array<bool, 2>& flags, double slope, double gain) {
  return {at<const void>(a[0]), at<const void>(a[1]), at<const void>(a[2]), at<const void>(a[3]),
          at<const void>(a[4]), sizes[0],             sizes[1],             sizes[2],
          flags[0],             flags[1],             slope,                gain};
}

void define_modulated_act_cpu(py::module_& m) {
  const py::call_guard<py::gil_scoped_release> released;
  py::class_<ModulatedAct>(m, "ModulatedAct")
      .def(py::init(&modulated_act), py::arg("addresses"), py::arg("sizes"), py::arg("flags"), py::arg("slope"),
           py::arg("gain"));
  m.def(
      "modulated_act_cpu",
      [](const ModulatedAct& act, int type, Address out, int threads) {
        fastgan_modulated_act_cpu(&act, ModulatedActType(type), at<void>(out), threads);
      },
      released, py::arg("act"), py::arg("type"), py::arg("out"), py::arg("threads"));
  m.def(
      "modulated_act_backward_cpu",
      [](const ModulatedAct& act, int type, Address grad, Address dx, Address sums, int threads) {
        fastgan_modulated_act_backward_cpu(&act, ModulatedActType(type), at<const void>(grad), at<void>(dx),
                                           at<void>(sums), threads);
      },
      released, py::arg("act"), py::arg("type"), py::arg("grad"), py::arg("dx"), py::arg("sums"), py::arg("threads"));
}

// ---- winograd

// Sizes: samples, height, width, small, large.
Winograd winograd(const std::array<int64_t, 5>& n, int kernel, int tile) {
  return {n[0], n[1], n[2], n[3], n[4], kernel, tile};
}

void define_winograd_cpu(py::module_& m) {
  py::class_<Winograd>(m, "Winograd")
      .def(py::init(&winograd), py::arg("sizes"), py::arg("kernel"), py::arg("tile"))
      .def("scratch", [](const Winograd& conv, int way, int threads) {
        return fastgan_winograd_scratch(&conv, WinogradWay(way), threads);
      }, py::arg("way"), py::arg("threads"));
  m.def("winograd_here", &fastgan_winograd_here);
  m.def(
      "winograd_cpu",
      [](const Winograd& conv, int way, Address small, Address large, Address weight, Address scratch, int threads) {
        fastgan_winograd_cpu(&conv, WinogradWay(way), at<float>(small), at<float>(large), at<float>(weight),
                             at<float>(scratch), threads);
      },
      py::call_guard<py::gil_scoped_release>(), py::arg("conv"), py::arg("way"), py::arg("small"), py::arg("large"),
      py::arg("weight"), py::arg("scratch"), py::arg("threads"));
}

}  // namespace

PYBIND11_MODULE(_C, m) {
  m.doc() = "Native kernels of fastgan; see fastgan.kernels for what they compute.";
  m.attr("ABI") = kAbi;

  py::class_<AdamEmaCall>(m, "AdamEmaCall")
      .def(py::init(&adam_ema_call), py::arg("params"), py::arg("grads"), py::arg("exp_avgs"),
           py::arg("exp_avg_sqs"), py::arg("emas"), py::arg("sizes"), py::arg("scalars"), py::arg("eps"));
  m.def(
      "adam_ema_cpu",
      [](const AdamEmaCall& call, int types, int threads) {
        const AdamEmaTensors tensors = call.tensors();
        fastgan_adam_ema_cpu(&tensors, &call.scalars, AdamEmaTypes(types), threads);
      },
      py::call_guard<py::gil_scoped_release>(), py::arg("call"), py::arg("types"), py::arg("threads"));

  py::class_<CounterNoise>(m, "CounterNoise")
      .def(py::init(&counter_noise), py::arg("seed"), py::arg("stream"), py::arg("index"), py::arg("samples"),
           py::arg("elements"), py::arg("high"), py::arg("out"));
  m.def(
      "counter_noise_cpu",
      [](const CounterNoise& noise, int kind, int threads) {
        fastgan_counter_noise_cpu(&noise, CounterNoiseKind(kind), threads);
      },
      py::call_guard<py::gil_scoped_release>(), py::arg("noise"), py::arg("kind"), py::arg("threads"));

  py::class_<Fold>(m, "Fold")
      .def(py::init(&fold), py::arg("samples"), py::arg("channels"), py::arg("sizes"))
      .def_property_readonly("parts", [](const Fold& fold) { return fastgan_fold_parts(&fold); });
  m.def(
      "fold_cpu",
      [](const Fold& fold, int type, Address columns, Address bias, int act, double slope, Address y, Address parts,
         int threads) {
        const FoldAct then = {at<const void>(bias), NormActKind(act), slope};
        fastgan_fold_cpu(&fold, &then, NormActType(type), at<const void>(columns), at<void>(y), at<double>(parts),
                         threads);
      },
      py::call_guard<py::gil_scoped_release>(), py::arg("fold"), py::arg("type"), py::arg("columns"), py::arg("bias"),
      py::arg("act"), py::arg("slope"), py::arg("y"), py::arg("parts"), py::arg("threads"));
  m.def(
      "fold_stats_cpu",
      [](const Fold& fold, Address parts, Address mean, Address var) {
        fastgan_fold_stats_cpu(&fold, at<const double>(parts), at<double>(mean), at<double>(var));
      },
      py::call_guard<py::gil_scoped_release>(), py::arg("fold"), py::arg("parts"), py::arg("mean"), py::arg("var"));
  m.def(
      "unfold_cpu",
      [](const Fold& fold, int type, Address grad, Address a, int act, double slope, Address columns, int threads) {
        const FoldAct then = {nullptr, NormActKind(act), slope};
        fastgan_unfold_cpu(&fold, &then, NormActType(type), at<const void>(grad), at<const void>(a),
                           at<void>(columns), threads);
      },
      py::call_guard<py::gil_scoped_release>(), py::arg("fold"), py::arg("type"), py::arg("grad"), py::arg("a"),
      py::arg("act"), py::arg("slope"), py::arg("columns"), py::arg("threads"));

  py::class_<MaskedAct>(m, "MaskedAct")
      .def(py::init(&masked_act), py::arg("addresses"), py::arg("sizes"), py::arg("slope"));
  m.attr("SIMD_LEVEL") = int(fastgan_simd_level());
  m.def(
      "masked_act_cpu",
      [](const MaskedAct& act, int type, int threads, int level) {
        fastgan_masked_act_cpu(&act, MaskedActType(type), threads, SimdLevel(level));
      },
      py::call_guard<py::gil_scoped_release>(), py::arg("act"), py::arg("type"), py::arg("threads"), py::arg("level"));
  m.def(
      "apply_mask_cpu",
      [](const MaskedAct& act, int type, int threads, int level) {
        fastgan_apply_mask_cpu(&act, MaskedActType(type), threads, SimdLevel(level));
      },
      py::call_guard<py::gil_scoped_release>(), py::arg("act"), py::arg("type"), py::arg("threads"), py::arg("level"));

  define_data_cpu(m);
  define_metrics_cpu(m);
  define_modulated_act_cpu(m);
  define_norm_act_cpu(m);
  define_winograd_cpu(m);

#ifdef FASTGAN_CUDA
  define_data_cuda(m);
  define_metrics_cuda(m);
  define_norm_act_cuda(m);
  m.attr("ADAM_EMA_SCRATCH") = kAdamEmaScratch;
  m.def(
      "adam_ema_cuda",
      [](const AdamEmaCall& call, int types, Address scratch, int device, Address stream) {
        const AdamEmaTensors tensors = call.tensors();
        return fastgan_adam_ema_cuda(&tensors, &call.scalars, AdamEmaTypes(types), at<void>(scratch), device,
                                     at<void>(stream));
      },
      py::arg("call"), py::arg("types"), py::arg("scratch"), py::arg("device"), py::arg("stream"));
  m.def(
      "counter_noise_cuda",
      [](const CounterNoise& noise, int kind, int device, Address stream) {
        return fastgan_counter_noise_cuda(&noise, CounterNoiseKind(kind), device, at<void>(stream));
      },
      py::arg("noise"), py::arg("kind"), py::arg("device"), py::arg("stream"));
  m.def("cuda_status", &fastgan_cuda_status, py::arg("device"), "0, or why this build cannot run on `device`.");
  m.def(
      "cuda_error",
      [](int status) {
        return std::string(fastgan_cuda_error_name(status)) + ": " + fastgan_cuda_error_text(status);
      },
      py::arg("status"));
#endif
}
