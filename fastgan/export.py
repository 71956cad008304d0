"""A run's generator for others: safetensors and options, a torch.export program, ONNX; each compared with the engine.

    generator.safetensors, config.json   for fastgan.Generator.from_pretrained, fastgan.Translator.from_pretrained
    generator.pt2                        torch.export.load(...).module()(z): needs torch, not fastgan
    generator.onnx                       input "z" [N, latent], output "images" [N, C, S, S]

Where images are made of images, the input is "source" [N, C', S, S].

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
from fastgan.translator import Translator

Network = Generator | Translator
BOUND = 1e-5
ONNX_PACKAGES = ("onnx", "onnxscript", "onnxruntime")


def export(
    generator: Network, engine: Callable[[Tensor], Tensor], out: Path, *, onnx: bool, say: Callable[[str], None]
) -> None:
    """Write all formats into `out`; say one line each, with how far its pictures are from the engine's.

    engine: latents [N, latent], or sources, -> images [N, C, S, S] by the run itself
    Raises FastganError where a format does not reproduce the engine's pictures, after removing it.
    """
    if onnx:
        _require_onnx()
    given = generator.example()
    expected = engine(given)
    out.mkdir(parents=True, exist_ok=True)
    generator.save(out)
    again = type(generator).from_pretrained(out)
    _same(out / "generator.safetensors", again(given), expected, say)
    _same(out / "generator.pt2", _by_torch_export(again, out / "generator.pt2")(given), expected, say)
    if onnx:
        _same(out / "generator.onnx", _by_onnx(again, out / "generator.onnx")(given), expected, say)


def _same(path: Path, images: Tensor, expected: Tensor, say: Callable[[str], None]) -> None:
    error = float((images - expected).double().norm() / expected.double().norm())
    if not error < BOUND:
        path.unlink()
        raise FastganError(
            f"{path.name} would make other pictures than the run: relative error {error:.1e}, at most {BOUND:.0e} is "
            f"allowed; it was removed; please report it with the preset and torch {torch.__version__}"
        )
    say(f"{path}: {path.stat().st_size / 2**20:.1f} MiB, {len(images)} pictures within {error:.1e} of the run's")


def _dynamic(generator: Network) -> tuple[Any, ...]:
    """Which sizes of the input may be others: how many there are, and for super-resolution how large they are."""
    count = torch.export.Dim("count", min=1, max=1 << 20)
    if isinstance(generator, Translator) and generator.scale > 1:
        sides = (torch.export.Dim(name, min=2, max=1 << 14) for name in ("height", "width"))
        return ({0: count} | dict(enumerate(sides, 2)),)
    return ({0: count},)


def _program(generator: Network) -> torch.export.ExportedProgram:
    """The network as a program that takes any number of latents or sources."""
    example = generator.example()[:2]
    return torch.export.export(generator.network, (example,), dynamic_shapes=_dynamic(generator))


def _by_torch_export(generator: Network, path: Path) -> Callable[[Tensor], Tensor]:
    """Write the program; returns what the file computes, in two batches, one of them of a single sample."""
    torch.export.save(_program(generator), path)
    module = torch.export.load(path).module()

    def run(given: Tensor) -> Tensor:
        with torch.no_grad():
            return torch.cat([module(given[:1]), module(given[1:])]).clamp(-1, 1)

    return run


def _require_onnx() -> None:
    for package in ONNX_PACKAGES:
        try:
            importlib.import_module(package)
        except ImportError:
            raise FastganError(
                f"ONNX needs the package {package}; install it with: pip install 'fastgan[export]'"
            ) from None


def _by_onnx(generator: Network, path: Path) -> Callable[[Tensor], Tensor]:
    """Write the program as ONNX; returns what ONNX Runtime computes from the file."""
    runtime: Any = importlib.import_module("onnxruntime")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the converter, about itself
        logging.getLogger("torch.onnx").setLevel(logging.ERROR)
        torch.onnx.export(
            generator.network,
            (generator.example()[:2],),
            path,
            input_names=[generator.given],
            output_names=["images"],
            dynamic_shapes=_dynamic(generator),
            dynamo=True,
            external_data=False,
            verbose=False,
        )
    session = runtime.InferenceSession(str(path), providers=["CPUExecutionProvider"])

    def run(given: Tensor) -> Tensor:
        parts = [session.run(["images"], {generator.given: part.numpy()})[0] for part in (given[:1], given[1:])]
        return torch.cat([torch.from_numpy(part) for part in parts]).clamp(-1, 1)

    return run
