// CUDA on a CPU, for tests of what kernels compute where there is no GPU: which elements they read and write, in which
// order they add, and who waits for whom. A block is an operating-system thread, and its CUDA threads take turns in it
// as coroutines, each until it waits; in the other order after every wait, so that a missing wait shows. What it does
// not show: speed, registers, and what other threads see of memory without a fence.
#pragma once

#include <setjmp.h>
#include <ucontext.h>

#include <algorithm>
#include <atomic>
#include <barrier>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <memory>
#include <thread>
#include <vector>

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __shared__ static thread_local

using std::exp, std::erf, std::erfc, std::fma, std::max, std::min, std::sqrt, std::tanh;

struct dim3 {
  unsigned x = 1, y = 1, z = 1;
  dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};
struct uint4 {
  unsigned x, y, z, w;
};

namespace emulator {

constexpr unsigned kWarp = 32, kStack = 32 << 10;
constexpr std::size_t kShared = 40 << 10;  // bytes that a block can have: few, so that little fits
inline int multiprocessors = 2, blocks_per_multiprocessor = 2;
inline bool cooperative = true;

enum class State : char { kRuns, kWaitsForWarp, kWaitsForBlock, kWaitsForGrid, kDone };

struct Place {  // where a thread goes on; a jump there costs no system call, as swapcontext does
  jmp_buf jump;
};

struct Block {
  dim3 grid, index;
  unsigned threads = 0, current = 0;
  std::unique_ptr<char[]> stacks;
  std::vector<Place> places;
  std::vector<State> states;
  std::vector<double> exchanged;  // one number per thread, of a shuffle
  Place scheduler;
  std::function<void()> body;
  std::barrier<>* whole_grid = nullptr;

  // Whether threads first .. last - 1 are all in `state`.
  bool all(State state, unsigned first, unsigned last) const {
    return std::all_of(states.begin() + first, states.begin() + last, [=](State s) { return s == state; });
  }
  void release(unsigned first, unsigned last) { std::fill(states.begin() + first, states.begin() + last, State::kRuns); }
};
inline thread_local Block* block = nullptr;

inline void leave(State state) {
  block->states[block->current] = state;
  if (_setjmp(block->places[block->current].jump) == 0) _longjmp(block->scheduler.jump, 1);
}

inline void enter() {
  block->body();
  leave(State::kDone);
}

// Lets those go on who have all come to the same place. Aborts where nobody can: a kernel that would hang.
inline void release(Block& b) {
  bool any = false;
  for (unsigned first = 0; first < b.threads; first += kWarp)
    if (b.all(State::kWaitsForWarp, first, first + kWarp)) b.release(first, first + kWarp), any = true;
  if (b.all(State::kWaitsForBlock, 0, b.threads)) b.release(0, b.threads), any = true;
  if (b.all(State::kWaitsForGrid, 0, b.threads)) {
    b.whole_grid->arrive_and_wait();
    b.release(0, b.threads), any = true;
  }
  if (!any) std::abort();
}

// The variables that live across a jump are not changed between the two returns of _setjmp.
inline void run_block(Block& b) {
  block = &b;
  b.places.resize(b.threads);
  b.stacks.reset(new char[std::size_t(b.threads) * kStack]);  // not touched before they are needed
  b.states.assign(b.threads, State::kRuns);
  b.exchanged.assign(b.threads, 0);
  std::vector<bool> started(b.threads, false);
  for (bool forward = true; !b.all(State::kDone, 0, b.threads); forward = !forward) {
    for (unsigned k = 0; k < b.threads; ++k) {
      b.current = forward ? k : b.threads - 1 - k;
      if (b.states[b.current] != State::kRuns || _setjmp(b.scheduler.jump) != 0) continue;
      if (started[b.current]) _longjmp(b.places[b.current].jump, 1);
      started[b.current] = true;
      ucontext_t start;
      getcontext(&start);
      start.uc_stack.ss_sp = b.stacks.get() + std::size_t(b.current) * kStack;
      start.uc_stack.ss_size = kStack;
      start.uc_link = nullptr;
      makecontext(&start, enter, 0);
      setcontext(&start);
    }
    if (!b.all(State::kDone, 0, b.threads)) release(b);
  }
}

inline thread_local std::vector<uint4> dynamic;  // shared memory that is asked for at launch

template <typename Kernel, typename... Arguments>
void launch(Kernel kernel, dim3 grid, unsigned threads, std::size_t shared, bool all_at_once, Arguments... arguments) {
  const unsigned blocks = grid.x * grid.y * grid.z;
  std::barrier<> whole_grid(all_at_once ? blocks : 1);
  const auto one = [&](unsigned i) {
    Block b;
    b.grid = grid;
    b.index = dim3(i % grid.x, i / grid.x % grid.y, i / grid.x / grid.y);
    b.threads = threads;
    b.body = [&] { kernel(arguments...); };
    b.whole_grid = &whole_grid;
    dynamic.assign(shared / sizeof(uint4), {0x7FC07FC0, 0x7FC07FC0, 0x7FC07FC0, 0x7FC07FC0});
    run_block(b);
  };
  std::vector<std::thread> running;
  for (unsigned i = 0; i < blocks; ++i) {
    running.emplace_back(one, i);  // a thread of its own each: thread_local is the block's shared memory
    if (!all_at_once) running.back().join();
  }
  if (all_at_once)
    for (std::thread& thread : running) thread.join();
}

struct ThreadIndex {
  struct {
    operator unsigned() const { return block->current; }
  } x;
};
struct BlockIndex {
  struct {
    operator unsigned() const { return block->index.x; }
  } x;
  struct {
    operator unsigned() const { return block->index.y; }
  } y;
};
struct GridDim {
  struct {
    operator unsigned() const { return block->grid.x; }
  } x;
  struct {
    operator unsigned() const { return block->grid.y; }
  } y;
};

}  // namespace emulator

