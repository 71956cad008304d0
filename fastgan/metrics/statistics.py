"""Mean and covariance of features, batch by batch, merged exactly; files that pytorch-fid reads and writes."""

from __future__ import annotations

import os
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fastgan.dist import Ranks
from fastgan.errors import FastganError
from fastgan.kernels.arrays import fresh, tensor_of
from fastgan.kernels.matrix_root import Factor, covariance, factor, nuclear_norm, product_norm, root_norm
from fastgan.metrics.frechet import distance_from, mean_of

MANY = 256  # samples from which on roots of eigenvalues, three times as fast, may stand for singular values
COLUMNS = 256  # features that are centred and multiplied at once
CLOSE = 1e-10  # their relative error estimate up to which they do; what it estimates is mostly far smaller


class FeatureStatistics:
    """Of features [n, d]: count n, mean [d] and covariance [d, d] with ddof = 1, in fp64.

    Each batch is centred on its own mean and merged by Chan's formula, so that nothing cancels. The features themselves
    are kept while n <= d: the distance to others then comes from their singular values, exact where a singular
    covariance costs half of the digits, and faster.

    network: what made the features, in words; "" where that is not known. Statistics of two networks do not mix.
    """

    def __init__(self, network: str = "") -> None:
        self.network = network
        self.count: int | None = 0  # None: read from a file that does not say
        self._mean = torch.zeros(0, dtype=torch.float64)
        self._scatter = torch.zeros(0, 0, dtype=torch.float64)  # sum of (x - mean)(x - mean)ᵀ, over what is not kept
        self._kept: list[Tensor] | None = []
        self._cached: tuple[int | None, Factor] | None = None  # the factor of the covariance of so many samples

    @property
    def size(self) -> int:
        """d; 0 before the first batch."""
        return len(self._mean) if self._kept is None else (self._kept[0].shape[-1] if self._kept else 0)

    def update(self, features: Any) -> FeatureStatistics:
        """features: [n, d], a NumPy array or a torch tensor; the statistics stay on its device."""
        batch = tensor_of("features", features)
        if batch.dim() != 2 or not batch.shape[1] or batch.is_complex():
            raise FastganError(f"features: expected real [n, d], got {batch.dtype} {list(batch.shape)}")
        self._fits(batch.shape[1], "features")
        if batch.numel() and not all(bool(v.isfinite()) for v in torch.aminmax(batch)):  # NaN shows in both
            raise FastganError("features: expected finite values, got NaN or infinity; check the network and its input")
        if not len(batch):
            return self
        if self.count is None:
            raise FastganError(
                "statistics from a file without `count` cannot grow; save them with FeatureStatistics.save"
            )
        self.count += len(batch)
        if self._kept is None:
            self._add(self.count - len(batch), len(batch), *moments(batch.double()))
        else:
            short = batch.dtype in (torch.float32, torch.float16, torch.bfloat16)  # exact, in less memory
            kept = fresh(batch.shape, torch.float32 if short else torch.float64, batch.device)
            self._kept.append(kept.copy_(batch))  # the caller may fill the same memory again
            if self.count > batch.shape[1]:
                self._fold()
        return self

    def merge(self, other: FeatureStatistics) -> FeatureStatistics:
        """Takes in the samples of `other`, which stays as it is: as if all had come here."""
        if self.count is None or other.count is None:
            raise FastganError(
                "statistics from a file without `count` cannot merge; save them with FeatureStatistics.save"
            )
        if not other.count:
            return self
        self._same_network(other)
        self.network = self.network or other.network
        if other._kept is not None:
            return self.update(other._all())
        self._fits(other.size, "other statistics")
        if self._kept is not None:
            self._fold()
        device = self._mean.device if self.count else other._mean.device
        self.count += other.count
        self._add(self.count - other.count, other.count, other._mean.to(device), other._scatter.to(device))
        return self

    def all_reduce(self, ranks: Ranks) -> FeatureStatistics:
        """Takes in the samples of all ranks, as if they had come here one rank after the other.

        Collective: every rank calls it with its own statistics, those without samples too, and has the same ones after.
        """
        if ranks.world == 1:
            return self
        size = ranks.highest(self.size)
        with ranks.together():
            if self.count is None:
                raise FastganError(
                    "statistics from a file without `count` cannot merge; save them with FeatureStatistics.save"
                )
            self._fits(size, "statistics of another rank")
        assert self.count is not None
        device = self._mean.device if self._kept is None else (self._kept[0].device if self._kept else None)
        total = int(ranks.sum_(torch.tensor(self.count)))
        if total <= size:
            mine = self._all().double().cpu() if self.count else torch.zeros(0, size, dtype=torch.float64)
            self._kept = [torch.cat(ranks.gather(mine)).to(device)] if total else []
        else:
            self._fold()
            if not self.count:
                self._mean, self._scatter = moments(torch.zeros(1, size, dtype=torch.float64))
            mean = ranks.sum_(self._mean.cpu() * self.count) / total
            shift = self._mean.cpu() - mean
            scatter = ranks.sum_(self._scatter.cpu() + torch.outer(shift, shift) * self.count)
            self._mean, self._scatter = mean.to(device), scatter.to(device)
        self.count = total
        return self

    def mean(self) -> Tensor:
        """[d]"""
        self._enough(1)
        return self._mean if self._kept is None else self._all().mean(0, dtype=torch.float64)

    def cov(self) -> Tensor:
        """[d, d], ddof = 1"""
        self._enough(2)
        scatter = self._scatter if self._kept is None else moments(self._all().double())[1]
        return scatter if self.count is None else scatter / (self.count - 1)

    def frechet_distance(self, other: FeatureStatistics) -> float:
        """Exact to rounding where either side keeps its features (n <= d); from 256 samples on at least to 1e-10."""
        self._enough(2)
        other._enough(2)
        self._fits(other.size, "other statistics")
        self._same_network(other)
        if self._kept is not None and other._kept is not None:
            x = self._all()
            shift, traces, product = centred_product(x, other._all().to(x.device))
            rank = torch.tensor(min(*product.shape, self.size + 1) - 1, device=x.device)
            few = min(product.shape) < MANY
            root = nuclear_norm(product, rank, "cholesky_svd" if few else "auto", CLOSE).value
            return float(distance_from(shift, traces, root))
        first = self._factor("the first covariance")
        device = first.matrix.device
        if self._kept is None and other._kept is None:
            root = root_norm(first, other.cov().to(device), "the second covariance").value
        else:
            second = other._factor("the second covariance")
            second = Factor(second.matrix.to(device), second.rank.to(device))
            few = min(first.matrix.shape[-1], second.matrix.shape[-1]) < MANY
            root = product_norm(first, second, "cholesky_svd" if few else "auto", CLOSE).value
        traces = self._variance() + other._variance().to(device)
        return float(distance_from((self.mean() - other.mean().to(device)).square().sum(), traces, root))

    def save(self, path: str | os.PathLike[str]) -> None:
        """.npz with `mu` and `sigma`, as pytorch-fid's; also `count`, `network`, and `features` while they are kept."""
        arrays = {"mu": self.mean(), "sigma": self.cov()}
        if self._kept is not None:
            arrays["features"] = self._all()
        contents = {key: value.cpu().numpy() for key, value in arrays.items()}
        if self.count is not None:
            contents["count"] = np.array(self.count)
        if self.network:
            contents["network"] = np.array(self.network)
        target = Path(path)
        temporary = target.with_name(target.name + ".tmp")
        try:
            with temporary.open("wb") as file:
                np.savez(file, allow_pickle=False, **contents)
            temporary.replace(target)
        except OSError as error:
            temporary.unlink(missing_ok=True)
            raise FastganError(f"cannot write {target}: {error.strerror}; choose another path") from None

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> FeatureStatistics:
        """What save() or `pytorch-fid --save-stats` wrote."""
        contents = read(Path(path))
        if "mu" not in contents or "sigma" not in contents:
            raise FastganError(f"{path}: expected the arrays mu and sigma, got {', '.join(sorted(contents)) or 'none'}")
        sigma = covariance(f"{path}: sigma", contents["sigma"])
        mean = mean_of(f"{path}: mu", contents["mu"], sigma)
        if mean.dim() != 1 or sigma.dim() != 2:
            raise FastganError(
                f"{path}: expected mu [d] and sigma [d, d], got {list(mean.shape)} and {list(sigma.shape)}"
            )
        out = cls(str(contents["network"]) if "network" in contents else "")
        if "features" in contents:
            out.update(contents["features"])
            if out.size != len(mean) or not np.allclose(out.mean().numpy(), mean.numpy(), rtol=1e-8, atol=1e-12):
                raise FastganError(f"{path}: its features do not have its mu; the file is damaged: make it again")
            return out
        out.count, out._mean, out._kept = None, mean, None
        out._scatter = sigma
        if "count" in contents:
            count = contents["count"]
            if count.shape or count.dtype.kind not in "iu" or count < 2:
                raise FastganError(f"{path}: expected a count of 2 or more, got {count}")
            out.count = int(count)
            out._scatter = sigma * (out.count - 1)
        return out

    def _factor(self, name: str) -> Factor:
        """Kept until more samples come: many distances to the same set factor its covariance once."""
        if self._cached is None or self._cached[0] != self.count:
            self._cached = self.count, self._new_factor(name)
        return self._cached[1]

    def _new_factor(self, name: str) -> Factor:
        if self._kept is None or self.count is None:
            return factor(self.cov(), name)
        features = self._all().double()
        columns = (features - features.mean(0)).div_((self.count - 1) ** 0.5).mT
        rank = min(self.count - 1, self.size)  # one less than there are: they are centred
        return Factor(columns, torch.tensor(rank, device=columns.device))

    def _all(self) -> Tensor:
        """The kept features, [n, d], in fp64, or in fp32 where all came in that or less."""
        assert self._kept is not None
        if len(self._kept) > 1:
            self._kept = [torch.cat(self._kept)]
        return self._kept[0]

    def _variance(self) -> Tensor:
        """Trace of the covariance."""
        if self._kept is None:
            return self._scatter.trace() if self.count is None else self._scatter.trace() / (self.count - 1)
        norm: Tensor = torch.linalg.vector_norm(self._factor("the covariance").matrix)
        return norm.square()

    def _fold(self) -> None:
        """From the features to their moments."""
        if self._kept:
            self._mean, self._scatter = moments(self._all().double())
        self._kept = None

    def _add(self, before: int, count: int, mean: Tensor, scatter: Tensor) -> None:
        if not before:
            self._mean, self._scatter = mean.clone(), scatter.clone()
            return
        shift = mean.to(self._mean.device) - self._mean
        total = before + count
        self._scatter = self._scatter + scatter.to(shift.device) + torch.outer(shift, shift) * (before * count / total)
        self._mean = self._mean + shift * (count / total)

    def _fits(self, size: int, what: str) -> None:
        if self.size not in (0, size):
            raise FastganError(
                f"{what}: expected {self.size} features per sample, got {size}; use the same network for both"
            )

    def _same_network(self, other: FeatureStatistics) -> None:
        if self.network and other.network and self.network != other.network:
            raise FastganError(
                f"the statistics are of two networks or preparations ({self.network}; and {other.network}): make both "
                "with the same"
            )

    def _enough(self, count: int) -> None:
        if self.count is not None and self.count < count:
            raise FastganError(f"expected at least {count} samples, got {self.count}; add some with update(features)")


