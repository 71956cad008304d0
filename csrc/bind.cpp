// The extension module fastgan._C: addresses in, nothing out. Python (fastgan/kernels) owns and checks every tensor.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <stdexcept>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "adam_ema.h"
#include "counter_noise.h"
#include "device.h"
#include "feed.h"
#include "fold.h"
#include "ingest.h"
#include "masked_act.h"
#include "modulated_act.h"
#include "norm_act.h"
#include "polynomial_mmd.h"
#include "sampler.h"
#include "symmetric_eigenvalues.h"
#include "symmetric_product.h"
#include "winograd.h"

namespace py = pybind11;
using namespace fastgan;
using Address = std::uintptr_t;
using Addresses = std::vector<Address>;

namespace {

// Counts up with every change of a signature below; fastgan/kernels/_runtime/extension.py expects the same number.
constexpr int kAbi = 10;

template <typename T>
T* at(Address address) {
  return reinterpret_cast<T*>(address);
}

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

// ---- feed

// Addresses: images, sums, seen. Sizes: count, block, height, width, channels.
using FeedSetArguments = std::tuple<std::array<Address, 3>, std::array<int64_t, 5>, uint64_t>;

FeedSet feed_set(const FeedSetArguments& arguments) {
  const auto& [a, n, seed] = arguments;
  return {at<const uint8_t>(a[0]), n[0], n[1], seed, at<const uint32_t>(a[1]), at<uint8_t>(a[2]), n[2], n[3], n[4]};
}

// Ends the threads with itself; one that does not end within `kPatience` seconds goes on alone. kLook: seconds between two
// looks at signals.
class Feeding {
 public:
  static constexpr double kPatience = 10, kLook = 0.1;

  // Samples: first, stride, batch. Flags: aligned, mirror, mirrored. Labels: address, classes.
  Feeding(const std::vector<FeedSetArguments>& sets, const std::array<int64_t, 3>& samples,
          const std::array<bool, 3>& flags, int type, const std::pair<Address, int64_t>& labels, int threads) {
    if (sets.empty() || sets.size() > 2) throw std::invalid_argument("feed: expected one or two sets");
    const FeedPlan plan = {{feed_set(sets.front()), feed_set(sets.back())}, int(sets.size()), flags[0],
                           samples[0], samples[1], samples[2], flags[1], flags[2], IngestType(type),
                           at<const int64_t>(labels.first), labels.second};
    feed_ = fastgan_feed_open(&plan, threads);
    process_ = getpid();
  }
  Feeding(const Feeding&) = delete;
  ~Feeding() {
    if (getpid() != process_) return;  // after a fork, which took none of the threads along
    stop(kPatience);
    fastgan_feed_free(feed_);
  }

  // Addresses: pixels and flipped of the first set, of the second; labels.
  void give(const std::array<Address, 5>& a) {
    const FeedSlot slot = {{at<void>(a[0]), at<void>(a[2])}, {at<uint8_t>(a[1]), at<uint8_t>(a[3])}, at<int64_t>(a[4])};
    fastgan_feed_give(feed_, &slot);
  }

  // (outcome, set, image), or None. Signals are looked at while it waits: Ctrl-C interrupts.
  py::object take(bool wait) {
    FeedResult result;
    do {
      bool ready;
      {
        const py::gil_scoped_release released;
        ready = fastgan_feed_take(feed_, wait ? kLook : 0, &result);
      }
      if (ready) return py::make_tuple(int(result.outcome), result.set, result.image);
      if (PyErr_CheckSignals() != 0) throw py::error_already_set();
    } while (wait);
    return py::none();
  }

  std::pair<int64_t, double> work() {
    std::pair<int64_t, double> found;
    fastgan_feed_work(feed_, &found.first, &found.second);
    return found;
  }

  bool stop(double seconds) { return fastgan_feed_stop(feed_, seconds); }

