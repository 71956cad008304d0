"""Published weights: where they are, what their SHA-256 has to be, and how they are read without running anything.

Nothing is downloaded unless it is asked for. A file is read as safetensors or by `torch.load(weights_only=True)`, which
builds tensors and nothing else; a pickle of objects is refused.
"""

from __future__ import annotations

import hashlib
import os
import pickle
import shutil
import tempfile
import urllib.error
import urllib.request
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from fastgan.errors import FastganError

TIMEOUT = 60.0  # seconds without a byte


@dataclass(frozen=True)
class Published:
    """A published file of weights, and the SHA-256 of all of it.

    Of the Inception, VGG16 and AlexNet their publishers give the first eight digits, in the name; the others are those
    that people who downloaded the files have recorded independently of each other.
    """

    name: str
    url: str
    sha256: str


INCEPTION = Published(
    "pt_inception-2015-12-05-6726825d.pth",
    "https://github.com/mseitzer/pytorch-fid/releases/download/fid_weights/pt_inception-2015-12-05-6726825d.pth",
    "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2",
)
VGG16 = Published(
    "vgg16-397923af.pth",
    "https://download.pytorch.org/models/vgg16-397923af.pth",
    "397923af8e79cdbb6a7127f12361acd7a2f83e06b05044ddf496e83de57a5bf0",
)
ALEXNET = Published(
    "alexnet-owt-7be5be79.pth",
    "https://download.pytorch.org/models/alexnet-owt-7be5be79.pth",
    "7be5be791159472b1fbf3c69796f7cb30dca7ad8466c2df70058c37116cdee02",
)
_HEADS = "https://github.com/richzhang/PerceptualSimilarity/raw/master/lpips/weights/v0.1"
LPIPS_ALEX = Published(
    "lpips-v0.1-alex.pth",
    f"{_HEADS}/alex.pth",
    "df73285e35b22355a2df87cdb6b70b343713b667eddbda73e1977e0c860835c0",
)
LPIPS_VGG = Published(
    "lpips-v0.1-vgg.pth",
    f"{_HEADS}/vgg.pth",
    "a78928a0af1e5f0fcb1f3b9e8f8c3a2a5a3de244d830ad5c1feddc79b8432868",
)


@dataclass(frozen=True)
class Weights:
    """Tensors by name; `source` is what messages call them, `sha256` that of the file, `note` how it was verified."""

    tensors: dict[str, Tensor]
    source: str
    sha256: str
    note: str


def cache_folder() -> Path:
    """$FASTGAN_CACHE, else $XDG_CACHE_HOME/fastgan, else ~/.cache/fastgan."""
    if folder := os.environ.get("FASTGAN_CACHE"):
        return Path(folder).expanduser()
    base = os.environ.get("XDG_CACHE_HOME")
    return Path(base).expanduser() / "fastgan" if base else Path.home() / ".cache" / "fastgan"


def obtain(
    published: Published,
    file: str | os.PathLike[str] | None = None,
    *,
    download: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> Weights:
    """The weights from `file`, else from the cache folder, else, with `download`, from the published address.

    A file that has the published name (or lies in the cache) must have the published hash; of another one the hash is
    recorded and `note` says that it is not the published one.
    progress: called as progress(bytes so far, of how many; 0 where that is not known)
    Raises FastganError where there is no file, where it is truncated or has a wrong hash, or cannot be downloaded.
    """
    if file is not None:
        return _read_verified(Path(file).expanduser(), published, own=True)
    path = cache_folder() / "weights" / published.name
    if not path.exists():
        if not download:
            raise FastganError(
                f"the weights {published.name} are not here: `fastgan eval --download` gets them from {published.url}; "
                f"or put the file at {path}, or name it (--weights FILE; in training, --set evaluation.weights=FILE)"
            )
        _download(published, path, progress)
    return _read_verified(path, published, own=False)


def _read_verified(path: Path, published: Published, *, own: bool) -> Weights:
    """own: a file that the user named, which may be another than the published one."""
    sha256 = file_hash(path)
    matches = sha256 == published.sha256
    if not matches and (not own or path.name == published.name):
        raise FastganError(
            f"{path}: expected SHA-256 {published.sha256[:16]}..., got {sha256[:16]}...: truncated or "
            f"not what {published.url} holds; remove it and get it again"
        )
    note = "SHA-256 verified" if matches else f"not the published {published.name}: SHA-256 {sha256[:16]}..."
    return Weights(read_tensors(path), str(path), sha256, note)


def file_hash(path: Path) -> str:
    """SHA-256 of a file, as hexadecimal digits."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise FastganError(f"weights {path}: {error.strerror}; give the path of a .pth or .safetensors file") from None


def read_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a .safetensors file or of a state dict that torch.save wrote, on the CPU.

    Raises FastganError for a truncated file, for objects other than tensors, and for a file of another kind.
    """
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(path)
        with warnings.catch_warnings():  # about pickles, which are refused in one line
            warnings.simplefilter("ignore", UserWarning)
            state = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        raise FastganError(
            f"{path}: holds objects other than tensors (or is no file of torch.save), and those are not loaded: "
            "save the state_dict, as .pth or .safetensors"
        ) from None
    except OSError as error:
        raise FastganError(f"cannot read {path}: {error.strerror or error}; check the path") from None
    except Exception as error:  # the readers raise many kinds on damaged bytes; all of them are reported
        raise FastganError(f"{path}: truncated or damaged ({_first_line(error)}); get it again") from None
    if isinstance(state, dict) and isinstance(state.get("state_dict"), dict):
        state = state["state_dict"]
    tensors = {k: v for k, v in state.items() if isinstance(v, Tensor)} if isinstance(state, dict) else {}
    if not tensors:
        raise FastganError(f"{path}: expected a state_dict of tensors, got {type(state).__name__}; save the state_dict")
    return tensors


def _first_line(error: Exception) -> str:
    lines = str(error).splitlines()
    return lines[0][:120] if lines else type(error).__name__


def _download(published: Published, path: Path, progress: Callable[[int, int], None] | None) -> None:
    """To `path`, which exists only once all of it is there and has the right hash."""
    temporary: str | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        digest = hashlib.sha256()
        with (
            urllib.request.urlopen(published.url, timeout=TIMEOUT) as response,
            tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}.", delete=False) as file,
        ):
            temporary = file.name
            total, done = int(response.headers.get("Content-Length") or 0), 0
            while chunk := response.read(1 << 20):
                file.write(chunk)
                digest.update(chunk)
                done += len(chunk)
                if progress is not None:
                    progress(done, total)
        if digest.hexdigest() != published.sha256:
            raise FastganError(
                f"{published.url}: got {done:,} of {total or done:,} bytes with SHA-256 {digest.hexdigest()[:16]}..., "
                f"expected {published.sha256[:16]}...; try again, or get the file by other means"
            )
        shutil.move(temporary, path)
    except (OSError, urllib.error.URLError, ValueError) as error:
        if isinstance(error, FastganError):
            raise
        reason = " ".join(str(getattr(error, "reason", None) or getattr(error, "strerror", None) or error).split())
        raise FastganError(
            f"cannot download {published.url}: {reason}; get the file by other means and give it (--weights FILE)"
        ) from None
    finally:
        if temporary is not None:
            Path(temporary).unlink(missing_ok=True)
