"""How far two sets of images are apart, from their features: FID, KID, precision, recall, density, coverage, Inception Score.

The Fréchet distance and the Inception Score are torchmetrics'. Everything is a function of whole sets of
features, in float64 and in a fixed order, so that it does not matter which process computed which of them.
"""

import math
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
from random_batches import generator
from torchmetrics.image.fid import FrechetInceptionDistance
from torchmetrics.image.inception import InceptionScore

KID_BLOCKS = 20
SCORE_SPLITS = 10
# The main process has all features; torchmetrics would wait for the others to bring theirs.
_ALONE = {"sync_on_compute": False}
CHUNK = 1024  # rows of one set that are compared with all of another at once


class _AlreadyFeatures(torch.nn.Module):
    """Stands where torchmetrics wants a network of images: what it is given are features."""

    def __init__(self, num_features: int):
        super().__init__()
        self.num_features = num_features

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return features


def frechet_distance(real: torch.Tensor, fake: torch.Tensor) -> float:
    """FID (Heusel et al. 2017, arXiv:1706.08500, equation 6) of features, shapes (N, d) and (M, d).

    Raises:
        ValueError: if either set has no more images than d, so that its covariance is singular.
    """
    for name, features in (("real", real), ("fake", fake)):
        if len(features) <= features.shape[1]:
            raise ValueError(
                f"`{name}` has {len(features)} images, too few for the covariance of {features.shape[1]} features; there must "
                f"be at least {features.shape[1] + 1}."
            )
    metric = FrechetInceptionDistance(_AlreadyFeatures(real.shape[1]), **_ALONE).set_dtype(torch.float64)
    metric.update(real.double(), real=True)
    metric.update(fake.double(), real=False)
    return metric.compute().item()


def kernel_distance(real: torch.Tensor, fake: torch.Tensor) -> tuple[float, float]:
    """KID (Bińkowski et al. 2018, arXiv:1801.01401): MMD² with the kernel (xᵀy/d + 1)³, without bias, of all pairs.

    The usual mean over random subsets has no interval: the subsets share images. Here the estimate is of all images at
    once, and the standard error is that of the jackknife over [`KID_BLOCKS`] blocks of both sets (where the two are alike it
    is about √2 times too large, never too small).

    Returns:
        `tuple[float, float]`: the estimate, which may be below 0, and its standard error.

    Raises:
        ValueError: if a set has fewer than two images for each block.
    """
    if min(len(real), len(fake)) < 2 * KID_BLOCKS:
        raise ValueError(
            f"`real` and `fake` have {len(real)} and {len(fake)} images; KID needs {2 * KID_BLOCKS} of each."
        )
    pairs = ((real, real), (fake, fake), (real, fake))
    sums = [_kernel_sums(x, y, same=x is y) for x, y in pairs]
    counts = [kid_blocks(len(each)).bincount().double() for each in (real, fake)]

    def estimate(sums: list[torch.Tensor], n: torch.Tensor, m: torch.Tensor) -> torch.Tensor:
        return sums[0] / (n * (n - 1)) + sums[1] / (m * (m - 1)) - 2 * sums[2] / (n * m)

    whole = estimate([each.sum() for each in sums], *(count.sum() for count in counts))
    without = [each.sum() - each.sum(0) - each.sum(1) + each.diagonal() for each in sums]
    left_out = estimate(without, *(count.sum() - count for count in counts))
    spread = (KID_BLOCKS - 1) / KID_BLOCKS * (left_out - left_out.mean()).square().sum()
    return whole.item(), spread.sqrt().item()


def kid_blocks(count: int) -> torch.Tensor:
    """The block of each of so many images, at random, as many in each: data have an order, of their classes for one."""
    return (torch.arange(count) % KID_BLOCKS)[torch.randperm(count, generator=generator(count, "kid blocks"))]


def _kernel_sums(x: torch.Tensor, y: torch.Tensor, same: bool) -> torch.Tensor:
    """The sums of the kernel over all pairs of a block of x and a block of y, without the pairs of an image with itself."""
    found = torch.zeros(KID_BLOCKS, KID_BLOCKS, dtype=torch.float64)
    blocks_x, blocks_y = (kid_blocks(len(each)) for each in (x, y))
    x, y = x.double(), y.double()
    for rows in torch.arange(len(x)).split(CHUNK):
        kernel = (x[rows] @ y.T / x.shape[1] + 1) ** 3
        if same:
            kernel[torch.arange(len(rows)), rows] = 0
        by_column = torch.zeros(KID_BLOCKS, len(rows), dtype=torch.float64).index_add_(0, blocks_y, kernel.T)
        found.index_add_(0, blocks_x[rows], by_column.T)
    return found


