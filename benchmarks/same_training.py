"""Does a run by the engine end where a run by the plain loop does? Digits, several seeds, equal images seen.

    python -m benchmarks.same_training --kimg 20 --seeds 3

Per seed three runs from the same weights over the same images: the engine, the tidy loop (fastgan.baseline), and the
engine with simultaneous updates, which is another algorithm. Learning rate and penalties stay as the `digits` preset
starts them. Prints the critic's loss on a fixed batch along each run, and at its end the Fréchet distance of the
averaged generator's samples to all digits, in the features of the digits network (fastgan.features). The loops draw
latents of their own, so that equal algorithms differ, too: what counts is the spread over seeds.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Iterator
from dataclasses import dataclass, field, replace

import torch
from torch import nn

from benchmarks import baselines, steps
from fastgan.contract import Batch, Draw
from fastgan.data import open_images
from fastgan.data.feeder import Feeder
from fastgan.losses import LOSSES
from fastgan.metrics import fid
from fastgan.options import Config

POINTS = 4  # losses per run
SAMPLES = 2000
HALFLIFE_KIMG = 2.0  # of the average: short, for short runs


def configured(*, simultaneous: bool = False) -> Config:
    config = steps.config_of("digits", None, "cpu")
    config = replace(config, averaging=replace(config.averaging, halflife_kimg=HALFLIFE_KIMG))
    return replace(config, system=replace(config.system, simultaneous=simultaneous))


def batches(config: Config, seed: int, count: int) -> Iterator[Batch]:
    with Feeder(open_images(config.data), seed=seed, batch=config.batch) as feeder:
        for _ in range(count):
            yield next(feeder)


@dataclass
class Curve:
    """The critic's loss on a fixed batch, and at the end the Fréchet distance."""

    config: Config
    losses: list[float] = field(default_factory=list)
    distance: float = 0.0

    def note(self, generator: nn.Module, critic: nn.Module) -> None:
        latents = self.config.system.latents(Draw(1, torch.arange(256), stream=0))
        reals = next(batches(replace(self.config, batch=256), 1, 1)).images
        generator.eval()
        with torch.no_grad():
            loss = LOSSES[self.config.system.loss].critic(critic(reals), critic(generator(latents)))
        generator.train()
        self.losses.append(float(loss))

    def finish(self, average: nn.Module) -> Curve:
        latents = self.config.system.latents(Draw(0, torch.arange(SAMPLES), stream=0))
        average.eval()
        with torch.no_grad():
            samples = torch.cat([average(z) for z in latents.split(500)])
        self.distance = fid(open_images(self.config.data), samples.clamp(-1, 1), "digits").value
        return self


def by_engine(seed: int, count: int, *, simultaneous: bool = False) -> Curve:
    curve = Curve(configured(simultaneous=simultaneous))
    engine = steps.Engine.of(curve.config, "cpu", seed=seed)
    players = engine.state.players
    for number, batch in enumerate(batches(curve.config, seed, count), 1):
        engine.step(iter([batch]).__next__)
        if number % (count // POINTS) == 0:
            curve.note(players["generator"].module, players["critic"].module)
    assert players["generator"].average is not None
    return curve.finish(players["generator"].average)


def by_plain_loop(seed: int, count: int) -> Curve:
    curve = Curve(configured())
    networks = steps.Networks.of(curve.config, "cpu")
    networks.take_weights(steps.Engine.of(curve.config, "cpu", seed=seed))
    recipe = steps.recipe_of(curve.config)
    loop = baselines.tidy(networks.generator, networks.average, networks.critic, recipe)
    torch.manual_seed(seed)
    for number, batch in enumerate(batches(curve.config, seed, count), 1):
        loop(batch.images, torch.randn(len(batch.images), curve.config.system.latent))
        if number % (count // POINTS) == 0:
            curve.note(networks.generator, networks.critic)
    return curve.finish(networks.average)


WAYS = {
    "engine": by_engine,
    "plain loop": by_plain_loop,
    "engine, simultaneous": lambda seed, count: by_engine(seed, count, simultaneous=True),
}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.same_training", description=__doc__.splitlines()[0])
    parser.add_argument("--kimg", type=float, default=20.0, help="thousands of images per run")
    parser.add_argument("--seeds", type=int, default=3)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    count = max(POINTS, round(arguments.kimg * 1000 / configured().batch))
    print(f"{count} steps of {configured().batch} images; losses at {POINTS} points; distance of {SAMPLES} samples")
    found: dict[str, list[float]] = {name: [] for name in WAYS}
    for seed in range(arguments.seeds):
        for name, train in WAYS.items():
            curve = train(seed, count)
            found[name].append(curve.distance)
            losses = " ".join(f"{loss:.3f}" for loss in curve.losses)
            print(f"seed {seed}  {name:<22} loss {losses}   distance {curve.distance:.2f}", flush=True)
    for name, distances in found.items():
        spread = f" ± {statistics.stdev(distances):.2f}" if len(distances) > 1 else ""
        print(f"{name:<22} distance {statistics.mean(distances):.2f}{spread}")


if __name__ == "__main__":
    main()
