r"""Random numbers as a pure function of (seed, sample index, stream, element).

Philox4x32-10 (Salmon, Moraes, Dror & Shaw, "Parallel random numbers: as easy as 1, 2, 3", SC 2011) turns a counter of
four 32-bit words and a key of two into four random words. Here

    key     = (low, high word of the seed)
    counter = (low, high word of the sample index, element // 4, stream)

so that a sample's numbers do not depend on the batch it is in, on the rank that draws it or on what was drawn before:
whoever resumes a run needs the seed and a sample number, and no state. Words 0..3 belong to elements 4i .. 4i+3:

    uniform   floor(word / 2^8) / 2^24
    normal    from two neighbours' words a, b: r cos(2 pi v) for the first and r sin(2 pi v) for the second, with
              r = sqrt(-2 log u), u = (a + 1/2) / 2^32 and v = b / 2^32 (Box & Muller 1958)
    integers  (63 random bits) mod high

In float64, uniform and normal numbers have 53 random bits, of which the first 32 are the word; the others, like the
last of the integers' 63, come from the counters with the top bit of the third word set. So float32 numbers are the
float64 ones up to their precision: uniform ones rounded down, normal ones to about 1e-9 / u.

Logarithm and sine are series in correctly rounded double-precision operations, none of them contracted, so that
csrc/cpu and csrc/cuda give the same bits on every device. The reference below gives the same uniform numbers and
integers; its normal numbers may differ in the last bits of a double, because torch's square root is not always
correctly rounded on a CPU: of the float32 ones, that leaves about one in 10^9 that differs in its last bit.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from fastgan.errors import FastganError
from fastgan.kernels._runtime import EXTENSION, choose, disable, register

# (samples, size of each) that test and benchmark share
CASES: dict[str, tuple[int, tuple[int, ...]]] = {
    "latents": (64, (128,)),
    "one element": (5, ()),
    "odd size": (7, (3, 5, 7)),
    "no samples": (0, (4,)),
    "no elements": (3, (0, 4)),
    "images": (16, (3, 64, 64)),
    "larger than a tile": (1, (1031,)),
}

# Kinds of numbers, as CounterNoiseKind in csrc/counter_noise.h
UNIFORM = {torch.float32: 0, torch.float64: 1}
NORMAL = {torch.float32: 2, torch.float64: 3}
INTEGERS = 4

HALF_BITS = {torch.bfloat16: 8, torch.float16: 11}  # of the significand


def normal(
    seed: int, index: Tensor, size: tuple[int, ...], *, stream: int = 0, dtype: torch.dtype = torch.float32
) -> Tensor:
    """Standard normal numbers, [N, *size], on the device of `index` ([N] int64, sample numbers).

    float32 (no number is beyond 6.7), float64 (8.6), and bfloat16 or float16 rounded from float32. Raises FastganError.
    """
    made = _floats(NORMAL, seed, index, size, stream, dtype)
    return made.to(dtype)


def uniform(
    seed: int, index: Tensor, size: tuple[int, ...], *, stream: int = 0, dtype: torch.dtype = torch.float32
) -> Tensor:
    """Uniform numbers in [0, 1), [N, *size], on the device of `index` ([N] int64, sample numbers).

    float32 has 24 random bits, float64 53, bfloat16 8 and float16 11: rounded down, never up to 1. Raises FastganError.
    """
    made = _floats(UNIFORM, seed, index, size, stream, dtype)
    if dtype in HALF_BITS:
        made = torch.floor(made * 2 ** HALF_BITS[dtype]) / 2 ** HALF_BITS[dtype]
    return made.to(dtype)


def integers(seed: int, index: Tensor, size: tuple[int, ...], *, high: int, stream: int = 0) -> Tensor:
    """Integers in [0, high), int64 [N, *size], on the device of `index` ([N] int64, sample numbers).

    high: at most 2^32, so that no value is likelier than another by more than one part in 2^31. Raises FastganError.
    """
    _check(index, size, stream)
    if not 0 < high <= 2**32:
        raise FastganError(f"counter_noise: expected `high` between 1 and 2^32, got {high}")
    made: Tensor = torch.ops.fastgan.counter_noise(_signed(seed), index, list(size), stream, INTEGERS, high)
    return made


def _floats(
    kinds: dict[torch.dtype, int], seed: int, index: Tensor, size: tuple[int, ...], stream: int, dtype: torch.dtype
) -> Tensor:
    _check(index, size, stream)
    kind = kinds.get(torch.float32 if dtype in HALF_BITS else dtype)
    if kind is None:
        raise FastganError(f"counter_noise: expected float32, float64, bfloat16 or float16, got {dtype}")
    made: Tensor = torch.ops.fastgan.counter_noise(_signed(seed), index, list(size), stream, kind, 1)
    return made


def _check(index: Tensor, size: tuple[int, ...], stream: int) -> None:
    if index.dtype != torch.int64 or index.dim() != 1:
        raise FastganError(
            f"counter_noise: expected `index` as an int64 tensor [N], got {index.dtype} {tuple(index.shape)}"
        )
    if not 0 <= stream < 2**32:
        raise FastganError(f"counter_noise: expected `stream` between 0 and 2^32 - 1, got {stream}")
    if math.prod(size) >= 2**33:
        raise FastganError(f"counter_noise: expected fewer than 2^33 elements a sample, got {tuple(size)}")


def _signed(seed: int) -> int:
    """The 64 bits of `seed` as torch's int64; any Python int is a seed, modulo 2^64."""
    return (seed + 2**63) % 2**64 - 2**63


# ---- the reference: 32-bit words in int64 tensors

WORD = 0xFFFFFFFF


