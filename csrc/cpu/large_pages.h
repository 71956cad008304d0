// Memory in large pages where the system has them: a page fault costs as much as a copy of the page, and a matrix of 1000
// rows has 2000 pages of the usual size.
#pragma once

#include <cstdint>
#include <cstdlib>
#include <new>
#ifdef __linux__
#include <sys/mman.h>
#endif

namespace fastgan {
namespace {

constexpr int64_t kLargePage = 1 << 21;

// Advice for memory that nothing was written to yet; nothing depends on it.
inline void in_large_pages(void* memory, int64_t bytes) {
#if defined(__linux__) && defined(MADV_HUGEPAGE)
  const auto begin = (reinterpret_cast<intptr_t>(memory) + kLargePage - 1) / kLargePage * kLargePage;
  const auto end = (reinterpret_cast<intptr_t>(memory) + bytes) / kLargePage * kLargePage;
  if (begin < end) madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE);
#endif
}

// For one computation, with anything in it.
template <typename T>
class LargePages {
 public:
  explicit LargePages(int64_t count) {
    const int64_t bytes = count * static_cast<int64_t>(sizeof(T)), unit = bytes < kLargePage ? 64 : kLargePage;
    const int64_t whole = (bytes + unit - 1) / unit * unit;
    memory_ = std::aligned_alloc(unit, whole);
    if (!memory_) throw std::bad_alloc();
    in_large_pages(memory_, whole);
  }
  ~LargePages() { std::free(memory_); }
  LargePages(const LargePages&) = delete;
  LargePages& operator=(const LargePages&) = delete;

  T* begin() const { return static_cast<T*>(memory_); }

 private:
  void* memory_;
};

}  // namespace
}  // namespace fastgan
