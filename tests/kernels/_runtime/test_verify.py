"""`fastgan doctor --verify`: what it records, that choose() accepts it, that the checks see a wrong kernel."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from fastgan.kernels import (
    adam_ema,
    batch_norm_act,
    conv_transpose_bn_act,
    counter_noise,
    ingest,
    masked_act,
    symmetric_product,
)
from fastgan.kernels import verify as checks
from fastgan.kernels._runtime import EXTENSION, cache, choice, verify
from fastgan.kernels._runtime.choice import OPS, choose, disable, forced
from fastgan.kernels._runtime.measure import Unfit

CPU, GPU = torch.device("cpu"), torch.device("cuda", 0)


@pytest.fixture(autouse=True)
def fresh(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """A GPU of sm_90 where Triton kernels can run, and nothing verified yet."""
    monkeypatch.setenv("FASTGAN_CACHE", str(tmp_path))
    monkeypatch.delenv("FASTGAN_KERNELS", raising=False)
    monkeypatch.setattr(choice, "_disabled", {})
    monkeypatch.setattr(choice, "verified", lambda: {op: [] for op in OPS})
    monkeypatch.setattr(choice, "_no_triton", lambda: "")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    monkeypatch.setattr(torch.cuda, "device", lambda _: torch.no_grad())
    choose.cache_clear()
    yield
    choose.cache_clear()


def verdict(check: Any) -> tuple[str, str]:
    (made,) = verify.verify_ops({"masked_act": check}, [GPU])
    return made.outcome, made.detail


def test_what_has_passed_is_used_from_then_on() -> None:
    assert not choose("masked_act", GPU).native
    assert verdict(lambda device: 3) == ("passed", "3 comparisons")
    assert choose("masked_act", GPU) == choice.Choice("Triton", "verified on sm_90 by `fastgan doctor --verify`")


def test_other_versions_and_architectures_are_not_verified_by_it(monkeypatch: pytest.MonkeyPatch) -> None:
    verdict(lambda device: 3)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 0))
    choose.cache_clear()
    assert not choose("masked_act", GPU).native
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    monkeypatch.setattr(cache, "versions", lambda: "others")
    choose.cache_clear()
    assert not choose("masked_act", GPU).native


def test_what_has_failed_is_not_used_even_where_it_was_verified_before_the_release(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(choice, "verified", lambda: {"masked_act": ["sm_90"]})
    assert choose("masked_act", GPU).native

    def check(device: torch.device) -> int:
        raise Unfit("vectors: error 0.5")

    assert verdict(check) == ("failed", "Unfit: vectors: error 0.5")
    assert not choose("masked_act", GPU).native
    assert "`fastgan doctor --verify` failed on sm_90: Unfit: vectors" in choose("masked_act", GPU).reason
    monkeypatch.setenv("FASTGAN_KERNELS", "all")
    choose.cache_clear()
    assert choose("masked_act", GPU).native


def test_a_kernel_whose_launch_fails_does_not_pass_as_pytorch() -> None:
    def check(device: torch.device) -> int:
        disable("masked_act", device, RuntimeError("no code"))
        return 5  # PyTorch's results, which are right

    outcome, detail = verdict(check)
    assert outcome == "failed"
    assert "its launch failed (RuntimeError: no code)" in detail


def test_no_comparison_is_no_pass() -> None:
    assert verdict(lambda device: 0) == ("failed", "nothing was compared")


def test_what_cannot_run_here_is_skipped_and_not_recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(choice, "_no_triton", lambda: "triton is not installed")
    assert verdict(lambda device: 3) == ("skipped", "triton is not installed")

    def check(device: torch.device) -> int:
        raise torch.OutOfMemoryError("tried to allocate")

    monkeypatch.setattr(choice, "_no_triton", lambda: "")
    assert verdict(check)[0] == "skipped"
    assert cache.read("verified") == {}


def test_devices_of_one_architecture_count_as_one() -> None:
    assert len(list(verify.verify_ops({"masked_act": lambda device: 1}, [GPU, torch.device("cuda", 1)]))) == 1


def test_forced_leaves_no_trace(monkeypatch: pytest.MonkeyPatch) -> None:
    choice._disabled["masked_act", GPU] = "before"
    with forced("all"):
        assert choose("masked_act", GPU).native
    assert choose("masked_act", GPU).reason == "before"
    assert "FASTGAN_KERNELS" not in choice.os.environ


# ---- the checks themselves, on the CPU


def test_every_op_has_a_check() -> None:
    assert set(checks.CHECKS) == set(OPS)


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Cases that a CPU does in no time."""
    monkeypatch.setattr(adam_ema, "CASES", {"odd sizes": adam_ema.CASES["odd sizes"]})
    monkeypatch.setattr(counter_noise, "CASES", {"odd size": counter_noise.CASES["odd size"]})
    monkeypatch.setattr(ingest, "CASES", {"odd sizes": ingest.CASES["odd sizes"]})
    for op in (masked_act, batch_norm_act):
        cases = {name: case for name, case in op.CASES.items() if 0 < math.prod(case[0]) < 2000}
        monkeypatch.setattr(op, "CASES", cases)
    name = "odd sizes"
    monkeypatch.setattr(conv_transpose_bn_act, "CASES", {name: conv_transpose_bn_act.CASES[name]})
    monkeypatch.setattr(symmetric_product, "CASES", {"odd": symmetric_product.CASES["odd"], "one": (1, 1)})
    # On a CPU there is none of ours: the mirror image of the library's.
    library = symmetric_product.reference
    monkeypatch.setattr(symmetric_product, "native", lambda a, b, factors: _symmetric(library(a, b, *factors)))


def _symmetric(made: torch.Tensor) -> torch.Tensor:
    return made.tril() + made.tril(-1).mT


@pytest.mark.skipif(EXTENSION.module is None, reason="no native part")
@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("op", OPS)
def test_the_check_passes_for_our_cpu_kernels(op: str) -> None:
    with forced("all"):
        assert checks.CHECKS[op](CPU) > 3


# Op -> (where it gets its result from, which is made wrong by one part in a hundred)
RESULTS = {
    "adam_ema": (torch.ops.fastgan, "adam_ema_"),
    "counter_noise": (torch.ops.fastgan, "counter_noise"),
    "ingest": (ingest, "ingest"),
    "masked_act": (masked_act, "apply_mask"),
    "modulated_act": (torch.ops.fastgan, "modulated_act"),
    "batch_norm_act": (batch_norm_act, "batch_norm_act"),
    "conv_transpose_bn_act": (conv_transpose_bn_act, "conv_transpose"),
    "symmetric_product": (symmetric_product, "native"),
}


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("op", OPS)
def test_the_check_sees_a_kernel_that_is_wrong(op: str, monkeypatch: pytest.MonkeyPatch) -> None:
    where, name = RESULTS[op]
    right = getattr(where, name)

    def wrong(*args: Any, **kwargs: Any) -> Any:
        if op == "adam_ema":
            return right(*args[:6], args[6] * 1.01, *args[7:])
        made = right(*args, **kwargs)
        return (made[0] * 1.01, *made[1:]) if isinstance(made, tuple) else (made * 1.01).to(made.dtype)

    monkeypatch.setattr(where, name, wrong)
    with pytest.raises(Unfit):
        checks.CHECKS[op](CPU)
