"""Modulated convolutions, and StyleGAN2's step: ours against weights per sample in a convolution of N groups."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from fastgan import baseline_styles
from fastgan.assemble import build_state
from fastgan.contract import Batch
from fastgan.data import DataOptions, open_images
from fastgan.models.stylegan2 import StyledConv
from fastgan.presets import PRESETS
from fastgan.step import Step

# samples, channels, size; the layers of a StyleGAN2 for 64x64 of moderate width
LAYERS = {"64x64, 64 channels": (8, 64, 64), "16x16, 256 channels": (8, 256, 16), "8x8, 512 channels": (8, 512, 8)}
OURS = "fastgan"


@pytest.mark.parametrize("case", LAYERS)
@pytest.mark.parametrize("up", [False, True], ids=["same size", "upsampling"])
def test_layer(case: str, up: bool, ratio, device) -> None:
    """A whole layer forward and backward: modulation, convolution, demodulation, noise, bias, leaky ReLU."""
    n, channels, size = LAYERS[case]
    torch.manual_seed(0)
    layer = StyledConv(channels, channels, 512, 2 * size if up else size, up=up).to(device)
    layer.strength.data.fill_(0.1)
    w = torch.randn(n, 512, device=device)
    noise = torch.randn(n, layer.noise.numel(), device=device)
    candidates = {}
    for name, layout in (("NCHW", torch.contiguous_format), ("channels_last", torch.channels_last)):
        x = torch.randn(n, channels, size, size, device=device).contiguous(memory_format=layout).requires_grad_()
        own = StyledConv(channels, channels, 512, 2 * size if up else size, up=up).to(device)
        own.load_state_dict(layer.state_dict())
        own.to(memory_format=layout)
        ours, theirs = own(x, w, noise), baseline_styles.styled(own, x, w, noise)
        assert (ours - theirs).norm() < 1e-5 * theirs.norm(), "not the same layer"

        def both(run, x=x, own=own):
            def call() -> None:
                y = run(own, x)
                y.backward(torch.ones_like(y))

            return call

        if name == "channels_last":
            candidates[OURS] = both(lambda own, x: own(x, w, noise))
        candidates[f"weights per sample, {name}"] = both(lambda own, x: baseline_styles.styled(own, x, w, noise))
    what = f"modulated layer, {case}, {'upsampling, ' if up else ''}batch {n}"
    result = ratio("modulated", what, candidates, OURS)
    assert max(result.ratio(name).high for name in candidates if name != OURS) >= 1.0


@pytest.mark.timeout(1800)
@pytest.mark.parametrize("preset", ["stylegan2-digits", "stylegan2-64"])
def test_step(preset: str, ratio, device) -> None:
    """A cycle of 16 steps with R1 and path lengths on the same pictures: digits, or 64x64 photographs with networks of
    an eighth of the width on a CPU."""
    config = PRESETS[preset]
    path = "digits" if preset == "stylegan2-digits" else "photos"
    config = replace(config, data=replace(config.data, path=path))
    if path == "photos" and device == "cpu":
        slim = replace(config.system.networks, generator_width=16, critic_width=16, max_width=64, style=64)
        config = replace(config, system=replace(config.system, networks=slim, latent=64), batch=8)
    images = open_images(DataOptions(path=path, size=config.data.size, channels=config.data.channels))
    pixels = torch.from_numpy(images.read(torch.arange(config.batch).numpy())).to(device)
    real = (pixels.permute(0, 3, 1, 2).float() - 127.5) / 127.5
    torch.manual_seed(0)
    state = build_state(config, torch.device(device))
    step = Step(config.system, state, config.averaging, seed=0, batch=config.batch, total=10**9)
    batch = Batch(real, None, torch.arange(config.batch, device=device))
    plain = {name: module.to(device) for name, module in config.system.players(config.shape).items()}
    loop = baseline_styles.plain(config.system, plain["generator"], plain["critic"], config.optim, tidy=False)

    def ours() -> None:
        for _ in range(16):
            step(lambda: batch)

    def theirs() -> None:
        for _ in range(16):
            loop(real.contiguous())

    what = f"{preset}, 16 steps of batch {config.batch}, {path}"
    result = ratio("modulated", what, {OURS: ours, "plain PyTorch": theirs}, OURS, rounds=5)
    images_per_second = {name: 16 * config.batch / result.median(name) for name in result.seconds}
    print({name: f"{value:.1f} images/s" for name, value in images_per_second.items()})
    assert result.ratio("plain PyTorch").high >= 1.0