def philox4x32_10(counter: list[Tensor], key: tuple[int, int]) -> list[Tensor]:
    """Four random words for each counter. counter: four int64 tensors of one shape, in [0, 2^32); key likewise."""
    c0, c1, c2, c3 = counter
    for i in range(10):
        k0, k1 = (key[0] + i * 0x9E3779B9) & WORD, (key[1] + i * 0xBB67AE85) & WORD
        a, b = c0 * 0xD2511F53, c2 * 0xCD9E8D57  # modulo 2^64
        c0, c1, c2, c3 = (b >> 32) & WORD ^ c1 ^ k0, b & WORD, (a >> 32) & WORD ^ c3 ^ k1, a & WORD
    return [c0, c1, c2, c3]


def reference(seed: int, index: Tensor, size: list[int], stream: int, kind: int, high: int) -> Tensor:
    """The op in PyTorch. Same arguments as the op: see its schema below."""
    elements = math.prod(size)
    block = torch.arange((elements + 3) // 4, device=index.device)

    def words(top_bit: int) -> Tensor:  # [N, blocks, 4]
        low, up = (index & WORD)[:, None], ((index >> 32) & WORD)[:, None]
        third, fourth = torch.zeros_like(low) + (block | top_bit), torch.full_like(low, stream)
        return torch.stack(philox4x32_10([low, up, third, fourth], (seed & WORD, (seed >> 32) & WORD)), dim=-1)

    first = words(0)
    if kind == UNIFORM[torch.float32]:
        made = (first >> 8).to(torch.float32) * 2.0**-24
    elif kind == UNIFORM[torch.float64]:
        made = _bits53(first, words(1 << 31)) * 2.0**-53
    elif kind == NORMAL[torch.float32]:
        made = _box_muller(first, first.double(), 2.0**-32).to(torch.float32)
    elif kind == NORMAL[torch.float64]:
        made = _box_muller(first, _bits53(first, words(1 << 31)), 2.0**-53)
    else:
        made = (first << 31 | words(1 << 31) >> 1) % high
    return made.flatten(1)[:, :elements].reshape(index.shape[0], *size).contiguous()


def _bits53(high: Tensor, low: Tensor) -> Tensor:
    return high.double() * 2.0**21 + (low >> 11).double()


def _box_muller(words: Tensor, bits: Tensor, scale: float) -> Tensor:
    """Normal numbers [..., 4] for random `bits` [..., 4] in double precision; `words` are their leading 32 bits."""
    u, v = (bits[..., 0::2] + 0.5) * scale, bits[..., 1::2] * scale
    radius = torch.sqrt(_log(u) * -2.0)
    word = words[..., 1::2]
    quarter = (word >> 30) + (word >> 29 & 1)  # whole quarter turns, 0..4; what is left is in [-pi/4, pi/4]
    x = (v - quarter.double() * 0.25) * 6.2831853071795865
    t = x * x
    sine = x * _horner(t, [(-1) ** i / math.factorial(2 * i + 1) for i in range(9)])
    cosine = _horner(t, [(-1) ** i / math.factorial(2 * i) for i in range(9)])
    odd = quarter % 2 == 1
    first, second = torch.where(odd, sine, cosine), torch.where(odd, cosine, sine)
    first = torch.where((quarter + 1) % 4 >= 2, -first, first)
    second = torch.where(quarter % 4 >= 2, -second, second)
    return torch.stack([radius * first, radius * second], dim=-1).flatten(-2)


def _log(u: Tensor) -> Tensor:
    """Natural logarithm of u in (0, 1]: u = 2^e m, m in [sqrt(1/2), sqrt(2)), log m = 2 artanh((m - 1) / (m + 1))."""
    mantissa, exponent = torch.frexp(u)
    small = mantissa < 0.70710678118654752
    mantissa = torch.where(small, mantissa + mantissa, mantissa)
    e = (exponent - small.int()).double()
    s = (mantissa - 1.0) / (mantissa + 1.0)
    return e * 0.69314718055994531 + (s + s) * _horner(s * s, [1 / (2 * i + 1) for i in range(12)])


def _horner(t: Tensor, coefficients: list[float]) -> Tensor:
    total = torch.full_like(t, coefficients[-1])
    for coefficient in reversed(coefficients[:-1]):
        total = total * t + coefficient
    return total


# ---- the op


def _counter_noise(seed: int, index: Tensor, size: list[int], stream: int, kind: int, high: int) -> Tensor:
    index = index.contiguous()
    choice = choose("counter_noise", index.device)
    if choice.native:
        out = _fake(seed, index, size, stream, kind, high)
        elements = math.prod(size)
        noise = EXTENSION.module.CounterNoise(
            seed % 2**64, stream, index.data_ptr(), index.numel(), elements, high, out.data_ptr()
        )
        if out.numel() == 0:
            return out
        if index.device.type == "cpu":
            EXTENSION.module.counter_noise_cpu(noise, kind, torch.get_num_threads())
            return out
        queue = torch.cuda.current_stream(index.device).cuda_stream
        status = EXTENSION.module.counter_noise_cuda(noise, kind, index.device.index, queue)
        if status == 0:
            return out
        disable("counter_noise", index.device, status)
    return reference(seed, index, size, stream, kind, high)


def _fake(seed: int, index: Tensor, size: list[int], stream: int, kind: int, high: int) -> Tensor:
    dtypes = {0: torch.float32, 1: torch.float64, 2: torch.float32, 3: torch.float64, INTEGERS: torch.int64}
    return index.new_empty((index.shape[0], *size), dtype=dtypes[kind])


register(
    "counter_noise(int seed, Tensor index, SymInt[] size, int stream, int kind, int high) -> Tensor",
    _counter_noise,
    fake=_fake,
)
