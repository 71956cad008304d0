// The two halves of a transposed convolution that are no matrix product: fold, which sums columns into an image, and
// unfold, which is its transpose.
//
// The mathematics: fastgan/kernels/conv_transpose_bn_act/columns.py.
#pragma once

#include "norm_act.h"

namespace fastgan {

// A transposed convolution makes maps of `large` pixels of maps of `small` pixels (rows, columns):
//
//   y[n, h * stride - padding + i * dilation, w * stride - padding + j * dilation, c] += columns[n, h, w, i, j, c]
//
// columns: [samples, small, kernel, channels], y: [samples, large, channels], both dense.
struct Fold {
  int64_t samples, channels;
  int64_t small[2], large[2], kernel[2], stride[2], padding[2], dilation[2];
};

// What becomes of y after the sum: a = act(y + bias). bias: [channels] in the type of y, or null.
struct FoldAct {
  const void* bias;
  NormActKind act;
  double slope;
};

}  // namespace fastgan

extern "C" {

// `type`: float or double, of columns and y. Where columns and y are the same memory, columns already are what they sum
// up to. Where `parts` is not null, the statistics of a go there: [fastgan_fold_parts(fold), 2, channels].
void fastgan_fold_cpu(const fastgan::Fold* fold, const fastgan::FoldAct* act, fastgan::NormActType type,
                      const void* columns, void* y, double* parts, int threads);

// Into how many parts the statistics of fold->samples samples are divided: the same number for every sample.
int64_t fastgan_fold_parts(const fastgan::Fold* fold);

// Mean and biased variance, [channels] each, of the parts of all samples.
void fastgan_fold_stats_cpu(const fastgan::Fold* fold, const double* parts, double* mean, double* var);

// columns[n, h, w, i, j, c] = act'(z) grad[the element of y that it is added to], or 0 where there is none.
// `a` = act(z) is looked at where act is neither none nor null; act has to be ReLU, leaky ReLU, tanh or sigmoid.
void fastgan_unfold_cpu(const fastgan::Fold* fold, const fastgan::FoldAct* act, fastgan::NormActType type,
                        const void* grad, const void* a, void* columns, int threads);
}
