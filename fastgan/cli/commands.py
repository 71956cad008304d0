"""The commands and their flags, as the help shows them. One dataclass a command; fastgan.cli.actions runs them."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro
from tyro.conf import Positional, UseAppendAction

from fastgan.cli.pack import Pack
from fastgan.presets import DEFAULT_PRESET, PRESETS

PRESET_HELP = f"system, networks, losses, optimisers: {', '.join(PRESETS)}"


def _default(text: str) -> Any:
    """What the help says in place of `None`."""
    return tyro.conf.arg(help_behavior_hint=f"(default: {text})")


@dataclass
class Train:
    """Train a GAN on a folder, zip, tar or pack of images; the same command again goes on where it stopped."""

    data: Annotated[str | None, _default("the preset's")] = None
    """folder, .zip or .tar of images, a pack (fastgan pack), or what is here: "digits", "photos" (patches of 7)"""
    preset: Annotated[str | None, tyro.conf.arg(help=PRESET_HELP, help_behavior_hint="(default: dcgan-64)")] = None
    out: Annotated[str | None, _default("runs/PRESET")] = None
    """run folder"""
    kimg: Annotated[float | None, _default("the preset's")] = None
    """length of the run, in thousands of images"""
    batch: Annotated[int | None, _default("the preset's")] = None
    """images per step, on all GPUs together"""
    seed: Annotated[int | None, _default("0")] = None
    """of weights, order and noise"""
    init: Annotated[str | None, _default("fresh weights")] = None
    """start from the weights of a run, a checkpoint or a .safetensors file"""
    config: Annotated[Path | None, _default("the preset alone")] = None
    """TOML file, such as another run's config.toml"""
    set: Annotated[list[str], UseAppendAction] = field(default_factory=list)
    """any key of the config, such as data.size=128, system.r1=0.5, optim.critic.lr=1e-4; --dry-run prints all"""
    dry_run: bool = False
    """print the config, the data, the networks and what runs on which kernel; do one step; write nothing"""
    resume: Annotated[str | None, _default("auto")] = None
    """auto, never, or a run or checkpoint to go on from"""
    device: Annotated[str | None, _default("auto")] = None
    """auto, cpu, cuda, cuda:1"""
    gpus: Annotated[int | None, _default("one, or as torchrun says")] = None
    """train on so many GPUs of this machine; --batch is shared out to them. Several machines: docs/scaling.md"""
    ranks: Annotated[int | None, _default("one, or as torchrun says")] = None
    """the same in so many processes, on the CPU with --device cpu"""
    workers: Annotated[int | None, _default("one per core")] = None
    """threads that decode images"""
    eval_every: Annotated[float | None, _default("never")] = None
    """score the generator every so many thousand images; how: --set evaluation.metrics=fid,kid and others"""


@dataclass
class Sample:
    """Draw pictures from a trained run; the same seeds give the same pictures."""

    run: Positional[Path]
    """run folder, or a checkpoint in it"""
    seeds: str = "0-63"
    """numbers and ranges, such as 0-63 or 3,7,20-29"""
    labels: Annotated[str | None, _default("each class in turn")] = None
    """of a run with classes: their names or numbers in turn, such as 3,7 or cat,dog; a column of the grid is a class"""
    out: Path | None = None
    """PNG file of the grid (default: RUN/samples-SEEDS.png)"""
    singles: Path | None = None
    """also one PNG per seed, into this folder"""
    truncation: Annotated[float | None, _default("as the run has it")] = None
    """of a run with styles (stylegan2-...): how near to the mean style, from 1 (as they are) to 0 (the mean)"""
    weights: Literal["average", "live"] = "average"
    """averaged weights, or those of the last step"""
    device: str = "auto"
    """auto, cpu, cuda, cuda:1"""


@dataclass
class Interpolate:
    """Walk through latents from seed to seed: an animation and a film strip."""

    run: Positional[Path]
    """run folder, or a checkpoint in it"""
    seeds: str = "0-7"
    """two or more, such as 0-7 or 3,7,20"""
    labels: Annotated[str | None, _default("each class in turn")] = None
    """of a run with classes: those of the seeds, in turn; one for all of the way"""
    frames: int = 16
    """pictures from each seed to the next"""
    out: Path | None = None
    """WebP file of the animation (default: RUN/interpolation-SEEDS.webp); the strip lies beside it as PNG"""
    fps: int = 16
    """pictures per second"""
    truncation: Annotated[float | None, _default("as the run has it")] = None
    """of a run with styles: how near to the mean style, from 1 (as they are) to 0 (the mean)"""
    space: Literal["z", "w"] = "z"
    """z: on the way between latents; w: straight between styles, for a run with styles"""
    weights: Literal["average", "live"] = "average"
    """averaged weights, or those of the last step"""
    device: str = "auto"
    """auto, cpu, cuda, cuda:1"""


@dataclass
class Translate:
    """Make images of one domain from images of the other, with a run of pix2pix or CycleGAN."""

    run: Positional[Path]
    """run folder, or a checkpoint in it"""
    images: Positional[str]
    """an image, a folder or zip of images, or digits, photos or photos:held-out (64 of them)"""
    out: Annotated[Path | None, _default("RUN/translated")] = None
    """folder for a PNG per image, and sheet.png, which shows source and result side by side"""
    back: bool = False
    """the other way, from the target domain to the source (CycleGAN)"""
    derive: bool = False
    """first make sources of the images as training did: edges, noise, gray, inverted"""
    weights: Literal["average", "live"] = "average"
    """averaged weights, or those of the last step"""
    device: str = "auto"
    """auto, cpu, cuda, cuda:1"""


