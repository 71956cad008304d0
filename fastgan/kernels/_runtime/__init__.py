"""What runs where: the native extension, the choice of an implementation per op and device, and the report on both."""

from fastgan.kernels._runtime.choice import choose, disable
from fastgan.kernels._runtime.doctor import OpReport, build_summary, report
from fastgan.kernels._runtime.extension import EXTENSION
from fastgan.kernels._runtime.plain import plain, plain_layers
from fastgan.kernels._runtime.register import DECOMPOSITIONS, register

__all__ = [
    "DECOMPOSITIONS",
    "EXTENSION",
    "OpReport",
    "build_summary",
    "choose",
    "disable",
    "plain",
    "plain_layers",
    "register",
    "report",
]
