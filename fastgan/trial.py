"""A config tried without a run folder: the dry run of `train`, and the timing of `bench`."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch

from fastgan import bench
from fastgan.contract import Batch
from fastgan.data import open_images
from fastgan.data.feeder import Feeder
from fastgan.kernels import _runtime
from fastgan.train import Config, build_state, new_step, parameters, prepare_device


def dry_run(config: Config) -> Iterator[str]:
    """Lines about the data, the networks and the kernels; then one step is done and timed. Writes no file."""
    device = prepare_device(config)
    images = open_images(config.data)
    yield images.summary
    state = build_state(config, device)
    for name, module in state.modules.items():
        average = ", averaged" if state.players[name].average is not None else ""
        yield f"{name}: {type(module).__name__}, {parameters(module):,} parameters{average}"
    yield _runtime.build_summary()
    yield from (f"{op.op}: {op.implementation} ({op.reason})" for op in _runtime.report())
    step = new_step(config, state)
    with Feeder(images, seed=config.seed, batch=config.batch, device=device, mirror=config.data.mirror) as feeder:
        began = time.monotonic()
        step(feeder.__next__)
        statistics = step.read_statistics()
    yield f"one step on {device}: {bench.duration(time.monotonic() - began)}"
    yield ", ".join(f"{name} {value:.4g}" for name, value in statistics.items())


@dataclass
class RandomBatches:
    """Uniform noise instead of images, from memory: next() takes no time worth mentioning."""

    config: Config
    device: torch.device
    sample: int = 0

    def __post_init__(self) -> None:
        c = self.config
        pixels = np.random.default_rng(0).random((c.batch, c.shape.size, c.shape.size, c.shape.channels), np.float32)
        self._images = (torch.from_numpy(pixels) * 2 - 1).to(self.device).permute(0, 3, 1, 2)

    def __call__(self) -> Batch:
        index = torch.arange(self.sample, self.sample + self.config.batch, device=self.device)
        self.sample += self.config.batch
        return Batch(self._images, None, index)


def bench_step(config: Config, steps: int, say: Callable[[str], None]) -> None:
    """Time whole training steps on random images and say images/s, ms per step, peak memory and the ceilings."""
    device = prepare_device(config)
    info = bench.device_info(device)
    say(f"{info.name}, {info.threads} threads, torch {info.torch}, fastgan {info.fastgan}")
    state = build_state(config, device)
    step, batches = new_step(config, state), RandomBatches(config, device)
    seconds = bench.measure({"step": lambda: step(batches)}, device=device, rounds=steps, min_time=0.0)["step"]
    images = step.batches * config.batch
    median = float(np.median(seconds))
    say(f"preset {config.preset}, batch {config.batch}, {step.batches} critic batch(es) a step, {steps} steps timed")
    say(
        f"{images / median:.1f} images/s; a step takes {bench.duration(median)} "
        f"({bench.duration(min(seconds))} to {bench.duration(max(seconds))})"
    )
    say(f"peak memory {bench.peak_memory(device) / 2**20:.0f} MiB; means: {step.read_statistics()}")
    say(
        f"ceilings measured here: copy {bench.copy_rate(str(device)) / 1e9:.1f} GB/s, "
        f"matrix product {bench.matmul_rate(str(device)) / 1e9:.0f} GFLOP/s"
    )