@dataclass
class Upscale:
    """Enlarge images of any size with a run of super-resolution."""

    run: Positional[Path]
    """run folder, or a checkpoint in it"""
    images: Positional[str]
    """an image, a folder or zip of images"""
    out: Annotated[Path | None, _default("RUN/upscaled")] = None
    """folder for a PNG per image, and sheet.png, which shows bicubic enlargement and result side by side"""
    tile: int = 128
    """pixels of the input that are enlarged at once; tiles overlap, so that none can be seen"""
    weights: Literal["average", "live"] = "average"
    """averaged weights, or those of the last step"""
    device: str = "auto"
    """auto, cpu, cuda, cuda:1"""


@dataclass
class Inpaint:
    """Fill holes in images with a run of inpainting; what is known stays as it is."""

    run: Positional[Path]
    """run folder, or a checkpoint in it"""
    images: Positional[str]
    """an image, a folder or zip of images, or digits, photos or photos:held-out (64 of them)"""
    mask: str = "box"
    """box or free (drawn for each image), or an image file of the run's size whose white pixels are the hole"""
    out: Annotated[Path | None, _default("RUN/inpainted")] = None
    """folder for a PNG per image, and sheet.png, which shows hole, result and original side by side"""
    seed: int = 0
    """of the masks"""
    weights: Literal["average", "live"] = "average"
    """averaged weights, or those of the last step"""
    device: str = "auto"
    """auto, cpu, cuda, cuda:1"""


@dataclass
class Encode:
    """Find the latents of images by a run that has an encoder (digits-bigan, digits-ali, digits-vae-gan)."""

    run: Positional[Path]
    """run folder, or a checkpoint in it"""
    images: Positional[str]
    """folder or zip of images, "digits" or "photos"; cropped and resized as in training"""
    out: Annotated[Path | None, _default("RUN/codes.npz")] = None
    """.npz file of codes [N, latent], error [N] and labels [N]; a picture of reconstructions lies beside it as PNG"""
    weights: Literal["average", "live"] = "average"
    """averaged weights, or those of the last step"""
    device: str = "auto"
    """auto, cpu, cuda, cuda:1"""


@dataclass
class Eval:
    """Score a run or a set of images against real ones: FID and others."""

    source: Positional[Path]
    """run folder (or a checkpoint in it), or a folder, zip or pack of images"""
    data: Annotated[str | None, _default("what the run was trained on")] = None
    """real images: folder, zip, pack, "digits", or .npz of statistics (mu, sigma) for the FID"""
    metrics: str = "fid"
    """with commas: fid, kid, is, prdc (precision_recall and density_coverage), prd, fid_infinity; of a run also ppl,
    critic; diversity_lpips, diversity_ms_ssim; of files with the same names psnr, ssim, ms_ssim, pixel_accuracy"""
    features: Annotated[str | None, _default("digits for digits, else inception")] = None
    """inception, vgg16, digits (each also with :LAYER), or a file of TorchScript or torch.export"""
    weights: Annotated[Path | None, _default("the cache folder's")] = None
    """file of the network's weights"""
    download: bool = False
    """get the published weights where they are not here yet; they are verified"""
    resize: Literal["tensorflow", "pytorch", "clean"] = "tensorflow"
    """how images are brought to the Inception's size: as torch-fidelity and StyleGAN, as pytorch-fid, as clean-fid"""
    bf16: bool = False
    """features in bf16, faster on GPUs; the scores of a sample in fp32 are printed beside"""
    samples: int = 50_000
    """pictures drawn from a run"""
    size: Annotated[int | None, _default("as they are; for a run, its size")] = None
    """crop and resize all images to this first, as in training"""
    live: bool = False
    """the weights of the last step, not the averaged ones"""
    batch: int = 64
    """images that the network sees at once"""
    json: bool = False
    """print JSON and nothing else"""
    plot: Path | None = None
    """SVG file for the precision-recall curve of prd"""
    device: str = "auto"
    """auto, cpu, cuda, cuda:1"""


@dataclass
class Export:
    """Write a run's generator for others: safetensors, torch.export and ONNX, each checked against the run."""

    run: Positional[Path]
    """run folder, or a checkpoint in it"""
    out: Annotated[Path | None, _default("RUN/export")] = None
    """folder for generator.safetensors with config.json, generator.pt2, generator.onnx"""
    onnx: bool = False
    """ONNX too; needs pip install 'fastgan[export]'"""
    weights: Literal["average", "live"] = "average"
    """averaged weights, or those of the last step"""


@dataclass
class Doctor:
    """Say what is installed, and for each kernel which implementation runs here and why."""

    verify: bool = False
    """check our kernels on the GPUs that are here; those that pass are used from then on"""


@dataclass
class Bench:
    """Measure the step on random images: images/s, ms per part, share of the machine's ceilings, peak memory."""

    what: Positional[Literal["step"]] = "step"
    """the whole training step"""
    preset: str = DEFAULT_PRESET
    """preset whose step is measured"""
    batch: int | None = None
    """images per step"""
    steps: int = 5
    """timed rounds, after untimed ones"""
    against: str = ""
    """eager, compile or eager,compile: plain PyTorch with the same networks and losses, timed in turn"""
    out: Annotated[Path | None, _default("runs/bench-PRESET")] = None
    """folder for step.json, all times, and step.svg, the parts of the step beside their floors"""
    set: Annotated[list[str], UseAppendAction] = field(default_factory=list)
    """any key of the config, such as data.size=128"""
    device: str = "auto"
    """auto, cpu, cuda, cuda:1"""


Command = Train | Sample | Interpolate | Translate | Upscale | Inpaint | Encode | Eval | Export | Pack | Doctor | Bench
