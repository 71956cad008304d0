// Convolutions of 4x4 with stride 2 and of 3x3 with stride 1 (padding 1 both), and their two transposes, by minimal
// filtering: fewer multiplications than products (Winograd, "Arithmetic complexity of computations", 1980; Lavin and Gray,
// "Fast algorithms for convolutional neural networks", 2016, arXiv:1509.09308).
//
// A stride of s splits a kernel of s r elements into s phases of r taps. Of one phase and in one dimension, m outputs of r
// taps take t = m + r - 1 multiplications, one at each of t points:
//
//     forward             Y = A^T [(G w) (B^T d)]        d: t inputs, w: r taps, Y: m outputs
//     weight gradient    dw = G^T [(A dY) (B^T d)]
//     transpose          as forward, of the taps in reverse order, one phase of the output after the other
//
// and in two dimensions t^2. What the brackets sum over (channels and phases, or tiles) are t^2 products of matrices. With
// m = 4 a 4x4 kernel takes 25 multiplications for 64, with m = 2 9 for 16; a 3x3 one with m = 4 takes 36 for 144, with m = 2
// 16 for 36. The sums are of other terms than the plain ones: rounding errors are larger by a factor that does not depend
// on the sizes (docs/step.md).
#pragma once

#include <cstdint>

namespace fastgan {

// The small map [samples, height, width, small], the large one [samples, s height, s width, large] and the weight
// [small, kernel, kernel, large], all dense in this order; channels in multiples of 16. tile: m, 2 or 4.
struct Winograd {
  int64_t samples, height, width, small, large;
  int kernel, tile;
};

enum class WinogradWay { kDown, kUp, kWeight };

}  // namespace fastgan

extern "C" {

// Numbers of type float that `scratch` has to hold.
int64_t fastgan_winograd_scratch(const fastgan::Winograd* conv, fastgan::WinogradWay way, int threads);

// Whether this processor has the instructions. Results do not depend on the number of threads.
bool fastgan_winograd_here(void);

// Of the three arrays the one that `way` names is written: kDown the small map, kUp the large one, kWeight the weight.
void fastgan_winograd_cpu(const fastgan::Winograd* conv, fastgan::WinogradWay way, float* small, float* large,
                          float* weight, float* scratch, int threads);
}
