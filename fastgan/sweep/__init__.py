"""Loss and gradient penalties of a critic in one shared sweep of 4 units of work where autograd needs 6.

    capture   a critic's call as a graph, under guards           graph     the same in functional ATen operations
    layout    where the samples are in each value                analysis  what the sweep can follow, and what not
    rules     one rule per operation: pass 3                     trace     all passes and the pull-back as one graph
    rewrite   fewer and cheaper operations                       code      straight-line Python, cut in two halves
    filtering   convolutions by minimal filtering, for CPUs
    small_maps  convolutions as products of matrices, for CPUs
    replace     other operations in the place of convolutions
    probe     a fresh plan against autograd                      storage   which values share memory
    run       a whole backward

Locally linear critics need a third less than double backward (Etmann 2019, arXiv:1906.06637); here the loss shares the
sweep of the penalty: one weight gradient serves both.
"""

from fastgan.sweep.capture import may_join, say_once
from fastgan.sweep.logits import check_logits
from fastgan.sweep.run import NoFaster, Side, Sweep

__all__ = ["NoFaster", "Side", "Sweep", "check_logits", "may_join", "say_once"]
