"""What runs where: the native extension, the choice of an implementation per op and device, and the report on both."""

from fastgan.kernels._runtime.choice import choose, disable
from fastgan.kernels._runtime.doctor import OpReport, build_summary, gpus, report
from fastgan.kernels._runtime.extension import EXTENSION
from fastgan.kernels._runtime.measure import decide
from fastgan.kernels._runtime.plain import plain, plain_layers
from fastgan.kernels._runtime.register import DECOMPOSITIONS, register
from fastgan.kernels._runtime.scratch import scratch
from fastgan.kernels._runtime.verify import Verdict, verify_ops

__all__ = [
    "DECOMPOSITIONS",
    "EXTENSION",
    "OpReport",
    "Verdict",
    "build_summary",
    "choose",
    "decide",
    "disable",
    "gpus",
    "plain",
    "plain_layers",
    "register",
    "report",
    "scratch",
    "verify_ops",
]
