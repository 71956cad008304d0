#include "winograd.h"

#ifdef _OPENMP
#include <omp.h>
#endif

#include <algorithm>

#include "avx2.h"
#include "winograd_tile.h"

namespace {

using namespace fastgan;

constexpr int64_t kBlock = 48;      // tiles of a block: their transforms stay in the caches of a core
constexpr int64_t kChunk = 4 << 20;  // bytes of transformed inputs that a weight gradient has in memory at a time

// A convolution with what follows from its numbers. Blocks are of kLanes channels.
template <class F>
struct Sizes : Winograd {
  static constexpr int points = F::t * F::t, phases = F::stride * F::stride, taps = F::r * F::r;
  int64_t down, across, tiles, small_blocks, large_blocks;

  explicit Sizes(const Winograd& of) : Winograd(of) {
    down = (height + F::m - 1) / F::m, across = (width + F::m - 1) / F::m, tiles = samples * down * across;
    small_blocks = small / kLanes, large_blocks = large / kLanes;
  }

  // Numbers per tile: of the transformed inputs, and of the sums or of the transformed gradients.
  int64_t inputs(WinogradWay way) const { return points * (way == WinogradWay::kUp ? small : phases * large); }
  int64_t others(WinogradWay way) const { return points * (way == WinogradWay::kUp ? large : small); }
  // Where element e of a phase's taps is in the weight, for small channel d.
  int64_t tap(int64_t d, int64_t phase, int e) const {
    const int64_t row = F::stride * (e / F::r) + phase / F::stride, column = F::stride * (e % F::r) + phase % F::stride;
    return ((d * kernel + row) * kernel + column) * large;
  }
  int64_t weights() const { return points * phases * small * large; }  // numbers of the transformed weight
  int64_t block() const {  // tiles of a block, of which threads have about as many
    const int64_t blocks = (tiles + kBlock - 1) / kBlock;
    return (tiles + blocks - 1) / blocks;
  }
  int64_t chunk() const {
    const int64_t bytes = inputs(WinogradWay::kWeight) * int64_t(sizeof(float));
    return std::min<int64_t>(tiles, std::max<int64_t>(kBlock, kChunk / bytes / kLanes * kLanes));
  }

  struct Tile {
    int64_t sample, row, column;  // of its first output
  };
  Tile tile(int64_t number) const {
    const int64_t row = number / across;
    return {row / down, row % down * F::m, number % across * F::m};
  }
};

alignas(64) constexpr float kZeros[kLanes] = {};

// The pixels of a window of kSide x kSide, of which those beyond the map are zeros, or are not written.
template <int kSide>
struct Window {
  const float* at[kSide * kSide];
  int64_t inside[kSide * kSide];  // all bits or none

