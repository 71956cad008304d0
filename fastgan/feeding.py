"""What the log says of the data's way to the device: which one, how fast, how long training waits, and what packing
would bring to a set that is not packed."""

from __future__ import annotations

import shlex

from fastgan.data import DataOptions, ImageSet
from fastgan.data.feeder import Feeder


def way(feeder: Feeder, wait_share: float) -> str:
    """The feeder in one line, once it has been measured. wait_share: of the training time, spent waiting for it."""
    rate = f", {feeder.images_per_second:,.0f} images/s when asked" if feeder.images_per_second else ""
    return f"data: {feeder.description}{rate}; training waits for it {wait_share:.1%} of the time"


def packing_at_start(images: ImageSet, options: DataOptions, seconds: float) -> str | None:
    """For files that were all decoded at the start: what packing saves. seconds: that opening the set took."""
    if not images.unpacked or images.kind != "memory":
        return None
    return (
        f"not packed: decoding took {seconds:.1f} s ({len(images) / max(seconds, 1e-9):,.0f} images/s) and will "
        f"at every start; once is enough: {command(options)}"
    )


def packing_while_training(images: ImageSet, options: DataOptions, feeder: Feeder, wait_share: float) -> str | None:
    """For files that are decoded in every epoch: what packing saves."""
    if not images.unpacked or feeder.kind != "decoded":
        return None
    gain = (
        f"training is up to {1 / (1 - min(wait_share, 0.99)):.2f}x as fast" if wait_share > 0.01 else "cores are free"
    )
    return (
        f"not packed: every epoch decodes again, {feeder.images_per_second:,.0f} images/s on {options.threads} "
        f"threads, and training waits {wait_share:.0%} of the time; {gain} after: {command(options)}"
    )


def command(options: DataOptions) -> str:
    """The command that packs what `options` read, into a folder beside it."""
    target = f"{options.path.rstrip('/').removesuffix('.zip').removesuffix('.tar')}-{options.size}"
    words = ["fastgan", "pack", options.path, target, "--size", str(options.size)]
    words += ["--channels", "1"] if options.channels == 1 else []
    words += ["--crop", options.crop] if options.crop != "center" else []
    return shlex.join(words)
