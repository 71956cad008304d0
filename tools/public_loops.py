"""The public training loops of R3GAN and StyleGAN2-ADA, as they are, timed in turn with this engine on a CPU.

    git clone https://github.com/brownvc/R3GAN
    git clone https://github.com/NVlabs/stylegan2-ada-pytorch
    pip install psutil requests click 'setuptools<80'
    python tools/public_loops.py r3gan R3GAN
    python tools/public_loops.py stylegan2 stylegan2-ada-pytorch

Theirs is the checkout's own `training_loop`, with its networks, losses, optimisers and data loader, unchanged; only
what it asks of CUDA (the device, events, memory statistics) is answered for a CPU, where its operators take their
reference paths, and PyTorch's sampler takes an argument that it no longer has. It runs in a thread of its own, which
waits before each step until that step is timed. Ours is the preset's step. Both have networks of the same widths, the
same batch size and images, no augmentation, float32. One unit is a lazy cycle: with StyleGAN2's penalties 16 steps.
Their statistics and files are written once, in the first step, untimed.
"""

from __future__ import annotations

import argparse
import importlib
import sys
import tempfile
import threading
import types
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fastgan import bench
from fastgan.assemble import build_state, new_step
from fastgan.contract import Batch
from fastgan.models import R3GAN, StyleGAN2
from fastgan.optim import Averaging
from fastgan.options import Config
from fastgan.presets import PRESETS

SIZE, FOREVER = 64, 10**9
WIDTHS = (96, 96, 96, 96, 48)  # of R3GAN at 4x4 to 64x64: an eighth of the preset's, and one block each
GROUP = 16
STYLE_WIDTH, STYLE_MOST = 16, 64  # of StyleGAN2: channels at 64x64, and at most
LAZY = 16


class Turns:
    """Two threads that run in turn: `step` lets the other run until it has `reached` its next step."""

    def __init__(self) -> None:
        self.go, self.back = threading.Semaphore(0), threading.Semaphore(0)
        self.error: BaseException | None = None
        self.armed = False

    def reached(self) -> None:
        self.back.release()
        self.go.acquire()

    def wait(self) -> None:
        self.back.acquire()
        if self.error is not None:
            raise self.error

    def step(self) -> None:
        self.go.release()
        self.wait()


class Images:
    """What their loops ask of a data set. A step begins at every `per_step`-th image that is read."""

    has_labels, label_dim, label_shape, num_channels = False, 0, [0], 3

    def __init__(self, images: np.ndarray[Any, Any], per_step: int, turns: Turns) -> None:
        self.images, self.per_step, self.turns, self.read = images, per_step, turns, 0
        self.resolution, self.image_shape = images.shape[2], list(images.shape[1:])

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, number: int) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
        if self.turns.armed:
            if self.read % self.per_step == 0:
                self.turns.reached()
            self.read += 1
        return self.images[number].copy(), self.get_label(number)

    def get_label(self, number: int) -> np.ndarray[Any, Any]:
        return np.zeros(0, np.float32)


class OnCPU:
    """`torch` as their loops see it: what is of CUDA answers for a CPU."""

    class Event:
        def __init__(self, enable_timing: bool = False) -> None:
            pass

        def record(self, stream: object = None) -> None:
            pass

        def synchronize(self) -> None:
            pass

        def elapsed_time(self, other: object) -> float:
            return 0.0

    cuda = types.SimpleNamespace(
        Event=Event,
        current_stream=lambda device: None,
        max_memory_allocated=lambda device: 0,
        max_memory_reserved=lambda device: 0,
        reset_peak_memory_stats=lambda: None,
    )

    def __getattr__(self, name: str) -> Any:
        return getattr(torch, name)

    @staticmethod
    def device(*_: object) -> torch.device:
        return torch.device("cpu")


def public_step(checkout: Path, options: dict[str, Any], images: np.ndarray[Any, Any], per_step: int) -> Turns:
    """Their loop, run to its second step. options: of their `training_loop`, besides the data set's."""
    sys.path.insert(0, str(checkout))
    sys.modules["torch.utils.tensorboard"] = None  # type: ignore[assignment]  # they do without it then
    loop: Any = importlib.import_module("training.training_loop")
    turns = Turns()
    module = types.ModuleType("in_memory")
    module.Images = lambda: Images(images, per_step, turns)  # type: ignore[attr-defined]
    sys.modules["in_memory"] = module
    loop.torch = OnCPU()
    loop.setup_snapshot_image_grid = lambda training_set: ((1, 1), images[:1], np.zeros((1, 0), np.float32))
    torch.Tensor.pin_memory = lambda tensor: tensor  # type: ignore[assignment,method-assign]
    # PyTorch's sampler took the data set when their code was written, and takes nothing now.
    torch.utils.data.Sampler.__init__ = lambda sampler, source=None: None  # type: ignore[method-assign,misc]

    def run() -> None:
        with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of their operators, about this version of PyTorch
            try:
                loop.training_loop(
                    run_dir=folder,
                    training_set_kwargs={"class_name": "in_memory.Images"},
                    total_kimg=FOREVER,
                    kimg_per_tick=FOREVER,
                    image_snapshot_ticks=None,
                    network_snapshot_ticks=None,
                    progress_fn=lambda done, total: setattr(turns, "armed", True),
                    **options,
                )
            except BaseException as error:  # the other thread raises it
                turns.error = error
                turns.back.release()

    threading.Thread(target=run, daemon=True).start()
    turns.wait()
    return turns


