"""Augmentation of what the critic sees, on the device: differentiable, without a host read, from the turn's draw alone.

A critic that knows a small set by heart teaches the generator nothing. So it gets to see reals and fakes through a
random transformation T, and the generator is trained through T as well:

    diffaugment  colour, translation and cutout of every image (Zhao et al. 2020, arXiv:2006.10738)
    adaptive     each transformation with probability p (Karras et al. 2020, arXiv:2006.06676): pixel blitting, then
                 geometry, then colour, then cutout. p follows a schedule, or is steered so that E[sign D(x)] on reals,
                 which grows as the critic memorises them, stays at a target (0.6 in the paper).

Every sample has its own transformation. All of them are linear in the image but for a constant, and made of operations
that can be differentiated any number of times.

Gradient penalties: in the code of either paper, and in R3GAN's (arXiv:2501.05441), the gradient is that of D(T(x)) by
x, the image before its augmentation. `penalty="raw"` is that, by double backward through D and T. With
`penalty="augmented"` it is the gradient by T(x): the critic's own slope where it is evaluated. The two agree for flips,
turns and shifts, whose derivatives keep lengths, and the second takes the shared sweep (fastgan.penalty).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor

from fastgan.contract import Draw
from fastgan.errors import FastganError, suggest
from fastgan.schedule import Schedule, Scheduled, highest, lowest

KINDS = ("none", "diffaugment", "adaptive")
POLICY = ("color", "translation", "cutout")
PENALTIES = ("raw", "augmented")
P, SIGNS, COUNT, TURNS = range(4)  # of the controller's memory

# Daubechies' least asymmetric wavelet with six vanishing moments, the low-pass half: orthogonal to its even shifts.
SYM6 = (0.015404109327027373, 0.0034907120842174702, -0.11799011114819057, -0.048311742585633, 0.4910559419267466,
        0.787641141030194, 0.3379294217276218, -0.07263752278646252, -0.021060292512300564, 0.04472490177066578,
        0.0017677118642428036, -0.007800708325034148)  # fmt: skip


@dataclass(frozen=True)
class Augment:
    """Options of the augmentation.

    kind:     "none", "diffaugment" or "adaptive"
    policy:   of diffaugment: which of "color", "translation", "cutout"
    p:        of adaptive: the probability of each transformation, a number or a schedule; where a target is set, the
              number to start from
    target:   of adaptive: what E[sign D(x)] on reals is steered to; 0: p as it is given. Not for losses that
              look at differences of logits only (relativistic, wasserstein)
    kimg:     of adaptive with a target: p takes this many thousand images from 0 to 1, at the fastest
    interval: of adaptive with a target: critic turns between two changes of p
    blit, geometry, color, cutout: of adaptive: factors of p for each group; the paper's are 1, 1, 1, 0
    penalty:  "raw" or "augmented": by which image the gradient of a gradient penalty is taken
    """

    kind: str = "none"
    policy: tuple[str, ...] = POLICY
    p: Scheduled = 0.0
    target: float = 0.6
    kimg: float = 500.0
    interval: int = 4
    blit: float = 1.0
    geometry: float = 1.0
    color: float = 1.0
    cutout: float = 0.0
    penalty: str = "raw"

    def __post_init__(self) -> None:
        for name, value, known in (("kind", self.kind, KINDS), ("penalty", self.penalty, PENALTIES)):
            if value not in known:
                raise FastganError(f"augment.{name} {value!r} is unknown{suggest(value, known)}")
        for part in self.policy:
            if part not in POLICY:
                raise FastganError(f"augment.policy {part!r} is unknown{suggest(part, POLICY)}")
        if not 0 <= lowest(self.p) <= highest(self.p) <= 1:
            raise FastganError(f"augment.p must be from 0 to 1, got {self.p}")
        if not -1 < self.target < 1:
            raise FastganError(f"augment.target must be between -1 and 1, got {self.target}")
        if self.target and isinstance(self.p, Schedule):
            raise FastganError("augment.p is a schedule and augment.target steers it too; set augment.target=0")
        for name in ("blit", "geometry", "color", "cutout"):
            if not 0 <= getattr(self, name) <= 1:
                raise FastganError(f"augment.{name} must be from 0 to 1, got {getattr(self, name)}")
        if not self.kimg > 0 or self.interval < 1:
            raise FastganError("augment.kimg must be more than 0 and augment.interval 1 or more, "
                               f"got {self.kimg} and {self.interval}")  # fmt: skip

    @property
    def steered(self) -> bool:
        return self.kind == "adaptive" and self.target != 0

    def schedules(self) -> dict[str, Scheduled]:
        """What changes in training by the calendar: part of a system's schedules()."""
        return {"augment_p": self.p} if self.kind == "adaptive" and not self.steered else {}

    def memory(self, device: torch.device) -> dict[str, Tensor]:
        """What the controller of p remembers, {"augment": [4] float64}: part of a system's memory()."""
        if not self.steered:
            return {}
        assert not isinstance(self.p, Schedule)
        memory = torch.zeros(4, dtype=torch.float64, device=device)
        memory[P] = self.p
        return {"augment": memory}


