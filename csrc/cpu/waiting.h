// Threads that wait for each other, often and for short: without a call of the system, but not at the price of a
// processor that another thread needs. (OpenMP's barriers keep theirs for milliseconds: where something else ran beside
// two threads on two processors, each barrier took a time slice.)
#pragma once

#include <atomic>
#include <thread>

namespace fastgan {
namespace {

// Until `done` returns true
template <typename Done>
inline void await(const Done& done) {
  for (int tries = 0; !done(); ++tries)
    if (tries > 2000) std::this_thread::yield();
}

// Where a number of threads, the same each time or fewer, come together before any of them goes on
class Meeting {
 public:
  void wait(int threads) {
    const int now = round_.load(std::memory_order_acquire);
    if (arrived_.fetch_add(1, std::memory_order_acq_rel) + 1 == threads) {
      arrived_.store(0, std::memory_order_relaxed);
      round_.store(now + 1, std::memory_order_release);
    } else {
      await([&] { return round_.load(std::memory_order_acquire) != now; });
    }
  }

 private:
  alignas(64) std::atomic<int> arrived_{0};
  alignas(64) std::atomic<int> round_{0};
};

}  // namespace
}  // namespace fastgan
