"""Balls around samples up to their k-th nearest neighbour, and which samples of another set lie in them.

Squared distances come from products |x|² + |y|² - 2 x·y of centred and scaled features. Whatever the products' type, a
bound on their error is known, so that nearly all comparisons are certain; the few that are not are made again from
differences in fp64. So the outcome is that of fp64, at the price of

    integers of 13 bits  on CPUs for which there is our C++ (kernels/close_pairs.py)
    fp32                 elsewhere, tile by tile in memory for one: at most (d + 16) u (|x|² + |y|²) of error (Higham
                         2002, section 3.1; u = 2⁻²⁴), where it does not mean TF32 or bf16
    fp64                 where the bounds of those leave too much open

(fp32 distances alone put a sample at up to 1% of the typical distance from itself.)
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from fastgan.errors import FastganError
from fastgan.kernels import close_pairs

TILE = 1024  # rows and columns of one tile of distances: it fits in a cache
STRIP = 128  # rows that go through fp64 at a time: the copies stay in a cache
SPARE = 8  # neighbours kept beyond the k-th, so that the k-th is certain
PAIRS = 1 << 22  # numbers per pass over exact differences
OPEN = 16  # points whose neighbours are left open, above which all products are made again in the next finer type


@dataclass(frozen=True)
class Rule:
    """A ball reaches to the k-th nearest other sample of its set; its border belongs to it where inclusive."""

    k: int
    inclusive: bool

    def holds(self, distance: Tensor, radius: Tensor) -> Tensor:
        return distance <= radius if self.inclusive else distance < radius


@dataclass(frozen=True)
class Balls:
    """Of one rule, for n real and m fake samples.

    around_fake: [m] real balls that contain each fake sample;  around_real: [n] fake balls that contain each real one
    covered:     [n] whether each real ball contains a fake sample
    """

    around_fake: Tensor
    around_real: Tensor
    covered: Tensor


@dataclass(frozen=True)
class Floating:
    """short: [n, d] and squares: [n], the squared norms, in fp32 or fp64; margin: [n] as of close_pairs.Bounded."""

    short: Tensor
    squares: Tensor
    margin: Tensor

    def __len__(self) -> int:
        return len(self.short)


@dataclass(frozen=True)
class Points:
    """exact: [n, d] as given; coarse: about centre, over scale.

    The error of a squared distance of coarse points is at most the sum of the margins of both.
    """

    exact: Tensor
    centre: Tensor
    scale: float
    coarse: Floating | close_pairs.Bounded

    def __len__(self) -> int:
        return len(self.exact)

    @property
    def margin(self) -> Tensor:
        return self.coarse.margin

    @property
    def most_exact(self) -> bool:
        return self.margin.dtype == torch.float64


RuleRadii = tuple[Rule, Tensor, Tensor]  # with the radii [n] of the real points and [m] of the fake ones


def balls(real: Tensor, fake: Tensor, rules: Sequence[Rule]) -> list[Balls]:
    """real: [n, d], fake: [m, d], finite, of one type. One pass over the distances, whatever the number of rules."""
    for rule in rules:
        if not 1 <= rule.k < min(len(real), len(fake)):
            raise FastganError(
                f"k: expected 1 or more and fewer than the {min(len(real), len(fake))} samples, got {rule.k}"
            )
    x, y = prepare(real, fake)
    kinds = sorted({rule.k for rule in rules})
    radii = [dict(zip(kinds, nearest(points, kinds), strict=True)) for points in (x, y)]
    different = list(dict.fromkeys(rules))
    found = [(rule, radii[0][rule.k], radii[1][rule.k]) for rule in different]
    by_rule = dict(zip(different, inside(x, y, found), strict=True))
    return [by_rule[rule] for rule in rules]


def prepare(real: Tensor, fake: Tensor) -> tuple[Points, ...]:
    """Both sets around the mean of all, over the largest norm, as coarse as is quick."""
    sets = [z.contiguous() for z in (real, fake)]
    centre = (total(sets[0]) + total(sets[1])) / (len(real) + len(fake))
    norm = torch.stack([squares(z, centre).amax() for z in sets]).amax()
    scale = float(norm.sqrt()) or 1.0
    coarse: Sequence[Floating | close_pairs.Bounded] = (
        close_pairs.bounded(*(close_pairs.fixed_point(strips(z, centre, scale, torch.float32), *z.shape) for z in sets))
        if close_pairs.is_for(len(real), len(fake), real.shape[1], real.device)
        else in_floating_point(sets, centre, scale)
    )
    return tuple(Points(exact, centre, scale, each) for exact, each in zip(sets, coarse, strict=True))


def finer(*sets: Points) -> tuple[Points, ...]:
    """With smaller margins, all alike."""
    dtype = torch.float64 if isinstance(sets[0].coarse, Floating) else torch.float32
    coarse = in_floating_point([each.exact for each in sets], sets[0].centre, sets[0].scale, dtype)
    return tuple(replace(each, coarse=made) for each, made in zip(sets, coarse, strict=True))


def in_floating_point(
    sets: Sequence[Tensor], centre: Tensor, scale: float, dtype: torch.dtype = torch.float32
) -> list[Floating]:
    """In fp64 where fp32 is not reliable."""
    made = [floating(z, centre, scale, dtype) for z in sets]
    if dtype == torch.float32 and not all(map(reliable, made)):
        return in_floating_point(sets, centre, scale, torch.float64)
    return made


def floating(given: Tensor, centre: Tensor, scale: float, dtype: torch.dtype) -> Floating:
    short = torch.empty(given.shape, dtype=dtype, device=given.device)
    for rows, made in zip(spans(len(given), STRIP), strips(given, centre, scale, dtype), strict=True):
        short[rows] = made
    norms, of_type = squares(short, 0.0), torch.finfo(dtype)
    # Of numbers that are not normal `tiny` is lost.
    margin = (norms * (of_type.eps / 2) + of_type.tiny) * (given.shape[1] + 16)
    return Floating(short, norms.to(dtype), margin.to(dtype))


def strips(given: Tensor, centre: Tensor, scale: float, dtype: torch.dtype) -> Iterator[Tensor]:
    return (((given[rows].double() - centre) / scale).to(dtype) for rows in spans(len(given), STRIP))


def total(given: Tensor) -> Tensor:
    """[n, d] -> [d] fp64, without an fp64 copy of everything."""
    out = torch.zeros(given.shape[1], dtype=torch.float64, device=given.device)
    for rows in spans(len(given), STRIP):
        out += given[rows].double().sum(0)
    return out


def squares(given: Tensor, centre: Tensor | float) -> Tensor:
    """[n, d] -> [n] fp64, alike."""
    out = torch.empty(len(given), dtype=torch.float64, device=given.device)
    for rows in spans(len(given), STRIP):
        torch.sum((given[rows].double() - centre).square(), 1, out=out[rows])
    return out


def reliable(some: Floating) -> bool:
    """Whether products keep their bound on this device: they do not where fp32 means TF32 or bf16 inside."""
    few, many = (slice(None, None, max(1, len(some) // count)) for count in (16, TILE))
    rows, columns = some.short[few], some.short[many]
    error = (rows @ columns.mT - (rows.double() @ columns.double().mT)).abs()
    bound = some.margin[few, None] + some.margin[many]
    return bool((2 * error <= bound / 4 + torch.finfo(torch.float32).tiny).all())


def spans(count: int, size: int = TILE) -> Iterator[slice]:
    return (slice(start, min(start + size, count)) for start in range(0, count, size))


def tile(x: Floating, rows: slice, y: Floating, columns: slice) -> Tensor:
    """[rows, columns] the least that the squared distances of the short points can be; below 0 for near ones."""
    out = torch.addmm((y.squares - y.margin)[columns], x.short[rows], y.short[columns].mT, alpha=-2)
    return out.add_((x.squares - x.margin)[rows, None])


def square(x: Floating, rows: slice) -> Tensor:
    """The tile of rows with themselves, of which three quarters are multiplied; infinite on the diagonal."""
    middle = (rows.start + rows.stop) // 2
    above, below, half = slice(rows.start, middle), slice(middle, rows.stop), middle - rows.start
    out = x.short.new_empty((rows.stop - rows.start, rows.stop - rows.start))
    out[:half] = tile(x, above, x, rows)
    out[half:, half:] = tile(x, below, x, below)
    out[half:, :half] = out[:half, half:].mT
    return out.fill_diagonal_(torch.inf)


def exactly(x: Points, i: Tensor, y: Points, j: Tensor) -> Tensor:
    """[p] distances of the pairs x[i], y[j] in fp64: the same for the same pair, whoever asks."""
    return close_pairs.distances(x.exact, i, y.exact, j, PAIRS)


def nearest(x: Points, kinds: Sequence[int]) -> list[Tensor]:
    """For every k, [n] fp64: the distance from each point to its k-th nearest other one."""
    least, who = candidates(x.coarse, min(max(kinds) + SPARE, len(x) - 1))
    most = least + 2 * (x.margin[:, None] + x.margin[who])
    out = []
    for k in kinds:
        below = most < least[:, k - 1 : k]
        maybe = ~below & (least <= most.kthvalue(k, 1, True).values)
        rows, slots = maybe.nonzero(as_tuple=True)
        known = torch.full(least.shape, torch.inf, dtype=torch.float64, device=least.device)
        known[below] = -torch.inf
        known[rows, slots] = exactly(x, rows, x, who[rows, slots])
        radius = known.kthvalue(k).values
        if least.shape[1] < len(x) - 1:  # could a neighbour that was not kept be nearer than the k-th?
            outside = least[:, -1].clamp_min(0).double() * x.scale**2
            open_ = (radius.square() > outside).nonzero().flatten()
            if len(open_) > OPEN and not x.most_exact:
                return nearest(finer(x)[0], kinds)
            everyone = torch.arange(len(x), device=open_.device)
            for row in open_.tolist():
                distances = exactly(x, everyone.new_full((len(x),), row), x, everyone)
                distances[row] = torch.inf
                radius[row] = distances.kthvalue(k).values
        out.append(radius)
    return out


def candidates(x: Floating | close_pairs.Bounded, count: int) -> tuple[Tensor, Tensor]:
    """The `count` nearest other points by the least that distances can be: that, ascending, and who, [n, count].

    Each tile above the diagonal serves its rows and its columns.
    """
    if isinstance(x, close_pairs.Bounded):
        return close_pairs.nearest(x, count)
    near = torch.full((len(x), count), torch.inf, dtype=x.short.dtype, device=x.short.device)
    who = torch.zeros((len(x), count), dtype=torch.long, device=x.short.device)

    def merge(rows: slice, distances: Tensor, first: int) -> None:
        values, places = distances.topk(min(count, distances.shape[1]), largest=False)
        values, order = torch.cat((near[rows], values), 1).sort(1)
        near[rows] = values[:, :count]
        who[rows] = torch.cat((who[rows], places + first), 1).gather(1, order[:, :count])

    for rows in spans(len(x)):
        for columns in spans(len(x)):
            if columns.start < rows.start:
                continue
            if columns.start == rows.start:
                merge(rows, square(x, rows), rows.start)
                continue
            distances = tile(x, rows, x, columns)
            merge(rows, distances, columns.start)
            merge(columns, distances.mT.contiguous(), rows.start)
    return near, who


def inside(x: Points, y: Points, found: Sequence[RuleRadii]) -> list[Balls]:
    """x: the real points, y: the fake ones."""
    if any(blurred(x, real) or blurred(y, fake) for _, real, fake in found):
        return inside_finer(x, y, found)
    if isinstance(x.coarse, close_pairs.Bounded) or isinstance(y.coarse, close_pairs.Bounded):
        made = inside_in_fixed_point(x, y, found) if len(found) <= close_pairs.RULES else None
        return inside_finer(x, y, found) if made is None else made
    out = [Balls(*(torch.zeros(len(z), dtype=torch.long, device=z.margin.device) for z in (y, x, x))) for _ in found]
    for rows in spans(len(x)):
        for columns in spans(len(y)):
            least = tile(x.coarse, rows, y.coarse, columns)
            for (rule, real, fake), into in zip(found, out, strict=True):
                i, j = within(least, real[rows, None], rule, x, rows, y, columns)
                into.around_fake[columns] += torch.bincount(j, minlength=least.shape[1])
                into.covered[rows] += torch.bincount(i, minlength=least.shape[0])
                i, j = within(least, fake[columns], rule, x, rows, y, columns)
                into.around_real[rows] += torch.bincount(i, minlength=least.shape[0])
    return [Balls(b.around_fake, b.around_real, b.covered > 0) for b in out]


def inside_finer(x: Points, y: Points, found: Sequence[RuleRadii]) -> list[Balls]:
    x, y = finer(x, y)
    return inside(x, y, found)


def inside_in_fixed_point(x: Points, y: Points, found: Sequence[RuleRadii]) -> list[Balls] | None:
    """The same; None where too many pairs are not certain."""
    assert isinstance(x.coarse, close_pairs.Bounded)
    assert isinstance(y.coarse, close_pairs.Bounded)
    x_border = torch.stack([border(real, rule, x.scale) for rule, real, _ in found]).float()
    y_border = torch.stack([border(fake, rule, x.scale) for rule, _, fake in found]).float()
    made = close_pairs.within(x.coarse, y.coarse, x_border, y_border)
    if made is None:
        return None
    i, j, open_ = made.pairs.long().unbind(1)
    distance, out = exactly(x, i, y, j), []
    for r, (rule, real, fake) in enumerate(found):
        in_x = rule.holds(distance, real[i]) & (open_ >> 2 * r & 1).bool()
        in_y = rule.holds(distance, fake[j]) & (open_ >> 2 * r + 1 & 1).bool()
        around_y = made.around_y[r] + torch.bincount(j[in_x], minlength=len(y))
        inside_x = made.inside_x[r] + torch.bincount(i[in_x], minlength=len(x))
        around_x = made.around_x[r] + torch.bincount(i[in_y], minlength=len(x))
        out.append(Balls(around_y, around_x, inside_x > 0))
    return out


def border(radii: Tensor, rule: Rule, scale: float) -> Tensor:
    """Squared radii over scale²; those of an empty ball without its border are below any distance."""
    squared = (radii / scale).square()
    return squared if rule.inclusive else torch.where(radii > 0, squared, -torch.inf)


def blurred(x: Points, radii: Tensor) -> bool:
    """Whether it is unsure by a twentieth of the squared radius, or more, at one point in a hundred."""
    width = 4 * x.margin.double() * x.scale**2 / radii.square().clamp_min(torch.finfo(torch.float64).tiny)
    return not x.most_exact and bool((width[radii > 0] > 0.05).double().mean() > 0.01)


def within(
    least: Tensor, radii: Tensor, rule: Rule, x: Points, rows: slice, y: Points, columns: slice
) -> tuple[Tensor, Tensor]:
    """least: a tile [r, c]; radii: [r, 1] or [c]. Row and column, within the tile, of each pair that is inside."""
    most = border(radii, rule, x.scale)
    i, j = (least <= most.to(least.dtype)).nonzero(as_tuple=True)
    most = most.expand(least.shape)[i, j]
    doubtful = (least[i, j] + 2 * (x.margin[i + rows.start] + y.margin[j + columns.start]) >= most).nonzero().flatten()
    a, b = i[doubtful], j[doubtful]
    distance, radius = exactly(x, a + rows.start, y, b + columns.start), radii.expand(least.shape)[a, b]
    kept = torch.ones_like(i, dtype=torch.bool)
    kept[doubtful] = rule.holds(distance, radius)
    return i[kept], j[kept]
