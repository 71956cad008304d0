// Memory for one computation, with anything in it, in large pages where the system has them: a page fault costs as much as a copy of the
// page, and a matrix of 1000 rows has 2000 pages of the usual size.
#pragma once

#include <cstdint>
#include <cstdlib>
#include <new>
#ifdef __linux__
#include <sys/mman.h>
#endif

namespace fastgan {
namespace {

template <typename T>
class LargePages {
 public:
  explicit LargePages(int64_t count) {
    constexpr int64_t page = 1 << 21;
    const int64_t bytes = count * static_cast<int64_t>(sizeof(T));
    const int64_t whole = bytes < page ? (bytes + 63) / 64 * 64 : (bytes + page - 1) / page * page;
    memory_ = std::aligned_alloc(bytes < page ? 64 : page, whole);
    if (!memory_) throw std::bad_alloc();
#if defined(__linux__) && defined(MADV_HUGEPAGE)
    if (bytes >= page) madvise(memory_, whole, MADV_HUGEPAGE);  // advice: nothing depends on it
#endif
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