  // map: [height, width, channels] of a sample; pixel (i, j) of the window is (row + i * step, column + j * step) of it
  FASTGAN_HD Window(const float* map, int64_t height, int64_t width, int64_t channels, int64_t row, int64_t column,
                    int64_t step) {
    for (int64_t i = 0; i < kSide; ++i)
      for (int64_t j = 0; j < kSide; ++j) {
        const int64_t r = row + i * step, c = column + j * step;
        const bool is = r >= 0 && r < height && c >= 0 && c < width;
        at[i * kSide + j] = is ? map + (r * width + c) * channels : kZeros;
        inside[i * kSide + j] = is ? -1 : 0;
      }
  }
  FASTGAN_HD const float* from(int e, int64_t channel) const { return at[e] + (channel & inside[e]); }
  FASTGAN_HD float* to(int e, int64_t channel, float* elsewhere) const {
    return inside[e] ? const_cast<float*>(at[e]) + channel : elsewhere;
  }
};

// ---- the steps, of some of the tiles or blocks

// u [points][small blocks][phases][large][lanes] from the weight, for forward.
template <typename V, class F>
FASTGAN_HD void taps_down(const Sizes<F>& s, const float* weight, float* u, int64_t begin, int64_t end) {
  const int64_t inner = s.phases * s.large;
  alignas(64) float turned[F::r * F::r][kLanes][kLanes];
  for (int64_t task = begin; task < end; ++task) {
    const int64_t block = task / s.large_blocks % s.small_blocks, channel = task % s.large_blocks * kLanes;
    const int64_t phase = task / s.large_blocks / s.small_blocks;
    for (int e = 0; e < s.taps; ++e)
      for (int64_t d = 0; d < kLanes; ++d) {
        const float* from = weight + s.tap(block * kLanes + d, phase, e) + channel;
        for (int64_t c = 0; c < kLanes; ++c) turned[e][c][d] = from[c];
      }
    float* to = u + (block * inner + phase * s.large + channel) * kLanes;
    for (int64_t c = 0; c < kLanes; ++c)
      transform<V>(F::taps, [&](int e) { return turned[e][c]; },
                   [&](int p) { return to + (p * s.small_blocks * inner + c) * kLanes; });
  }
}

// u [points][phases][large blocks][small][lanes] from the weight, its taps in reverse order, for the transpose.
template <typename V, class F>
FASTGAN_HD void taps_up(const Sizes<F>& s, const float* weight, float* u, int64_t begin, int64_t end) {
  const int64_t columns = s.phases * s.large_blocks;
  for (int64_t task = begin; task < end; ++task) {
    const int64_t opposite = s.phases - 1 - task / s.large_blocks, block = task % s.large_blocks;
    for (int64_t d = 0; d < s.small; ++d)
      transform<V>(F::taps, [&](int e) { return weight + s.tap(d, opposite, s.taps - 1 - e) + block * kLanes; },
                   [&](int p) { return u + ((p * columns + task) * s.small + d) * kLanes; });
  }
}

// v [points][phases][large blocks][room][lanes]: transformed inputs of the tiles from `first` on, numbers begin to end of them.
template <typename V, class F>
FASTGAN_HD void large_tiles(const Sizes<F>& s, const float* large, int64_t first, int64_t room, float* v, int64_t begin,
                            int64_t end) {
  const int64_t height = F::stride * s.height, width = F::stride * s.width, columns = s.phases * s.large_blocks;
  for (int64_t n = begin; n < end; ++n) {
    const auto tile = s.tile(first + n);
    const float* map = large + tile.sample * height * width * s.large;
    for (int64_t phase = 0; phase < s.phases; ++phase) {
      const Window<F::t> window(map, height, width, s.large, F::stride * tile.row + phase / F::stride - 1,
                                F::stride * tile.column + phase % F::stride - 1, F::stride);
      for (int64_t block = 0; block < s.large_blocks; ++block) {
        float* to = v + ((phase * s.large_blocks + block) * room + n) * kLanes;
        transform<V>(F::in, [&](int e) { return window.from(e, block * kLanes); },
                     [&](int p) { return to + p * columns * room * kLanes; });
      }
    }
  }
}

// Sums m [points][blocks][room][lanes] of tiles from `first` on to the pixels of a map at (row, column) of a tile's first.
template <typename V, class F>
FASTGAN_HD void outputs(const float* m, int64_t blocks, int64_t room, int64_t n, const Window<F::m>& pixels) {
  alignas(64) float elsewhere[kLanes];
  for (int64_t block = 0; block < blocks; ++block) {
    const float* from = m + (block * room + n) * kLanes;
    transform<V>(F::out, [&](int p) { return from + p * blocks * room * kLanes; },
                 [&](int e) { return pixels.to(e, block * kLanes, elsewhere); });
  }
}

// Tiles first to first + count of the small map, from the large one. v, m: memory for their transforms and sums.
template <typename V, class F>
FASTGAN_HD void down_block(const Sizes<F>& s, const float* large, const float* u, int64_t first, int64_t count, float* v,
                           float* m, float* small) {
  const int64_t columns = s.phases * s.large_blocks, depth = columns * kLanes;
  large_tiles<V, F>(s, large, first, count, v, 0, count);
  for (int64_t p = 0; p < s.points; ++p)
    for (int64_t block = 0; block < s.small_blocks; ++block)
      products<V, kLanes, 1>(count, columns, count * kLanes, kLanes, v + p * columns * count * kLanes,
                             u + (p * s.small_blocks + block) * depth * kLanes,
                             m + (p * s.small_blocks + block) * count * kLanes, false);
  for (int64_t n = 0; n < count; ++n) {
    const auto tile = s.tile(first + n);
    const float* map = small + tile.sample * s.height * s.width * s.small;
    outputs<V, F>(m, s.small_blocks, count, n, {map, s.height, s.width, s.small, tile.row, tile.column, 1});
  }
}

// The same of the large map, from the small one.
template <typename V, class F>
FASTGAN_HD void up_block(const Sizes<F>& s, const float* small, const float* u, int64_t first, int64_t count, float* v,
                         float* m, float* large) {
  const int64_t height = F::stride * s.height, width = F::stride * s.width, depth = s.small_blocks * kLanes;
  for (int64_t phase = 0; phase < s.phases; ++phase) {
    const int64_t row = phase / F::stride, column = phase % F::stride;
    for (int64_t n = 0; n < count; ++n) {
      const auto tile = s.tile(first + n);
      const Window<F::t> window(small + tile.sample * s.height * s.width * s.small, s.height, s.width, s.small,
                                tile.row + (row + 1) / F::stride - F::r + 1,
                                tile.column + (column + 1) / F::stride - F::r + 1, 1);
      for (int64_t block = 0; block < s.small_blocks; ++block) {
        float* to = v + (block * count + n) * kLanes;
        transform<V>(F::in, [&](int e) { return window.from(e, block * kLanes); },
                     [&](int p) { return to + p * depth * count; });
      }
    }
    for (int64_t p = 0; p < s.points; ++p)
      for (int64_t block = 0; block < s.large_blocks; ++block)
        products<V, kLanes, 1>(count, s.small_blocks, count * kLanes, kLanes, v + p * depth * count,
                               u + ((p * s.phases + phase) * s.large_blocks + block) * depth * kLanes,
                               m + (p * s.large_blocks + block) * count * kLanes, false);
    for (int64_t n = 0; n < count; ++n) {
      const auto tile = s.tile(first + n);
      const float* map = large + tile.sample * height * width * s.large;
      outputs<V, F>(m, s.large_blocks, count, n, {map, height, width, s.large, F::stride * tile.row + row,
                                                  F::stride * tile.column + column, F::stride});
    }
  }
}

// y [points][small blocks][room][lanes]: transformed gradients, as `large_tiles`.
template <typename V, class F>
FASTGAN_HD void small_tiles(const Sizes<F>& s, const float* small, int64_t first, int64_t room, float* y, int64_t begin,
                            int64_t end) {
  constexpr auto matrix = transposed(F::out);
  for (int64_t n = begin; n < end; ++n) {
    const auto tile = s.tile(first + n);
    const Window<F::m> window(small + tile.sample * s.height * s.width * s.small, s.height, s.width, s.small, tile.row,
                              tile.column, 1);
    for (int64_t block = 0; block < s.small_blocks; ++block) {
      float* to = y + (block * room + n) * kLanes;
      transform<V>(matrix, [&](int e) { return window.from(e, block * kLanes); },
                   [&](int p) { return to + p * s.small_blocks * room * kLanes; });
    }
  }
}

// u [points][small blocks][phases][large blocks][lanes][lanes] (+)= the sums over tiles, of points and small blocks.
template <typename V, class F>
FASTGAN_HD void weight_sums(const Sizes<F>& s, const float* v, const float* y, int64_t room, float* u, bool add, int64_t begin,
                            int64_t end) {
  const int64_t columns = s.phases * s.large_blocks;
  for (int64_t task = begin; task < end; ++task)
    for (int64_t block = 0; block < columns; ++block)
      products<V, 1, kLanes>(kLanes, 1, 0, room, y + task * room * kLanes,
                             v + (task / s.small_blocks * columns + block) * room * kLanes,
                             u + (task * columns + block) * kLanes * kLanes, add);
}

// The weight from these sums, of small blocks.
template <typename V, class F>
FASTGAN_HD void weight_blocks(const Sizes<F>& s, const float* u, float* weight, int64_t begin, int64_t end) {
  constexpr auto matrix = transposed(F::taps);
  const int64_t columns = s.phases * s.large_blocks, square = kLanes * kLanes;
  for (int64_t task = begin; task < end; ++task) {
    const int64_t block = task / columns, phase = task % columns / s.large_blocks, channel = task % s.large_blocks * kLanes;
    for (int64_t d = 0; d < kLanes; ++d) {
      const float* from = u + task * square + d * kLanes;
      transform<V>(matrix, [&](int p) { return from + p * s.small_blocks * columns * square; },
                   [&](int e) { return weight + s.tap(block * kLanes + d, phase, e) + channel; });
    }
  }
}

// ---- the steps for one processor

template <class F>
struct Steps {
  void (*taps_down)(const Sizes<F>&, const float*, float*, int64_t, int64_t);
  void (*taps_up)(const Sizes<F>&, const float*, float*, int64_t, int64_t);
  void (*down_block)(const Sizes<F>&, const float*, const float*, int64_t, int64_t, float*, float*, float*);
  void (*up_block)(const Sizes<F>&, const float*, const float*, int64_t, int64_t, float*, float*, float*);
  void (*large_tiles)(const Sizes<F>&, const float*, int64_t, int64_t, float*, int64_t, int64_t);
  void (*small_tiles)(const Sizes<F>&, const float*, int64_t, int64_t, float*, int64_t, int64_t);
  void (*weight_sums)(const Sizes<F>&, const float*, const float*, int64_t, float*, bool, int64_t, int64_t);
  void (*weight_blocks)(const Sizes<F>&, const float*, float*, int64_t, int64_t);
};

#ifdef FASTGAN_AVX2
template <auto step, typename... Arguments>
FASTGAN_AVX2 void on_avx2(Arguments... arguments) {
  step(arguments...);
}

template <auto step, typename... Arguments>
__attribute__((target("avx512f"))) void on_avx512(Arguments... arguments) {
  step(arguments...);
}

template <class F>
const Steps<F>& steps_here() {
  using Eight = Vector<float, 32>::Type;
  using Sixteen = Vector<float, 64>::Type;
  static const Steps<F> avx2 = {
      on_avx2<taps_down<Eight, F>>,   on_avx2<taps_up<Eight, F>>,     on_avx2<down_block<Eight, F>>,
      on_avx2<up_block<Eight, F>>,    on_avx2<large_tiles<Eight, F>>, on_avx2<small_tiles<Eight, F>>,
      on_avx2<weight_sums<Eight, F>>, on_avx2<weight_blocks<Eight, F>>};
  static const Steps<F> avx512 = {
      on_avx512<taps_down<Sixteen, F>>,   on_avx512<taps_up<Sixteen, F>>,     on_avx512<down_block<Sixteen, F>>,
      on_avx512<up_block<Sixteen, F>>,    on_avx512<large_tiles<Sixteen, F>>, on_avx512<small_tiles<Sixteen, F>>,
      on_avx512<weight_sums<Sixteen, F>>, on_avx512<weight_blocks<Sixteen, F>>};
  return __builtin_cpu_supports("avx512f") ? avx512 : avx2;
}

bool is_here() { return has_avx2(); }
#else
template <class F>
const Steps<F>& steps_here() {
  using Four = Vector<float, 16>::Type;
  static const Steps<F> plain = {taps_down<Four, F>,   taps_up<Four, F>,     down_block<Four, F>,  up_block<Four, F>,
                                 large_tiles<Four, F>, small_tiles<Four, F>, weight_sums<Four, F>, weight_blocks<Four, F>};
  return plain;
}

bool is_here() { return false; }  // measured on x86 only
#endif

// ---- whole convolutions

int thread_here() {
#ifdef _OPENMP
  return omp_get_thread_num();
#else
  return 0;
#endif
}

// work(begin, end) for all of 0 to count, by several threads, `piece` at a time.
template <typename Work>
void together(int64_t count, int64_t piece, int threads, const Work& work) {
#pragma omp parallel for schedule(dynamic) num_threads(threads) if (threads > 1 && count > piece)
  for (int64_t begin = 0; begin < count; begin += piece) work(begin, std::min(begin + piece, count));
}

template <class F>
int64_t scratch(const Sizes<F>& s, WinogradWay way, int threads) {
  const int64_t tiles = way == WinogradWay::kWeight ? s.chunk() : threads * s.block();
  return s.weights() + tiles * (s.inputs(way) + s.others(way));
}

template <class F>
void blocks(const Sizes<F>& s, WinogradWay way, float* small, float* large, const float* weight, float* u, int threads) {
  const Steps<F>& steps = steps_here<F>();
  const bool down = way == WinogradWay::kDown;
  const int64_t tasks = s.phases * s.large_blocks * (down ? s.small_blocks : 1), block = s.block();
  const int64_t v_size = block * s.inputs(way), each = v_size + block * s.others(way);
  together(tasks, 1, threads, [&](int64_t begin, int64_t end) {
    (down ? steps.taps_down : steps.taps_up)(s, weight, u, begin, end);
  });
  together(s.tiles, block, threads, [&](int64_t begin, int64_t end) {
    float* const v = u + s.weights() + thread_here() * each;
    if (down) steps.down_block(s, large, u, begin, end - begin, v, v + v_size, small);
    else steps.up_block(s, small, u, begin, end - begin, v, v + v_size, large);
  });
}

template <class F>
void weight_gradient(const Sizes<F>& s, const float* small, const float* large, float* weight, float* u, int threads) {
  const Steps<F>& steps = steps_here<F>();
  float *const v = u + s.weights(), *const y = v + s.chunk() * s.inputs(WinogradWay::kWeight);
  for (int64_t first = 0; first < s.tiles; first += s.chunk()) {
    const int64_t count = std::min(s.chunk(), s.tiles - first);
    together(count, kLanes, threads, [&](int64_t begin, int64_t end) {
      steps.large_tiles(s, large, first, count, v, begin, end);
      steps.small_tiles(s, small, first, count, y, begin, end);
    });
    together(s.points * s.small_blocks, 1, threads, [&](int64_t begin, int64_t end) {
      steps.weight_sums(s, v, y, count, u, first > 0, begin, end);
    });
  }
  const int64_t tasks = s.small_blocks * s.phases * s.large_blocks;
  together(tasks, 4, threads, [&](int64_t begin, int64_t end) { steps.weight_blocks(s, u, weight, begin, end); });
}

// run(sizes) with those of its kernel and tile.
template <typename Run>
auto with_sizes(const Winograd& conv, const Run& run) {
  if (conv.kernel == 4) return conv.tile == 2 ? run(Sizes<Two2>(conv)) : run(Sizes<Four2>(conv));
  return conv.tile == 2 ? run(Sizes<Two3>(conv)) : run(Sizes<Four3>(conv));
}

}  // namespace

bool fastgan_winograd_here() { return is_here(); }

int64_t fastgan_winograd_scratch(const Winograd* conv, WinogradWay way, int threads) {
  return with_sizes(*conv, [&](const auto& sizes) { return scratch(sizes, way, threads); });
}

void fastgan_winograd_cpu(const Winograd* conv, WinogradWay way, float* small, float* large, float* weight, float* scratch,
                          int threads) {
  with_sizes(*conv, [&](const auto& sizes) {
    if (way == WinogradWay::kWeight) weight_gradient(sizes, small, large, weight, scratch, threads);
    else blocks(sizes, way, small, large, weight, scratch, threads);
  });
}