 private:
  Feed* feed_;
  pid_t process_;
};

// ---- fold

// Everything twice: rows and columns. Sizes: small, large, kernel, stride, padding, dilation.
Fold fold(int64_t samples, int64_t channels, const std::array<std::array<int64_t, 2>, 6>& sizes) {
  Fold fold = {samples, channels, {}, {}, {}, {}, {}, {}};
  int64_t* fields[6] = {fold.small, fold.large, fold.kernel, fold.stride, fold.padding, fold.dilation};
  for (int i = 0; i < 6; ++i) std::copy(sizes[i].begin(), sizes[i].end(), fields[i]);
  return fold;
}

// ---- ingest

// Sizes: samples, height, width, channels.
Ingest ingest(Address pixels, Address flip, const std::array<int64_t, 4>& sizes, Address out) {
  return {at<const uint8_t>(pixels), at<const uint8_t>(flip), sizes[0], sizes[1], sizes[2], sizes[3], at<void>(out)};
}

// Addresses: images, rows, sums, seen, flip, out. Sizes: samples, height, width, channels. Returns as the C++ function.
int64_t gather_cpu(const std::array<Address, 6>& a, int64_t count, const std::array<int64_t, 4>& sizes, int type) {
  const Gather gather = {at<const uint8_t>(a[0]),  count,           at<const int64_t>(a[1]),
                         at<const uint32_t>(a[2]), at<uint8_t>(a[3]), ingest(0, a[4], sizes, a[5])};
  return fastgan_gather_cpu(&gather, IngestType(type));
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

// ---- norm_act

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

// ---- winograd

// Sizes: samples, height, width, small, large.
Winograd winograd(const std::array<int64_t, 5>& n, int kernel, int tile) {
  return {n[0], n[1], n[2], n[3], n[4], kernel, tile};
}

// ---- polynomial_mmd

// of: values, pairs, both bases
FixedSamples fixed_samples(const std::array<Address, 4>& of) {
  return {at<const int16_t>(of[0]), at<const int32_t>(of[1]), {at<const float>(of[2]), at<const float>(of[3])}};
}

void polynomial_mmd_cpu(const std::array<Address, 4>& x, const std::array<Address, 4>& y, int64_t features,
                        std::array<Address, 2> members, std::array<int64_t, 2> sizes, std::array<float, 3> factors,
                        int degree, Address out, int threads) {
  const PolynomialMmd mmd = {fixed_samples(x),
                             fixed_samples(y),
                             features,
                             at<const int64_t>(members[0]),
                             at<const int64_t>(members[1]),
                             sizes[0],
                             sizes[1],
                             factors[0],
                             factors[1],
                             factors[2],
                             degree,
                             at<double>(out)};
  fastgan_polynomial_mmd_cpu(&mmd, threads);
}

// addresses: x, centre, partners within the set and with the other one;  sizes: n, d, features
ToFixed to_fixed(const std::array<Address, 4>& addresses, const std::array<int64_t, 3>& sizes, float unit) {
  return {at<const float>(addresses[0]),
          at<const float>(addresses[1]),
          sizes[0],
          sizes[1],
          sizes[2],
          unit,
          {at<const float>(addresses[2]), at<const float>(addresses[3])}};
}

void define_polynomial_mmd_cpu(py::module_& m) {
  m.def(
      "fixed_range_cpu",
      [](Address x, Address centre, std::array<int64_t, 2> sizes, Address norms, Address largest, int threads) {
        const ToFixed from = to_fixed({x, centre, 0, 0}, {sizes[0], sizes[1], 0}, 0);
        fastgan_fixed_range_cpu(&from, at<float>(norms), at<float>(largest), threads);
      },
      py::call_guard<py::gil_scoped_release>(), py::arg("x"), py::arg("centre"), py::arg("sizes"), py::arg("norms"),
      py::arg("largest"), py::arg("threads"));
  m.def(
      "to_fixed_cpu",
      [](const std::array<Address, 4>& addresses, const std::array<int64_t, 3>& sizes, float unit, Address values,
         Address pairs, Address alone, int threads) {
        const ToFixed from = to_fixed(addresses, sizes, unit);
        fastgan_to_fixed_cpu(&from, at<int16_t>(values), at<int32_t>(pairs), at<double>(alone), threads);
      },
      py::call_guard<py::gil_scoped_release>(), py::arg("addresses"), py::arg("sizes"), py::arg("unit"),
      py::arg("values"), py::arg("pairs"), py::arg("alone"), py::arg("threads"));
  m.def("polynomial_mmd_here", &fastgan_polynomial_mmd_here);
  m.def("polynomial_mmd_cpu", &polynomial_mmd_cpu, py::call_guard<py::gil_scoped_release>(), py::arg("x"), py::arg("y"),
        py::arg("features"), py::arg("members"), py::arg("sizes"), py::arg("factors"), py::arg("degree"), py::arg("out"),
        py::arg("threads"));
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

  py::class_<Feeding>(m, "Feed")
      .def(py::init<const std::vector<FeedSetArguments>&, const std::array<int64_t, 3>&, const std::array<bool, 3>&, int,
                    const std::pair<Address, int64_t>&, int>(),
           py::arg("sets"), py::arg("samples"), py::arg("flags"), py::arg("type"), py::arg("labels"),
           py::arg("threads"))
      .def("give", &Feeding::give, py::arg("addresses"))
      .def("take", &Feeding::take, py::arg("wait"))
      .def("work", &Feeding::work)
      .def("stop", &Feeding::stop, py::call_guard<py::gil_scoped_release>(), py::arg("seconds"));

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

  py::class_<Ingest>(m, "Ingest")
      .def(py::init(&ingest), py::arg("pixels"), py::arg("flip"), py::arg("sizes"), py::arg("out"));
  m.def(
      "ingest_cpu",
      [](const Ingest& ingest, int type, int threads) { fastgan_ingest_cpu(&ingest, IngestType(type), threads); },
      py::call_guard<py::gil_scoped_release>(), py::arg("ingest"), py::arg("type"), py::arg("threads"));
  m.def("gather_cpu", &gather_cpu, py::call_guard<py::gil_scoped_release>(), py::arg("addresses"), py::arg("count"),
        py::arg("sizes"), py::arg("type"));
  m.def(
      "crc32", [](Address data, int64_t size) { return fastgan_crc32(at<const uint8_t>(data), size); },
      py::call_guard<py::gil_scoped_release>(), py::arg("data"), py::arg("size"));

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

  m.def(
      "image_order_cpu",
      [](uint64_t seed, int64_t count, int64_t block, Address samples, int64_t n, Address out) {
        fastgan_image_order_cpu(seed, count, block, at<const int64_t>(samples), n, at<int64_t>(out));
      },
      py::call_guard<py::gil_scoped_release>(), py::arg("seed"), py::arg("count"), py::arg("block"),
      py::arg("samples"), py::arg("n"), py::arg("out"));
  m.def(
      "flips_cpu",
      [](uint64_t seed, Address samples, int64_t n, Address out) {
        fastgan_flips_cpu(seed, at<const int64_t>(samples), n, at<uint8_t>(out));
      },
      py::call_guard<py::gil_scoped_release>(), py::arg("seed"), py::arg("samples"), py::arg("n"), py::arg("out"));
  m.def(
      "symmetric_eigenvalues_cpu",
      [](Address a, Address values, int64_t n, int64_t stride, int threads) {
        const SymmetricEigenvalues of = {at<const double>(a), n, stride, at<double>(values)};
        return fastgan_symmetric_eigenvalues_cpu(&of, threads);
      },
      py::call_guard<py::gil_scoped_release>(), py::arg("a"), py::arg("values"), py::arg("n"), py::arg("stride"),
      py::arg("threads"));

  define_modulated_act_cpu(m);
  define_norm_act_cpu(m);
  define_polynomial_mmd_cpu(m);
  define_winograd_cpu(m);

#ifdef FASTGAN_CUDA
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
  m.def(
      "ingest_cuda",
      [](const Ingest& ingest, int type, int device, Address stream) {
        return fastgan_ingest_cuda(&ingest, IngestType(type), device, at<void>(stream));
      },
      py::arg("ingest"), py::arg("type"), py::arg("device"), py::arg("stream"));
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
  m.def("cuda_status", &fastgan_cuda_status, py::arg("device"), "0, or why this build cannot run on `device`.");
  m.def(
      "cuda_error",
      [](int status) {
        return std::string(fastgan_cuda_error_name(status)) + ": " + fastgan_cuda_error_text(status);
      },
      py::arg("status"));
#endif
}
