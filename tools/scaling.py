"""What a training step costs on 1 to 1024 GPUs: bytes and time of compute, gradients, statistics, data and evaluation.

    python tools/scaling.py r3gan-64 --matmul-tflops 400 --copy-gbs 2500 --inside-gbs 300 --between-gbs 50 \\
        --latency-us 15 --feed 40000 --features 2000 --metric 2

prints the table of docs/scaling.md for one preset and the constants of a machine, which are the reader's to measure:
`fastgan bench step` prints the first two, `--measure` the rate of the feeder and what gloo takes on this machine. The
formulas are in docs/scaling.md. Nothing here is a measurement of many GPUs.
"""

from __future__ import annotations

import argparse
import math
import statistics
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from fastgan.cost import step_cost
from fastgan.features import inception
from fastgan.features.extractor import PREPARATIONS
from fastgan.flat import ALIGNMENT
from fastgan.losses import LOSSES
from fastgan.presets import PRESETS

GPUS = tuple(2**i for i in range(11))
WIDTH = 4  # bytes of a gradient
FEATURES = 9.6  # images a second through the Inception, on 2 cores of an AMD EPYC
SHOWN = ("digits", "dcgan-64", "wgan-gp-64", "sngan-32", "r3gan-32", "r3gan-64", "r3gan-256")


@dataclass(frozen=True)
class Constants:
    """Of a machine, all measured by whoever asks. The defaults are those of one with 2 CPU cores (docs/scaling.md).

    matmul, copy: operations and bytes a second of one GPU;  reach: part of these ceilings that a step reaches
    inside, between: bytes a second that a GPU exchanges within its machine, and a machine with the others
    per_machine:  GPUs of a machine;  latency: seconds of one hop
    feed: images a second of one rank's feeder;  features: of the Inception on one GPU
    metric: seconds for the scores themselves, which each rank computes
    """

    matmul: float = 243e9
    copy: float = 20.9e9
    reach: float = 0.46
    inside: float = 0.75e9
    between: float = 0.75e9
    per_machine: int = 1
    latency: float = 135e-6
    feed: float = 398_000.0
    features: float = FEATURES
    metric: float = 1.55


@dataclass(frozen=True)
class Traffic:
    """What the ranks exchange in a step. gradients: bytes of each all-reduce; statistics: how many of normalisation."""

    gradients: tuple[int, ...]
    statistics: int


def traffic(config: Any) -> Traffic:
    """Of an unconditional GAN's step, from the shapes of its networks."""
    system = config.system
    with torch.device("meta"):  # shapes are enough
        players = system.players(config.shape)
    sizes = {name: _flat_bytes(player) for name, player in players.items()}
    norms = {name: sum(isinstance(m, _BatchNorm) for m in player.modules()) for name, player in players.items()}
    # A normalisation takes two sums forward and one backward (fastgan.nn.statistics).
    compared = 2 if LOSSES[system.loss].generator_compares else 0
    of_generator = norms["generator"] * (2 * system.critic_steps + 1)
    of_critic = norms["critic"] * (6 * system.critic_steps + 3 + compared)
    gradients = (sizes["critic"],) * system.critic_steps + (sizes["generator"],)
    return Traffic(gradients, of_generator + of_critic)