def moments(batch: Tensor) -> tuple[Tensor, Tensor]:
    """batch: [n, d] fp64. (mean [d], sum of (x - mean)(x - mean)ᵀ [d, d])"""
    mean = batch.mean(0)
    centred = batch - mean
    return mean, centred.mT @ centred


def centred_product(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """x: [n, d], y: [m, d], n and m of 2 or more. |difference of the means|², sum of the variances, and [n, m] the
    products of the centred samples over the roots of n - 1 and m - 1, all in fp64. The trace of the root of the product
    of the covariances is the sum of its singular values.

    Some features at a time, so that what is centred is still in a cache when it is multiplied.
    """
    sizes, columns = (len(x), len(y)), x.shape[1] if x.is_cuda else COLUMNS
    out = fresh(sizes, torch.float64, x.device).zero_()
    shift, traces = out.new_zeros(()), out.new_zeros(())
    rooms = [out.new_empty(size * columns) for size in sizes]
    for parts in zip(torch.split(x, columns, 1), torch.split(y, columns, 1), strict=True):
        first, second = (
            room[: part.numel()].view(part.shape).copy_(part) for room, part in zip(rooms, parts, strict=True)
        )
        means = first.mean(0), second.mean(0)
        for part, mean in zip((first, second), means, strict=True):
            part.sub_(mean)
            traces += torch.linalg.vector_norm(part).square() / (len(part) - 1)
        shift += (means[0] - means[1]).square().sum()
        out.addmm_(first, second.mT)
    return shift, traces, out.div_(((sizes[0] - 1) * (sizes[1] - 1)) ** 0.5)


def read(path: Path) -> dict[str, np.ndarray[Any, Any]]:
    try:
        with np.load(path, allow_pickle=False) as file:
            if not isinstance(file, np.lib.npyio.NpzFile):
                raise FastganError(f"{path}: expected an .npz file, got a single array")
            return {key: file[key] for key in file.files}
    except OSError as error:
        raise FastganError(f"cannot read {path}: {error.strerror or error}; expected an .npz of statistics") from None
    except FastganError:
        raise
    except (ValueError, EOFError, zipfile.BadZipFile):
        raise FastganError(
            f"{path}: not a file of statistics, or a damaged one; expected an .npz with the arrays mu and sigma"
        ) from None