class Augmenter:
    """The augmentation of a system's turns: `images = augment(images, draw)` wherever the critic looks."""

    def __init__(
        self,
        options: Augment,
        scalars: Mapping[str, Tensor],
        sum_over_ranks: Callable[[Tensor], Tensor] = lambda numbers: numbers,
    ) -> None:
        """scalars: of a system's turns: its schedules and its memory;  sum_over_ranks: of a vector, in place"""
        self.options, self._sum = options, sum_over_ranks
        self._memory = scalars["augment"] if options.steered else None
        self._p = scalars.get("augment_p")

    def __bool__(self) -> bool:
        return self.options.kind != "none"

    @property
    def p(self) -> Tensor | None:
        """The probability now, 0-dim float64; None where there is none."""
        return self._p if self._memory is None else self._memory[P]

    def __call__(self, images: Tensor, draw: Draw) -> Tensor:
        """Images [N, C, S, S], each transformed on its own, in their type and layout."""
        if self.options.kind == "none":
            return images
        kind = images.device.type
        mixed = kind in ("cpu", "cuda") and torch.is_autocast_enabled(kind)
        with torch.autocast(kind, enabled=False) if mixed else nullcontext():  # positions need all bits of float32
            wide = images if images.dtype == torch.float64 else images.float()
            if self.options.kind == "diffaugment":
                made = diffaugment(wide, draw, self.options.policy)
            else:
                assert self.p is not None
                made = adaptive(wide, draw, self.p, self.options)
        return made.to(images.dtype)

    def seen_through(self, critic: Callable[..., Tensor], draw: Draw) -> Callable[..., Tensor]:
        """(x, ...) -> critic(T(x), ...), with a new T at each call: for penalties on the gradient by x."""
        return lambda images, *others: critic(self(images, draw), *others)

    @torch.no_grad()
    def observe(self, real_logits: Tensor) -> None:
        """Steer p by the critic's logits for (augmented) reals, once per critic turn. Changes the memory only.

        Karras et al. 2020, section 3.1: r_t = E[sign D(x)] over `interval` batches; p goes up by a fixed amount where
        it is above the target and down where it is below. Logits that are not finite do not count.
        """
        if self._memory is None:
            return
        options, memory = self.options, self._memory
        finite = real_logits.isfinite()
        signs = (real_logits > 0).double() - (real_logits < 0).double()
        counted = torch.stack([torch.where(finite, signs, 0.0).sum(), finite.double().sum()])
        memory[SIGNS : COUNT + 1] += self._sum(counted)
        memory[TURNS] += 1
        due = memory[TURNS] >= options.interval
        direction = torch.sign(memory[SIGNS] / memory[COUNT].clamp(min=1) - options.target)
        moved = (memory[P] + direction * memory[COUNT] / (options.kimg * 1000)).clamp(0, 1)
        memory[P] = torch.where(due, moved, memory[P])
        memory[SIGNS:] *= ~due


def horizontal_flip(images: Tensor, chosen: Tensor) -> Tensor:
    """Images [N, C, H, W], flipped left to right where `chosen` [N] bool."""
    return torch.where(chosen[:, None, None, None], images.flip(3), images)


# ---- DiffAugment