def _flat_bytes(player: nn.Module) -> int:
    """Of a player's flat buffer, without the numbers for the log."""
    return sum(-(-p.numel() // ALIGNMENT) * ALIGNMENT * WIDTH for p in player.parameters() if p.requires_grad)


def all_reduce_seconds(size: float, gpus: int, c: Constants) -> float:
    """Of `size` bytes: rings within the machines, then between them, and the hops of a tree there and back."""
    here = min(gpus, c.per_machine)
    machines = math.ceil(gpus / c.per_machine)
    within = 2 * (here - 1) / here * size / c.inside
    across = 2 * (machines - 1) / machines * size / c.between
    return within + across + 2 * math.ceil(math.log2(gpus)) * c.latency if gpus > 1 else 0.0


@dataclass(frozen=True)
class Row:
    """Times in seconds: of one step on `batch` images per GPU and critic step, and of an evaluation of all samples."""

    gpus: int
    batch: int
    compute: float
    gradients: float
    statistics: float
    feeding: float
    evaluation: float  # what it draws by the cost model, as the step

    @property
    def step(self) -> float:
        return max(self.compute + self.gradients + self.statistics, self.feeding)


def row(config: Any, gpus: int, batch: int, c: Constants, samples: int = 50_000, width: int = 2048) -> Row:
    """batch: images per GPU;  samples, width: of an evaluation, whose features all ranks get."""
    sent = traffic(config)
    parts = step_cost(config.system, config.shape, batch).values()
    drawn = step_cost(config.system, config.shape, 1)["generator forward"] * (1 / config.system.critic_steps)
    drawing = drawn.seconds(c.matmul, c.copy) / c.reach
    gathered = 0.0
    if gpus > 1:
        link = c.inside if gpus <= c.per_machine else c.between
        gathered = samples * width * WIDTH * (gpus - 1) / gpus / link
    return Row(
        gpus,
        batch,
        compute=sum(part.seconds(c.matmul, c.copy) for part in parts) / c.reach,
        gradients=sum(all_reduce_seconds(size, gpus, c) for size in sent.gradients),
        statistics=sent.statistics * all_reduce_seconds(0, gpus, c),
        feeding=batch * config.system.critic_steps / c.feed,
        evaluation=samples / gpus * (1 / c.features + drawing) + gathered + c.metric,
    )


def table(config: Any, c: Constants) -> list[str]:
    """Lines of Markdown: the config's batch shared out to 1 to 1024 GPUs, then as many images per GPU as on one."""
    sent = traffic(config)
    lines = [
        f"{config.preset}, batch {config.batch}: {sum(sent.gradients) / 1e6:.2f} MB of gradients in "
        f"{len(sent.gradients)} all-reduces, {sent.statistics} small ones for batch normalisation per step",
    ]
    for title, rows in (
        (f"one batch of {config.batch}, shared out", _rows(config, c, shared=True)),
        (f"{config.batch} images per GPU", _rows(config, c, shared=False)),
    ):
        alone = rows[0]
        lines += [
            "",
            f"| ranks ({title}) | images per GPU | compute | gradients | statistics | feeding | step | efficiency "
            "| evaluation |",
            "|---:|---:|---:|---:|---:|---:|---:|---:|---:|",
        ]
        for r in rows:
            efficiency = alone.step / r.step * r.batch / alone.batch
            times = (r.compute, r.gradients, r.statistics, r.feeding, r.step)
            milliseconds = " | ".join(f"{1e3 * t:,.1f} ms" for t in times)
            lines.append(f"| {r.gpus} | {r.batch} | {milliseconds} | {efficiency:.0%} | {r.evaluation:,.1f} s |")
    return lines


def bytes_table(presets: Sequence[str]) -> list[str]:
    """Lines of Markdown: what a step sends and is fed, from the shapes alone."""
    lines = [
        "| preset | batch | MB per all-reduce: critic turns + generator | gradients | sums of batch normalisation "
        "| images, uint8 |",
        "|---|---:|---|---:|---:|---:|",
    ]
    for name in presets:
        config = PRESETS[name]
        sent, steps = traffic(config), config.system.critic_steps
        critic, generator = (f"{size / 1e6:.2f}" for size in (sent.gradients[0], sent.gradients[-1]))
        turns = f"{steps} x {critic}" if steps > 1 else critic
        fed = steps * config.batch * config.shape.channels * config.shape.size**2
        lines.append(
            f"| `{name}` | {config.batch} | {turns} + {generator} | {sum(sent.gradients) / 1e6:.2f} MB "
            f"| {sent.statistics} | {fed / 1e6:.2f} MB |"
        )
    return lines


def _rows(config: Any, c: Constants, *, shared: bool) -> list[Row]:
    counts = [n for n in GPUS if not shared or config.batch % n == 0]
    return [row(config, n, config.batch // n if shared else config.batch, c) for n in counts]


def measure() -> list[str]:
    """Lines about this machine: gloo between two processes, and the feeder on 64x64 images in memory."""
    sys_path_of_tests()
    from ranks import in_ranks  # the helper of the tests

    with tempfile.TemporaryDirectory() as folder:
        times = in_ranks(2, "scaling:_time_gloo", Path(folder))[0]
    small, large = (float(times[key]) for key in ("small", "large"))
    return [
        f"gloo, 2 processes: {1e6 * small:.0f} us for 8 bytes, {64 / 1024 / large:.2f} GiB/s for 64 MiB",
        f"feeder, 64x64 RGB in memory: {_feeder_rate():,.0f} images/s",
        f"Inception, random weights, features of 64x64: {_features_rate():,.1f} images/s",
    ]


def sys_path_of_tests() -> None:
    import sys

    here = Path(__file__).parent
    sys.path[:0] = [str(here), str(here.parent / "tests")]


def _time_gloo(ranks: Any) -> dict[str, torch.Tensor]:
    """Medians of 200 all-reduces of 8 bytes, of 10 of 64 MiB."""
    found = {}
    for name, numbers, rounds in (("small", 1, 200), ("large", 1 << 23, 10)):
        vector, seconds = torch.zeros(numbers, dtype=torch.float64), []
        for _ in range(rounds):
            ranks.barrier()
            begin = time.perf_counter()
            ranks.sum_(vector)
            seconds.append(time.perf_counter() - begin)
        found[name] = torch.tensor(statistics.median(seconds), dtype=torch.float64)
    return found


def _feeder_rate(batches: int = 100) -> float:
    from fastgan.data.feeder import Feeder
    from fastgan.data.image_set import ImageSet, fetch_from

    pixels = np.random.default_rng(0).integers(0, 256, (20_000, 64, 64, 3), np.uint8)

    images = ImageSet("noise", 64, 3, len(pixels), fetch_from(pixels), "noise")
    with Feeder(images, seed=0, batch=256) as feeder:
        for _ in range(5):
            next(feeder)
        begin = time.perf_counter()
        for _ in range(batches):
            next(feeder)
        return 256 * batches / (time.perf_counter() - begin)


def _features_rate(batch: int = 32, batches: int = 4) -> float:
    """Images a second through resize and Inception, whose weights do not matter for its speed."""
    torch.manual_seed(0)
    network, prepare = inception.Inception().eval().to(memory_format=torch.channels_last), PREPARATIONS["tensorflow"]
    images = torch.randint(0, 256, (batch, 3, 64, 64), dtype=torch.uint8)
    seconds = []
    with torch.inference_mode():
        for _ in range(batches + 1):
            begin = time.perf_counter()
            large = prepare.resize(images, inception.SIDE)
            network(large.sub(prepare.centre).div_(prepare.half).to(memory_format=torch.channels_last))
            seconds.append(time.perf_counter() - begin)
    return batch / statistics.median(seconds[1:])


def main() -> None:
    defaults = Constants()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("preset", nargs="?", default="dcgan-64", choices=sorted(PRESETS))
    parser.add_argument("--measure", action="store_true", help="measure this machine instead")
    parser.add_argument("--bytes", action="store_true", help="what a step of each preset sends instead")
    scales = {
        "matmul-tflops": ("matmul", 1e12),
        "copy-gbs": ("copy", 1e9),
        "inside-gbs": ("inside", 1e9),
        "between-gbs": ("between", 1e9),
        "latency-us": ("latency", 1e-6),
        **{name.replace("_", "-"): (name, 1) for name in ("per_machine", "reach", "feed", "features", "metric")},
    }
    for flag, (field, unit) in scales.items():
        parser.add_argument(f"--{flag}", type=float, default=getattr(defaults, field) / unit)
    given = parser.parse_args()
    if given.measure:
        print("\n".join(measure()))
        return
    if given.bytes:
        print("\n".join(bytes_table(SHOWN)))
        return
    values = {field: getattr(given, flag.replace("-", "_")) * unit for flag, (field, unit) in scales.items()}
    values["per_machine"] = int(values["per_machine"])
    print("\n".join(table(PRESETS[given.preset], Constants(**values))))


if __name__ == "__main__":
    main()
