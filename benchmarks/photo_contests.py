"""The contests of benchmarks.photographs: who trains, on what, and how it is scored. One function per contest."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.conditional_peer import PlainLoop
from benchmarks.image_peers import PlainInpainting, PlainSuperResolution, PlainTranslation, unfused
from benchmarks.image_quality import FILLS, compared, mean_filled, psnr_within, sets
from benchmarks.photo_scores import Judge, distance, features
from benchmarks.varied import varied
from fastgan import baseline_styles
from fastgan.assemble import build_state, new_step
from fastgan.contract import Batch, Draw
from fastgan.data import DataOptions, ImageSet
from fastgan.gans import ConditionalGAN, Inpainting, StyleBasedGAN, SuperResolution, Translation
from fastgan.gans.super_resolution import PIXEL_LOSSES
from fastgan.models import DCGAN, PatchCritic, SRCritic, SRResNet, StyleGAN2, UNet
from fastgan.models.srresnet import enlarged
from fastgan.optim import Averaging, Optimizer
from fastgan.options import Config, with_data
from fastgan.pictures import evaluating, picture_batch, picture_draw, picture_latents, sample_images
from fastgan.presets import PRESETS
from fastgan.schedule import Schedule, Scheduled, value_at
from fastgan.step import TrainState

OURS = "fastgan"
CPU = torch.device("cpu")
PHOTOS = DataOptions(path="photos", size=64)


@dataclass(frozen=True)
class Contest:
    """title: with the conditions that are not the same for all contests;  kimg: how long, by default

    train:     the images
    sides:     name -> what trains on a batch; ours first
    scores:    of a side, after training: name -> number
    pictures:  of a side: what it makes for a person to see, [N, 3, 64, 64]
    reference: scores of something that needs no training, by name
    around:    what to show before and after what the sides make, such as the source and the target
    mirror:    half of the images are mirrored; not where samples are compared with patches as they are
    vary:      what all sides see of a batch
    """

    title: str
    batch: int
    train: ImageSet
    sides: dict[str, Callable[[Batch], object]]
    scores: Callable[[str], dict[str, float]]
    pictures: Callable[[str], Tensor]
    reference: dict[str, dict[str, float]]
    around: tuple[Tensor, Tensor] | None = None
    mirror: bool = True
    vary: Callable[[Batch], Batch] = field(default=lambda batch: batch)


def engine(config: Config) -> tuple[TrainState, Callable[[Batch], object]]:
    state = build_state(config, CPU)
    step = new_step(config, state)
    return state, lambda batch: step(lambda: batch)


def configured(preset: str, system: Any, images: ImageSet, **changes: Any) -> Config:
    config = replace(PRESETS[preset], system=system, data=PHOTOS, device="cpu", **changes)
    return with_data(config, images)


def conditional(kimg: float) -> Contest:
    images, batch, width, lr = sets(PHOTOS)[0], 16, 16, 5e-4
    judge = Judge(images)
    averaging = Averaging(halflife_kimg=1.0, rampup=0.1)
    sides: dict[str, Callable[[Batch], object]] = {}
    samplers: dict[str, Callable[[Tensor], Tensor]] = {}

    def sampler(config: Config, state: TrainState) -> Callable[[Tensor], Tensor]:
        def sample(asked: Tensor) -> Tensor:
            latents = picture_latents(config.system, range(len(asked)), CPU)  # type: ignore[arg-type]
            return sample_images(config.system, state.averages, latents, asked)  # type: ignore[arg-type]

        return sample

    networks = DCGAN(generator_width=width, critic_width=width, critic_norm="none")
    base = PRESETS["conditional-64"].system
    assert isinstance(base, ConditionalGAN)
    system = replace(base, networks=networks, labels="projection")
    optim = dict.fromkeys(("generator", "critic"), Optimizer(lr=lr, beta1=0.5, beta2=0.99))
    config = configured("conditional-64", system, images, optim=optim, averaging=averaging, kimg=kimg, batch=batch)
    state, sides[OURS] = engine(config)
    samplers[OURS] = sampler(config, state)
    plain = PlainLoop(len(images.classes), width, lr)
    sides["plain loop"] = plain
    samplers["plain loop"] = plain.sample
    classes = len(images.classes)
    return Contest(
        f"conditional, DCGAN networks of width {width}, labels by projection, batch {batch}",
        batch,
        images,
        sides,
        lambda name: judge.scores(samplers[name](judge.asked)),
        lambda name: samplers[name](torch.arange(6 * classes) % classes),
        {"other real patches": judge.of_reals},
        mirror=False,
    )


def translation(source: str, kimg: float, level: float = 0.3) -> Contest:
    """The published arrangement in the engine and in a plain loop from the same weights, and residual translation."""
    images, held_out = sets(PHOTOS)
    batch, width, lr = 8, 16, 1e-3
    optim = dict.fromkeys(("generator", "critic"), Optimizer(lr=lr, beta1=0.5, beta2=0.999))
    averaging = Averaging(halflife_kimg=0.5, rampup=0.1)
    shown = picture_batch(held_out, range(len(held_out)), CPU)
    draw = picture_draw(range(len(held_out)), CPU)
    sides: dict[str, Callable[[Batch], object]] = {}
    generators: dict[str, Callable[[Tensor], Tensor]] = {}

    def of(system: Translation, players: dict[str, nn.Module]) -> Callable[[Tensor], Tensor]:
        def made(x: Tensor) -> Tensor:
            with evaluating(players):
                return system.translate(players, x)

        return made

    for name, residual in ((OURS, False), ("fastgan, added to the source", True)):
        generator = UNet(width=width, dropout=0.0, from_zero=residual)
        critic = PatchCritic(width=width)
        system = Translation(generator, critic, source=source, noise_level=level, residual=residual)
        config = configured("pix2pix-64", system, images, optim=optim, averaging=averaging, kimg=kimg, batch=batch)
        state, sides[name] = engine(config)
        if not residual:
            plain = PlainTranslation(unfused(state.modules["generator"]), unfused(state.modules["critic"]), lr)
            system_of_plain = system
        generators[name] = of(system, state.averages)
    sides["plain loop"] = lambda batch: plain(
        system_of_plain.sources(batch, Draw(1, batch.index, stream=0)), batch.images
    )
    generators["plain loop"] = of(system_of_plain, {"generator": plain.generator})
    sources, target = system.sources(shown, draw), shown.images

    some = of_many(len(target))
    return Contest(
        f"pix2pix, {source} to photograph, width {width}, batch {batch}",
        batch,
        images,
        sides,
        lambda name: against(target, generators[name](sources)),
        lambda name: generators[name](sources[some]),
        {"the source itself": against(target, sources.expand_as(target))},
        (sources[some].expand(-1, 3, -1, -1), target[some]),
    )


def of_many(count: int, shown: int = 16) -> Tensor:
    """Numbers of the pictures that are shown of so many."""
    return torch.arange(0, count, max(1, count // 24))[:shown]


def against(target: Tensor, made: Tensor) -> dict[str, float]:
    numbers = {name.removeprefix("x "): value for name, value in compared({"x": made}, target).items()}
    return {**numbers, "distance": distance(features(made), features(target))}


def inpainting(kimg: float) -> Contest:
    """From a smooth fill with two critics, and the usual arrangement: a hole in the mean colour and one critic."""
    images, held_out = sets(PHOTOS)
    batch, width, lr = 8, 32, Schedule(5e-4, 0.0, begin=0.3)
    optim = dict.fromkeys(("generator", "critic"), Optimizer(lr=lr, beta1=0.5, beta2=0.999))
    averaging = Averaging(halflife_kimg=0.5, rampup=0.1)
    critic = PatchCritic(width=16, norm="instance")
    sides: dict[str, Callable[[Batch], object]] = {}
    averages: dict[str, Any] = {}
    for name, adversarial in ((OURS, 0.1), ("fastgan, pixels alone", 0.0)):
        network = UNet(width=width, max_width=256, dropout=0.0, from_zero=True)
        system = Inpainting(network, critic, adversarial=adversarial)
        config = configured("inpaint-64", system, images, optim=optim, averaging=averaging, kimg=kimg, batch=batch)
        state, sides[name] = engine(config)
        averages[name] = state.averages
    torch.manual_seed(0)
    layout = {"memory_format": torch.channels_last}
    generator = replace(network, from_zero=False).translator(config.shape, config.shape.channels + 1)
    networks = (unfused(each).to(**layout) for each in (generator, critic.critic(config.shape, 1)))
    plain = PlainInpainting(*networks, functools.partial(at, lr), mean_filled, round(kimg * 1000 / batch))
    shown = picture_batch(held_out, range(len(held_out)), CPU)
    target, draw = shown.images, picture_draw(range(len(held_out)), CPU)
    masks = {kind: replace(system, mask=kind).masks(shown, draw) for kind in ("box", "free")}
    of_pictures = system.masks(shown, draw)

    def by_engine(name: str, x: Tensor, holes: Tensor) -> Tensor:
        with evaluating(averages[name]):
            return system.inpaint(averages[name], x, holes, draw)

    def by_loop(x: Tensor, holes: Tensor) -> Tensor:
        with evaluating({"generator": plain.generator}):
            return plain.inpaint(x, holes)

    ways: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
        **FILLS,
        **{name: functools.partial(by_engine, name) for name in averages},
        "plain loop": by_loop,
    }

    def scores(name: str) -> dict[str, float]:
        made = {kind: ways[name](target, holes) for kind, holes in masks.items()}
        numbers = {f"PSNR in a {kind} hole": psnr_within(made[kind], target, holes) for kind, holes in masks.items()}
        return numbers | {"distance with boxes": distance(features(made["box"]), features(target))}

    some = of_many(len(target))
    sides["plain loop"] = lambda batch: plain(batch.images, system.masks(batch, Draw(1, batch.index, stream=0)))
    return Contest(
        f"inpainting, boxes and strokes, width {width}, varied photographs, batch {batch}",
        batch,
        images,
        sides,
        scores,
        lambda name: ways[name](target[some], of_pictures[some]),
        {name: scores(name) for name in FILLS},
        (torch.where(of_pictures > 0, 0.0, target)[some], target[some]),
        vary=varied,
    )


def at(value: Scheduled, progress: float) -> float:
    """What a number or a schedule is, as far into the run."""
    return float(value_at(value, torch.tensor(progress)))


def super_resolution(kimg: float, scale: int = 4) -> Contest:
    """The preset, narrow; a plain loop of the same networks; and one of the published ones: batch normalisation, and
    nothing added to a bicubic enlargement."""
    images, held_out = sets(PHOTOS)
    batch, lr, weight = 8, Schedule(1e-3, 0.0, begin=0.5), Schedule(0.0, 1e-3, begin=0.5, finish=0.55)
    small = SRCritic(width=8, hidden=64, halvings=3, norm="none")
    system = SuperResolution(SRResNet(24, 4, 5, norm="none"), small, scale=scale, adversarial=weight)
    published = SRResNet(24, 4, 5, norm="batch", residual=False)
    optim = dict.fromkeys(("generator", "critic"), Optimizer(lr=lr, beta1=0.9, beta2=0.999))
    averaging = Averaging(halflife_kimg=0.5, rampup=0.1)
    config = configured(f"srgan-x{scale}", system, images, optim=optim, averaging=averaging, kimg=kimg, batch=batch)
    state, ours = engine(config)
    steps = round(kimg * 1000 / batch)

    def loop(generator: nn.Module, critic: nn.Module, pixel: str) -> PlainSuperResolution:
        scheduled = (functools.partial(at, value) for value in (lr, weight))
        return PlainSuperResolution(generator, critic, scale, *scheduled, PIXEL_LOSSES[pixel], steps)

    torch.manual_seed(0)
    layout = {"memory_format": torch.channels_last}
    loops = {
        "plain loop": loop(unfused(state.modules["generator"]), unfused(state.modules["critic"]), "l1"),
        "plain loop, published networks": loop(
            unfused(published.upscaler(3, scale)).to(**layout), unfused(small.critic(config.shape)).to(**layout), "l2"
        ),
    }
    generators = {OURS: state.averages["generator"], **{name: each.generator for name, each in loops.items()}}
    target = picture_batch(held_out, range(len(held_out)), CPU).images
    low = system.reduce(target)
    bicubic = enlarged(low, scale)

    def made(name: str, x: Tensor) -> Tensor:
        players = {"generator": generators[name]}
        with evaluating(players):
            return system.upscale(players, x)

    some = of_many(len(target))

    def side(each: PlainSuperResolution) -> Callable[[Batch], object]:
        return lambda batch: each(batch.images)

    return Contest(
        f"super-resolution x{scale}, 4 blocks of width 24, batch {batch}",
        batch,
        images,
        {OURS: ours, **{name: side(each) for name, each in loops.items()}},
        lambda name: against(target, made(name, low)),
        lambda name: made(name, low[some]),
        {"bicubic": against(target, bicubic)},
        (bicubic[some], target[some]),
    )


def stylegan2(kimg: float) -> Contest:
    images, batch = sets(PHOTOS)[0], 16
    judge = Judge(images)
    system = StyleBasedGAN(StyleGAN2(8, 8, max_width=64, style=64, mapping_layers=4), latent=64, r1=0.05)
    adam = Optimizer(lr=2.5e-3, beta1=0.0, beta2=0.99)
    optim = {"generator": adam.lazy(system.path_every), "critic": adam.lazy(system.r1_every)}
    halflife = 0.5
    averaging = Averaging(halflife_kimg=halflife, rampup=0.0)
    config = configured("stylegan2-64", system, images, optim=optim, averaging=averaging, kimg=kimg, batch=batch)
    state, ours = engine(config)
    players = {  # in the layout in which convolutions in groups are faster here
        name: copy.deepcopy(module).to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
        for name, module in state.modules.items()
    }
    average = copy.deepcopy(players["generator"]).requires_grad_(False)
    decay = 0.5 ** (batch / (halflife * 1000))
    torch.manual_seed(0)
    networks = players["generator"], players["critic"]
    loop = baseline_styles.plain(system, *networks, optim, tidy=False, average=average, decay=decay)  # type: ignore[arg-type]
    averages = {OURS: state.averages, "plain loop": {"generator": average}}

    def samples(name: str, count: int) -> Tensor:
        return sample_images(system, averages[name], picture_latents(system, range(count), CPU))

    def scores(name: str) -> dict[str, float]:
        return {"distance": distance(features(samples(name, judge.count)), judge.known)}

    return Contest(
        f"StyleGAN2, width 8 at 64x64 to 64 at 8x8, batch {batch}, R1 0.05",
        batch,
        images,
        {OURS: ours, "plain loop": lambda batch: loop(batch.images.contiguous())},
        scores,
        lambda name: samples(name, 48),
        {"other real patches": {"distance": judge.of_reals["distance"]}},
        mirror=False,
    )