def diffaugment(images: Tensor, draw: Draw, policy: tuple[str, ...] = POLICY) -> Tensor:
    """Zhao et al. 2020: colour, then a shift of up to 1/8 of the size with zeros beyond, then a hole of half the size.

    images: [N, C, H, W], float32 or float64
    """
    n, _, height, width = images.shape
    u = draw.uniform(7).to(images.dtype)
    if "color" in policy:
        brightness, saturation, contrast = (u[:, i].view(n, 1, 1, 1) for i in range(3))
        images = images + (brightness - 0.5)
        grey = images.mean(dim=1, keepdim=True)
        images = grey + (images - grey) * (2 * saturation)
        middle = images.mean(dim=(1, 2, 3), keepdim=True)
        images = middle + (images - middle) * (contrast + 0.5)
    if "translation" in policy:
        rows, columns = _whole(u[:, 3], _rounded(height / 8)), _whole(u[:, 4], _rounded(width / 8))
        images = _shift(images, rows, columns)
    if "cutout" in policy:
        rows, columns = (_hole(u[:, 5 + i], size, _rounded(size / 2)) for i, size in enumerate((height, width)))
        images = images * (~(rows[:, :, None] & columns[:, None, :])).to(images.dtype)[:, None]
    return images


def _rounded(value: float) -> int:
    return int(value + 0.5)


def _whole(u: Tensor, most: int) -> Tensor:
    """Integers from -most to most, of numbers in [0, 1)."""
    return (u * (2 * most + 1)).long() - most


def _hole(u: Tensor, size: int, hole: int) -> Tensor:
    """[N, size] bool: which rows (or columns) are in a hole of `hole`, whose middle is anywhere in the image."""
    first = (u * (size + 1 - hole % 2)).long() - hole // 2
    place = torch.arange(size, device=u.device)
    return (place >= first[:, None]) & (place < first[:, None] + hole)


