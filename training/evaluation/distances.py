"""How far two sets of images are apart, from their features: FID, KID, precision, recall, density, coverage, Inception Score.

Fréchet distance, the kernel estimator and the Inception Score are torchmetrics'. Everything is a function of whole sets of
features, in float64 and in a fixed order, so that it does not matter which process computed which of them.
"""

import math
import warnings
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from random_batches import generator
from torchmetrics.image.fid import FrechetInceptionDistance
from torchmetrics.image.inception import InceptionScore
from torchmetrics.image.kid import poly_mmd

KID_SUBSETS = 100
LARGEST_SUBSET = 1000
SCORE_SPLITS = 10
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
    metric = FrechetInceptionDistance(_AlreadyFeatures(real.shape[1])).set_dtype(torch.float64)
    metric.update(real.double(), real=True)
    metric.update(fake.double(), real=False)
    return metric.compute().item()


def kernel_distance(real: torch.Tensor, fake: torch.Tensor, seed: int = 0) -> tuple[float, float]:
    """KID (Bińkowski et al. 2018, arXiv:1801.01401): the unbiased MMD² with the kernel (xᵀy/d + 1)³.

    Returns:
        `tuple[float, float]`: the mean over 100 pairs of random subsets, and its standard error. Of subsets of m out of n
        the delete-d jackknife (Shao & Wu 1989) makes the standard error of all n from the spread: √(m/(n−m)) times it, with
        n the smaller set, which is no less than the truth; and the mean of 100 has a tenth of the spread itself.
    """
    count = min(len(real), len(fake))
    size = min(count // 2, LARGEST_SUBSET)
    if size < 2:
        raise ValueError(f"`fake` and `real` have {len(fake)} and {len(real)} images; KID needs 4 of each.")
    own, found = generator(seed, "kid"), []
    for _ in range(KID_SUBSETS):
        some = [each[torch.randperm(len(each), generator=own)[:size]].double() for each in (real, fake)]
        found.append(poly_mmd(*some))
    values = torch.stack(found)
    spread = values.var().item() * (size / (count - size) + 1 / KID_SUBSETS)
    return values.mean().item(), math.sqrt(spread)


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
    real_radii, fake_radii = (nearest(each, each, k, skip_self=True)[0][:, -1] for each in (real, fake))
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
        metric = InceptionScore(_AlreadyFeatures(logits.shape[1]), splits=SCORE_SPLITS)
        metric.update(logits.double())
        mean, std = metric.compute()
    return mean.item(), std.item()


def nearest(
    points: torch.Tensor, others: torch.Tensor, k: int, skip_self: bool = False
) -> tuple[torch.Tensor, torch.Tensor]:
    """The k nearest of `others` to each of `points`: distances, rising, and rows, both of shape (N, k).

    Args:
        points, others (`torch.Tensor` of `float64`, shapes (N, d) and (M, d)).
        k (`int`)
        skip_self (`bool`): the two are the same, and no point is its own neighbour.
    """
    distances, rows = [], []
    for start, found in _rows_of_distances(points, others):
        if skip_self:
            place = torch.arange(len(found))
            found[place, start + place] = math.inf
        smallest = found.topk(min(k, found.shape[1]), largest=False)
        distances.append(smallest.values)
        rows.append(smallest.indices)
    return torch.cat(distances), torch.cat(rows)


def _rows_of_distances(points: torch.Tensor, others: torch.Tensor) -> Iterator[tuple[int, torch.Tensor]]:
    """Distances of some points to all others at a time, and the number of the first of these points."""
    for start in range(0, len(points), CHUNK):
        yield start, torch.cdist(points[start : start + CHUNK], others)
