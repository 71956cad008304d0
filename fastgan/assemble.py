"""From a config to the parts that train: device, state, step."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import torch
from torch import nn

from fastgan.capture import CapturedStep, captured
from fastgan.dist import ALONE, Ranks
from fastgan.errors import FastganError
from fastgan.options import Config
from fastgan.step import Step, TrainState, autocast_of, new_state


def pick_device(name: str) -> torch.device:
    """The torch device called `name`, or FastganError; "auto" is the GPU where there is one."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        if device.type not in ("cpu", "cuda"):
            raise RuntimeError("only CPUs and CUDA devices are supported")
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0][:150]
        raise FastganError(f"device {name!r} cannot be used here ({reason}); use --device cpu, cuda or auto") from None
    return device


def prepare_device(config: Config, ranks: Ranks = ALONE) -> torch.device:
    """The device of a config, for one of several ranks, with PyTorch's threads set as it says."""
    if config.threads:
        torch.set_num_threads(config.threads)
    return pick_device(ranks.device_name(config.device))


def build_state(config: Config, device: torch.device, dtype: torch.dtype = torch.float32) -> TrainState:
    """Fresh players and optimisers of a config, with weights in `dtype`."""
    return new_state(
        config.system,
        config.shape,
        config.optim,
        config.averaging,
        seed=config.seed,
        device=device,
        dtype=dtype,
        memory_format=torch.channels_last if config.channels_last else torch.contiguous_format,
    )


def new_step(
    config: Config, state: TrainState, say: Callable[[str], None] = warnings.warn, ranks: Ranks = ALONE
) -> Step | CapturedStep:
    """The step that `config` trains `state` with. say: gets one line where it cannot be captured."""
    step = Step(
        config.system,
        state,
        config.averaging,
        seed=config.seed,
        batch=config.batch // ranks.world,
        total=config.images,
        ranks=ranks,
        autocast=autocast_of(config.precision, state.device),
    )
    return captured(step, say) if config.capture else step


def batch_dtype(config: Config, state: TrainState) -> torch.dtype:
    """Of the images that a step takes: what its convolutions compute in, so that nothing is converted again."""
    return autocast_of(config.precision, state.device) or state.dtype


def parameters(module: nn.Module) -> int:
    """How many numbers `module` has to learn."""
    return sum(p.numel() for p in module.parameters())