def _shift(images: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """out[n, c, i, j] = images[n, c, i + rows[n], j + columns[n]], and 0 where that is outside."""
    _, _, height, width = images.shape
    y = torch.arange(height, device=images.device) + rows[:, None]
    x = torch.arange(width, device=images.device) + columns[:, None]
    inside = ((y >= 0) & (y < height))[:, :, None] & ((x >= 0) & (x < width))[:, None, :]
    index = y.clamp(0, height - 1)[:, :, None] * width + x.clamp(0, width - 1)[:, None, :]
    return _pick(images, index) * inside.to(images.dtype)[:, None]


def _pick(images: Tensor, index: Tensor) -> Tensor:
    """Pixels [N, C, H', W'] of images [N, C, H, W] at the numbers `index` [N, H', W'], row by row. Gathers, so that
    it can be differentiated again, and in channels-last order."""
    n, channels = images.shape[:2]
    pixels = images.permute(0, 2, 3, 1).reshape(n, -1, channels)
    picked = pixels.gather(1, index.reshape(n, -1, 1).expand(-1, -1, channels))
    return picked.view(n, *index.shape[1:], channels).permute(0, 3, 1, 2)


# ---- adaptive: each transformation with probability p (Karras et al. 2020, appendix B)


def adaptive(images: Tensor, draw: Draw, p: Tensor, options: Augment) -> Tensor:
    """Square images [N, C, S, S], float32 or float64, with each transformation happening with probability p (0-dim)."""
    p = p.to(images.dtype)
    u = draw.uniform(25).to(images.dtype).unbind(1)
    z = draw.normal(8).to(images.dtype).unbind(1)
    if options.blit:
        images = _blit(images, p * options.blit, u[:8])
    if options.geometry:
        images = _warp(images, p * options.geometry, u[8:15], z[:4])
    if options.color:
        images = _recolor(images, p * options.color, u[15:22], z[4:7])
    if options.cutout:
        images = _cut(images, p * options.cutout, u[22:25])
    return images


def _blit(images: Tensor, p: Tensor, u: tuple[Tensor, ...]) -> Tensor:
    """Flip, quarter turns, and shifts of up to 1/8 of the size by whole pixels, with reflection beyond: pixels are
    copied, not blended."""
    size = images.shape[2]
    flip = torch.where((u[0] < p) & (u[1] < 0.5), -1, 1)
    turns = torch.where(u[2] < p, (u[3] * 4).long(), 0)
    moves = u[4] < p
    shifts = [torch.where(moves, torch.round((2 * v - 1) * 0.125 * size).long(), 0) for v in (u[5], u[6])]
    # Positions are doubled and counted from the middle, so that they are whole numbers in any size.
    place = 2 * torch.arange(size, device=images.device) - (size - 1)
    x = (place[None, None, :] - 2 * shifts[0][:, None, None]).expand(-1, size, -1)
    y = (place[None, :, None] - 2 * shifts[1][:, None, None]).expand(-1, -1, size)
    cosine = ((turns == 0).long() - (turns == 2).long())[:, None, None]
    sine = ((turns == 1).long() - (turns == 3).long())[:, None, None]
    x, y = (cosine * x + sine * y) * flip[:, None, None], cosine * y - sine * x
    column, row = (_reflect((v + size - 1) // 2, size) for v in (x, y))
    return _pick(images, row * size + column)


def _reflect(place: Tensor, size: int) -> Tensor:
    """Positions of any kind of number mirrored into [0, size - 1], about the middles of the outermost pixels."""
    most = max(size - 1, 1)
    place = place.remainder(2 * most)
    return torch.minimum(place, 2 * most - place)


def _warp(images: Tensor, p: Tensor, u: tuple[Tensor, ...], z: tuple[Tensor, ...]) -> Tensor:
    """Scaling, rotation, scaling of x against y, rotation and a shift, in one resampling without aliases.

    The image is enlarged twice, sampled bilinearly there at twice the target's resolution, and reduced again, with the
    same orthogonal filter: with no transformation that would give the image back, and here it is the image itself.
    """
    n, _, size, _ = images.shape
    rotates = 1 - torch.sqrt((1 - p).clamp(min=0))  # of two chances each, so that one comes with probability p
    scale = torch.where(u[0] < p, torch.exp2(0.2 * z[0]), 1.0)
    before = torch.where(u[1] < rotates, (2 * u[2] - 1) * math.pi, 0.0)
    stretch = torch.where(u[3] < p, torch.exp2(0.2 * z[1]), 1.0)
    after = torch.where(u[4] < rotates, (2 * u[5] - 1) * math.pi, 0.0)
    shifts = [torch.where(u[6] < p, 0.125 * size * v, 0.0) for v in z[2:4]]
    moved = (u[0] < p) | (u[1] < rotates) | (u[3] < p) | (u[4] < rotates) | (u[6] < p)

    up, first, down, begin = _filters(size, images)
    centre = (size - 1) / 2
    place = (torch.arange(down.shape[1], device=images.device) + begin) / 2 + _PHASE - centre  # in pixels
    # From the target to the source: the inverse of every transformation, the last one first.
    x, y = place[None, None, :] - shifts[0][:, None, None], place[None, :, None] - shifts[1][:, None, None]
    x, y = _rotate(x, y, -after)
    x, y = x / stretch[:, None, None], y * stretch[:, None, None]
    x, y = _rotate(x, y, -before)
    inverse = 1 / scale[:, None, None]
    large = torch.einsum("ai,ncij,bj->ncab", up, images, up)
    warped = _bilinear(large, *(2 * (_reflect(v * inverse + centre, size) - _PHASE) - first for v in (y, x)))
    reduced = torch.einsum("ia,ncab,jb->ncij", down, warped, down)
    return torch.where(moved.view(n, 1, 1, 1), reduced.contiguous(memory_format=_layout(images)), images)


def _rotate(x: Tensor, y: Tensor, angle: Tensor) -> tuple[Tensor, Tensor]:
    cosine, sine = torch.cos(angle)[:, None, None], torch.sin(angle)[:, None, None]
    return cosine * x - sine * y, sine * x + cosine * y


def _layout(images: Tensor) -> torch.memory_format:
    last = images.is_contiguous(memory_format=torch.channels_last) and not images.is_contiguous()
    return torch.channels_last if last else torch.contiguous_format


_TAPS = len(SYM6)
_BEFORE = 5  # of the filter's taps: row j of the enlarged image is the sum of pixels i times tap j - 2i + _BEFORE
_MIDDLE = sum(k * h for k, h in enumerate(SYM6)) / sum(SYM6)
_PHASE = (_BEFORE - _MIDDLE) / 2  # row j of the enlarged image is at pixel j / 2 + _PHASE


def _filters(size: int, like: Tensor) -> tuple[Tensor, int, Tensor, int]:
    """up [rows, S], first, down [S, rows'], begin: an image's column times `up` is twice as large, from row `first` on;
    rows from `begin` on times `down` give it back. Made by fills and comparisons, which a CUDA graph can hold."""
    taps = torch.zeros(_TAPS, dtype=like.dtype, device=like.device)
    for k, h in enumerate(SYM6):
        taps[k].fill_(h)

    def matrix(rows: Tensor, pixels: Tensor) -> Tensor:
        number = rows[:, None] - 2 * pixels[None, :] + _BEFORE
        return taps[number.clamp(0, _TAPS - 1)] * ((number >= 0) & (number < _TAPS))

    def numbers(begin: int, end: int) -> Tensor:
        return torch.arange(begin, end, device=like.device)

    beyond = numbers(-_TAPS, size + _TAPS)
    mirrored = (_reflect(beyond, size)[:, None] == numbers(0, size)).to(like.dtype)
    up = math.sqrt(2) * (matrix(numbers(-2, 2 * size + 2), beyond) @ mirrored)
    down = matrix(numbers(-_BEFORE, 2 * size - 2 - _BEFORE + _TAPS), numbers(0, size)).mT / math.sqrt(2)
    return up, -2, down, -_BEFORE


def _bilinear(images: Tensor, y: Tensor, x: Tensor) -> Tensor:
    """Images [N, C, H, W] at rows `y` and columns `x`, [N, H', W'], between the middles of their outermost pixels.

    F.grid_sample has no second derivative.
    """
    height, width = images.shape[2:]
    top, left = (v.floor().clamp(0, size - 2) for v, size in ((y, height), (x, width)))
    down, right = (y - top)[:, None], (x - left)[:, None]
    index = top.long() * width + left.long()
    upper = torch.lerp(_pick(images, index), _pick(images, index + 1), right)
    lower = torch.lerp(_pick(images, index + width), _pick(images, index + width + 1), right)
    return torch.lerp(upper, lower, down)


def _recolor(images: Tensor, p: Tensor, u: tuple[Tensor, ...], z: tuple[Tensor, ...]) -> Tensor:
    """Brightness, contrast, luma flip, hue and saturation, as one matrix per image over its channels."""
    n, channels = images.shape[:2]
    eye = torch.eye(channels, dtype=images.dtype, device=images.device)
    luma = torch.full_like(eye, 1 / channels)  # v vT of the grey axis v
    brightness = torch.where(u[0] < p, 0.2 * z[0], 0.0)
    contrast = torch.where(u[1] < p, torch.exp2(0.5 * z[1]), 1.0)
    flips = torch.where((u[2] < p) & (u[3] < 0.5), 2.0, 0.0)
    saturation = torch.where(u[4] < p, torch.exp2(z[2]), 1.0)
    matrix = (eye - flips.view(n, 1, 1) * luma) * contrast.view(n, 1, 1)
    if channels == 3:
        angle = torch.where(u[5] < p, (2 * u[6] - 1) * math.pi, 0.0)
        matrix = _turn_hue(angle, eye, luma) @ matrix
    matrix = (luma + (eye - luma) * saturation.view(n, 1, 1)) @ matrix
    offset = (matrix.sum(dim=2) * brightness.view(n, 1)).view(n, channels, 1, 1)
    return torch.einsum("ncd,ndij->ncij", matrix, images).contiguous(memory_format=_layout(images)) + offset


def _turn_hue(angle: Tensor, eye: Tensor, luma: Tensor) -> Tensor:
    """Rotations [N, 3, 3] about the grey axis (Rodrigues' formula)."""
    cosine, sine = torch.cos(angle).view(-1, 1, 1), torch.sin(angle).view(-1, 1, 1) / math.sqrt(3)
    cross = eye.roll(1, 0) - eye.roll(-1, 0)
    return cosine * eye + (1 - cosine) * luma + sine * cross


def _cut(images: Tensor, p: Tensor, u: tuple[Tensor, ...]) -> Tensor:
    """A hole of half the size, zero within, whose middle is anywhere."""
    size = images.shape[2]
    place = (torch.arange(size, device=images.device, dtype=images.dtype) + 0.5) / size
    rows, columns = ((place - v[:, None]).abs() < 0.25 for v in u[1:3])
    hole = rows[:, :, None] & columns[:, None, :] & (u[0] < p)[:, None, None]
    return images * (~hole).to(images.dtype)[:, None]