inline emulator::ThreadIndex threadIdx;
inline emulator::BlockIndex blockIdx;
inline emulator::GridDim gridDim;

inline void __syncthreads() { emulator::leave(emulator::State::kWaitsForBlock); }

inline double __shfl_sync(unsigned, double value, int lane) {
  emulator::Block& b = *emulator::block;
  b.exchanged[b.current] = value;
  emulator::leave(emulator::State::kWaitsForWarp);
  const double other = b.exchanged[b.current / emulator::kWarp * emulator::kWarp + unsigned(lane)];
  emulator::leave(emulator::State::kWaitsForWarp);
  return other;
}

inline double __shfl_xor_sync(unsigned, double value, int lanes) {
  emulator::Block& b = *emulator::block;
  b.exchanged[b.current] = value;
  emulator::leave(emulator::State::kWaitsForWarp);
  const double other = b.exchanged[b.current ^ unsigned(lanes)];
  emulator::leave(emulator::State::kWaitsForWarp);
  return other;
}

inline double __ldcg(const double* from) { return *from; }

// ---- the host's side: what these kernels' launches ask for

enum cudaError_t {
  cudaSuccess = 0,
  cudaErrorInvalidValue = 1,
  cudaErrorInvalidConfiguration = 9,
  cudaErrorNotSupported = 801,
  cudaErrorCooperativeLaunchTooLarge = 720
};
enum cudaDeviceAttr {
  cudaDevAttrMultiProcessorCount,
  cudaDevAttrCooperativeLaunch,
  cudaDevAttrMaxSharedMemoryPerMultiprocessor,
  cudaDevAttrMaxSharedMemoryPerBlockOptin,
  cudaDevAttrReservedSharedMemoryPerBlock
};
enum cudaFuncAttribute { cudaFuncAttributePreferredSharedMemoryCarveout, cudaFuncAttributeMaxDynamicSharedMemorySize };
enum { cudaSharedmemCarveoutMaxShared = 100 };
struct cudaFuncAttributes {
  std::size_t sharedSizeBytes;
};
using cudaStream_t = void*;

inline cudaError_t cudaGetDevice(int* device) { return *device = 0, cudaSuccess; }
inline cudaError_t cudaSetDevice(int) { return cudaSuccess; }
inline cudaError_t cudaGetLastError() { return cudaSuccess; }
inline cudaError_t cudaMemsetAsync(void* to, int value, std::size_t bytes, cudaStream_t) {
  return std::memset(to, value, bytes), cudaSuccess;
}
inline cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr what, int) {
  *value = what == cudaDevAttrMultiProcessorCount                  ? emulator::multiprocessors
           : what == cudaDevAttrCooperativeLaunch                  ? int(emulator::cooperative)
           : what == cudaDevAttrMaxSharedMemoryPerMultiprocessor   ? 2 * int(emulator::kShared)
           : what == cudaDevAttrMaxSharedMemoryPerBlockOptin       ? int(emulator::kShared)
                                                                   : 1024;
  return cudaSuccess;
}
template <typename Kernel>
cudaError_t cudaFuncGetAttributes(cudaFuncAttributes* attributes, Kernel) {
  return attributes->sharedSizeBytes = 20 << 10, cudaSuccess;
}
template <typename Kernel>
cudaError_t cudaFuncSetAttribute(Kernel, cudaFuncAttribute, int) {
  return cudaSuccess;
}
template <typename Kernel>
cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessor(int* blocks, Kernel, int, std::size_t) {
  return *blocks = emulator::blocks_per_multiprocessor, cudaSuccess;
}

// With the types of the kernel, which the array of addresses lacks.
template <typename... Arguments, std::size_t... kIndex>
void launch_resident_kernel(void (*kernel)(Arguments...), dim3 grid, unsigned threads, void** arguments,
                            std::size_t shared, std::index_sequence<kIndex...>) {
  emulator::launch(kernel, grid, threads, shared, true,
                   *static_cast<std::remove_reference_t<Arguments>*>(arguments[kIndex])...);
}
template <typename... Arguments>
cudaError_t cudaLaunchCooperativeKernel(void (*kernel)(Arguments...), dim3 grid, unsigned threads, void** arguments,
                                        std::size_t shared, cudaStream_t) {
  launch_resident_kernel(kernel, grid, threads, arguments, shared, std::index_sequence_for<Arguments...>());
  return cudaSuccess;
}