@dataclass(frozen=True)
class Manifolds:
    """Attributes:
    precision, recall (`float`): Kynkäänniemi et al. 2019, arXiv:1904.06991.
    density, coverage (`float`): Naeem et al. 2020, arXiv:2002.09797.
    """

    precision: float
    recall: float
    density: float
    coverage: float


def compare_manifolds(real: torch.Tensor, fake: torch.Tensor, k: int = 5) -> Manifolds:
    """Precision, recall, density and coverage with balls to the k-th neighbour, of features of shapes (N, d) and (M, d).

    Raises:
        ValueError: if a set has no more images than k.
    """
    if min(len(real), len(fake)) <= k:
        raise ValueError(f"`k` is {k}; it must be less than the number of images, {len(real)} and {len(fake)}.")
    real, fake = real.double(), fake.double()
    real_radii, fake_radii = _radii(real, k), _radii(fake, k)
    in_real = torch.zeros(len(fake), dtype=torch.long)  # how many real balls a sample is in
    in_fake, nearest_fake = torch.zeros(len(real), dtype=torch.bool), torch.full((len(real),), math.inf).double()
    for start, distances in _rows_of_distances(fake, real):
        rows = slice(start, start + len(distances))
        in_real[rows] = (distances < real_radii).sum(dim=1)
        in_fake |= (distances < fake_radii[rows, None]).any(dim=0)
        nearest_fake = torch.minimum(nearest_fake, distances.min(dim=0).values)
    return Manifolds(
        precision=(in_real > 0).double().mean().item(),
        recall=in_fake.double().mean().item(),
        density=in_real.double().mean().item() / k,
        coverage=(nearest_fake < real_radii).double().mean().item(),
    )


def inception_score(logits: torch.Tensor, seed: int = 0) -> tuple[float, float]:
    """Inception Score (Salimans et al. 2016, arXiv:1606.03498) of Inception's logits (N, 1008): mean and std of 10 parts."""
    with warnings.catch_warnings(), torch.random.fork_rng(devices=[]):
        warnings.filterwarnings("ignore", message="Metric `InceptionScore` will save all extracted features")
        torch.manual_seed(seed)  # of the order in which it takes the images
        metric = InceptionScore(_AlreadyFeatures(logits.shape[1]), splits=SCORE_SPLITS, **_ALONE)
        metric.update(logits.double())
        mean, std = metric.compute()
    return mean.item(), std.item()


def nearest_of_parts(points: torch.Tensor, parts: Iterable[torch.Tensor], k: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The k nearest neighbours of each point among vectors that come in parts: distances, rising, and numbers, (N, k).

    Args:
        points (`torch.Tensor`, shape (N, d)): of any type of numbers; distances are computed in float64.
        parts (`Iterable[torch.Tensor]`): shapes (m, d), one after another; the numbers count through them.
        k (`int`): fewer are given where there are fewer.
    """
    distances = torch.empty(len(points), 0, dtype=torch.float64)
    numbers, first = torch.empty(len(points), 0, dtype=torch.long), 0
    for part in parts:
        found = [
            torch.cdist(some.double(), part.double()).topk(min(k, len(part)), largest=False)
            for some in points.split(CHUNK)
        ]
        distances = torch.cat([distances, torch.cat([each.values for each in found])], dim=1)
        numbers = torch.cat([numbers, torch.cat([each.indices for each in found]) + first], dim=1)
        kept = distances.topk(min(k, distances.shape[1]), largest=False)
        distances, numbers, first = kept.values, numbers.gather(1, kept.indices), first + len(part)
    return distances, numbers


def _radii(points: torch.Tensor, k: int) -> torch.Tensor:
    """The distance of each point to the k-th nearest of the others."""
    found = []
    for start, distances in _rows_of_distances(points, points):
        place = torch.arange(len(distances))
        distances[place, start + place] = math.inf
        found.append(distances.kthvalue(k).values)
    return torch.cat(found)


def _rows_of_distances(points: torch.Tensor, others: torch.Tensor) -> Iterator[tuple[int, torch.Tensor]]:
    """Distances of some points to all others at a time, and the number of the first of these points."""
    for start in range(0, len(points), CHUNK):
        yield start, torch.cdist(points[start : start + CHUNK], others)