def ours(config: Config, images: np.ndarray[Any, Any]) -> Callable[[], None]:
    """One step of the engine on the first images."""
    state = build_state(config, torch.device("cpu"))
    step = new_step(config, state)
    pixels = torch.from_numpy(images[: config.batch]).contiguous(memory_format=torch.channels_last)

    def run() -> None:
        batch = Batch(pixels.float() / 127.5 - 1, None, torch.arange(config.batch) + state.samples)
        step(lambda: batch)

    return run


def r3gan(batch: int) -> tuple[Config, dict[str, Any], int, int]:
    """Our config, their options, images that they read per step, steps of a lazy cycle."""
    config = PRESETS["r3gan-64"]
    networks = R3GAN(widths=WIDTHS, blocks=(1,) * len(WIDTHS), group_size=GROUP)
    config = replace(config, system=replace(config.system, networks=networks), batch=batch, device="cpu")
    groups = [2 * width // GROUP for width in WIDTHS]
    same = {"BlocksPerStage": [1] * len(WIDTHS), "ExpansionFactor": 2, "FP16Stages": []}
    generator = {"WidthPerStage": list(WIDTHS), "CardinalityPerStage": groups, "NoiseDimension": 64, **same}
    critic = {"WidthPerStage": list(WIDTHS[::-1]), "CardinalityPerStage": groups[::-1], **same}
    adam = {"class_name": "torch.optim.Adam", "betas": [0.0, 0.0], "eps": 1e-8}

    def schedule(start: float, end: float) -> dict[str, float]:
        return {"base_value": start, "final_value": end, "total_nimg": 2e7}

    options = {
        "G_kwargs": {"class_name": "training.networks.Generator", **generator},
        "D_kwargs": {"class_name": "training.networks.Discriminator", **critic},
        "G_opt_kwargs": adam,
        "D_opt_kwargs": adam,
        "loss_kwargs": {"class_name": "training.loss.R3GANLoss"},
        "lr_scheduler": schedule(2e-4, 5e-5),
        "beta2_scheduler": schedule(0.9, 0.99),
        "gamma_scheduler": schedule(2.0, 0.2),
        "ema_scheduler": schedule(0, 500_000),
        "aug_scheduler": schedule(0, 0),
        "batch_size": batch,
        "g_batch_gpu": batch,
        "d_batch_gpu": batch,
    }
    return config, options, 2 * batch, 1


def stylegan2(batch: int) -> tuple[Config, dict[str, Any], int, int]:
    """The same for StyleGAN2; path lengths every 4 steps, as in their code."""
    config = PRESETS["stylegan2-64"]
    system = replace(config.system, networks=StyleGAN2(STYLE_WIDTH, STYLE_WIDTH, max_width=STYLE_MOST), path_every=4)
    config = replace(config, system=system, batch=batch, device="cpu", averaging=Averaging(10.0))
    channels = {"channel_base": STYLE_WIDTH * SIZE, "channel_max": STYLE_MOST, "num_fp16_res": 0}
    networks = {"z_dim": 512, "w_dim": 512, "mapping_kwargs": {"num_layers": 8}, "synthesis_kwargs": channels}
    adam = {"class_name": "torch.optim.Adam", "lr": 2.5e-3, "betas": [0.0, 0.99], "eps": 1e-8}
    options = {
        "G_kwargs": {"class_name": "training.networks.Generator", **networks},
        "D_kwargs": {
            "class_name": "training.networks.Discriminator",
            "block_kwargs": {},
            "mapping_kwargs": {},
            "epilogue_kwargs": {"mbstd_group_size": 4},
            **channels,
        },
        "G_opt_kwargs": adam,
        "D_opt_kwargs": adam,
        "loss_kwargs": {"class_name": "training.loss.StyleGAN2Loss", "r1_gamma": 0.0256},
        "batch_size": batch,
        "batch_gpu": batch,
    }
    return config, options, batch, LAZY


LOOPS = {"r3gan": r3gan, "stylegan2": stylegan2}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("which", choices=LOOPS)
    parser.add_argument("checkout", type=Path, help="folder of the public code")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--budget", type=float, default=120, help="seconds of timing")
    parser.add_argument("--results", type=Path, default=None, help="also keep the result in this folder")
    given = parser.parse_args()
    if not (given.checkout / "training" / "training_loop.py").exists():
        parser.error(f"{given.checkout} is not a checkout of {given.which}'s code: no training/training_loop.py in it")
    config, options, per_step, cycle = LOOPS[given.which](given.batch)
    shape = (4 * given.batch, 3, SIZE, SIZE)
    images = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    step, theirs = ours(config, images), public_step(given.checkout, options, images, per_step)
    name = f"public {given.which} loop"
    candidates: dict[str, Callable[[], object]] = {
        "fastgan": lambda: [step() for _ in range(cycle)],
        name: lambda: [theirs.step() for _ in range(cycle)],
    }
    load = bench.load_average()
    seconds = bench.measure(candidates, rounds=given.rounds, min_time=0.0, budget=given.budget, warmup=1)
    what = f"{given.which}-{SIZE}, batch {given.batch}" + (f", {cycle} steps" if cycle > 1 else "")
    case = bench.Case(what, "fastgan", seconds)
    rates = bench.copy_rate(), bench.matmul_rate()
    result = bench.Result(f"public_{given.which}", bench.device_info(), *rates, load, (case,))
    print(bench.text(result))
    if given.results:
        print(result.save(given.results))


if __name__ == "__main__":
    main()
