// Bindings of what feeds: threads that fill batches, ingest, checksums, orders of images.
#pragma once

#include <unistd.h>

#include "bind/common.h"
#include "feed.h"
#include "ingest.h"
#include "sampler.h"

namespace {

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

void define_data_cpu(py::module_& m) {
  py::class_<Feeding>(m, "Feed")
      .def(py::init<const std::vector<FeedSetArguments>&, const std::array<int64_t, 3>&, const std::array<bool, 3>&, int,
                    const std::pair<Address, int64_t>&, int>(),
           py::arg("sets"), py::arg("samples"), py::arg("flags"), py::arg("type"), py::arg("labels"),
           py::arg("threads"))
      .def("give", &Feeding::give, py::arg("addresses"))
      .def("take", &Feeding::take, py::arg("wait"))
      .def("work", &Feeding::work)
      .def("stop", &Feeding::stop, py::call_guard<py::gil_scoped_release>(), py::arg("seconds"));

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
}

#ifdef FASTGAN_CUDA
void define_data_cuda(py::module_& m) {
  m.def(
      "ingest_cuda",
      [](const Ingest& ingest, int type, int device, Address stream) {
        return fastgan_ingest_cuda(&ingest, IngestType(type), device, at<void>(stream));
      },
      py::arg("ingest"), py::arg("type"), py::arg("device"), py::arg("stream"));
}
#endif

}  // namespace
