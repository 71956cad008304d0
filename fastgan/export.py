"""A run's generator for others: safetensors and options, a torch.export program, ONNX; each compared with the engine.

    generator.safetensors, config.json   for fastgan.Generator.from_pretrained
    generator.pt2                        torch.export.load(...).module()(z): needs torch, not fastgan
    generator.onnx                       input "z" [N, latent], output "images" [N, C, S, S]

A format is kept only if its pictures are those of the engine: ‖out - engine‖ / ‖engine‖ < 1e-5 (DESIGN 9), for several
batch sizes. Programs compute in float32 on the CPU, and go to other devices from there.
"""

from __future__ import annotations

import importlib
import logging
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fastgan.errors import FastganError
from fastgan.generator import Generator

BOUND = 1e-5
SEEDS = range(5)
ONNX_PACKAGES = ("onnx", "onnxscript", "onnxruntime")


def export(
    generator: Generator, engine: Callable[[Tensor], Tensor], out: Path, *, onnx: bool, say: Callable[[str], None]
) -> None:
    """Write all formats into `out`; say one line each, with how far its pictures are from the engine's.

    engine: latents [N, latent] -> images [N, C, S, S] by the run itself
    Raises FastganError where a format does not reproduce the engine's pictures, after removing it.
    """
    if onnx:
        _require_onnx()
    latents = generator.latents(SEEDS).cpu()
    expected = engine(latents)
    out.mkdir(parents=True, exist_ok=True)
    generator.save(out)
    again = Generator.from_pretrained(out)
    _same(out / "generator.safetensors", again.sample(SEEDS), expected, say)
    _same(out / "generator.pt2", _by_torch_export(again, out / "generator.pt2")(latents), expected, say)
    if onnx:
        _same(out / "generator.onnx", _by_onnx(again, out / "generator.onnx")(latents), expected, say)


def _same(path: Path, images: Tensor, expected: Tensor, say: Callable[[str], None]) -> None:
    error = float((images - expected).double().norm() / expected.double().norm())
    if not error < BOUND:
        path.unlink()
        raise FastganError(
            f"{path.name} would make other pictures than the run: relative error {error:.1e}, at most {BOUND:.0e} is "
            f"allowed; it was removed; please report it with the preset and torch {torch.__version__}"
        )
    say(f"{path}: {path.stat().st_size / 2**20:.1f} MiB, {len(images)} pictures within {error:.1e} of the run's")


def _program(generator: Generator) -> torch.export.ExportedProgram:
    """The network as a program that takes any number of latents."""
    example = torch.zeros(2, generator.latent)
    return torch.export.export(
        generator.network, (example,), dynamic_shapes=({0: torch.export.Dim("count", min=1, max=1 << 20)},)
    )


def _by_torch_export(generator: Generator, path: Path) -> Callable[[Tensor], Tensor]:
    """Write the program; returns what the file computes, in two batches, one of them of a single sample."""
    torch.export.save(_program(generator), path)
    module = torch.export.load(path).module()

    def run(latents: Tensor) -> Tensor:
        with torch.no_grad():
            return torch.cat([module(latents[:1]), module(latents[1:])]).clamp(-1, 1)

    return run


def _require_onnx() -> None:
    for package in ONNX_PACKAGES:
        try:
            importlib.import_module(package)
        except ImportError:
            raise FastganError(
                f"ONNX needs the package {package}; install it with: pip install 'fastgan[export]'"
            ) from None


def _by_onnx(generator: Generator, path: Path) -> Callable[[Tensor], Tensor]:
    """Write the program as ONNX; returns what ONNX Runtime computes from the file."""
    runtime: Any = importlib.import_module("onnxruntime")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the converter, about itself
        logging.getLogger("torch.onnx").setLevel(logging.ERROR)
        torch.onnx.export(
            generator.network,
            (torch.zeros(2, generator.latent),),
            path,
            input_names=["z"],
            output_names=["images"],
            dynamic_shapes=({0: torch.export.Dim("count", min=1, max=1 << 20)},),
            dynamo=True,
            external_data=False,
            verbose=False,
        )
    session = runtime.InferenceSession(str(path), providers=["CPUExecutionProvider"])

    def run(latents: Tensor) -> Tensor:
        parts = [session.run(["images"], {"z": part.numpy()})[0] for part in (latents[:1], latents[1:])]
        return torch.cat([torch.from_numpy(part) for part in parts]).clamp(-1, 1)

    return run
