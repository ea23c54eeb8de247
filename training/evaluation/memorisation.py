"""Does a model copy its training images? Its samples' nearest training images, beside those of images it never saw."""

from dataclasses import dataclass

import scipy.stats
import torch

from evaluation.distances import nearest

NEIGHBORS = 50  # beside the nearest, by whose distance it is judged
SHARE = 0.01  # of the unseen images that are called as near as a copy
PAIRS = 8  # shown
# The share of samples that is called copying, where it is more than chance makes of SHARE, one time in a thousand.
FLAGGED_SHARE = 0.03
SIGNIFICANCE = 1e-3


@dataclass(frozen=True)
class Nearness:
    """Of some images to the training images.

    Attributes:
        distances (`torch.Tensor` of `float64`, shape (N,)): to the nearest one: root mean square over the values.
        ratios (`torch.Tensor`, shape (N,)): the same over the mean distance to the next [`NEIGHBORS`]: near 0 for a copy,
            near 1 where all are as far.
        rows (`torch.Tensor` of `int64`, shape (N,)): which training image it is.
    """

    distances: torch.Tensor
    ratios: torch.Tensor
    rows: torch.Tensor


def nearness(images: torch.Tensor, training: torch.Tensor) -> Nearness:
    """How near images are to training images; both as vectors, shapes (N, d) and (M, d)."""
    scale = images.shape[1] ** -0.5
    distances, rows = nearest(images.double(), training.double(), NEIGHBORS + 1)
    beyond = distances[:, 1:].mean(dim=1) if distances.shape[1] > 1 else torch.ones(len(distances)).double()
    return Nearness(distances[:, 0] * scale, distances[:, 0] / beyond.clamp(min=1e-12), rows[:, 0])


@dataclass(frozen=True)
class Copying:
    """Whether samples are nearer to the training images than unseen real images are.

    Attributes:
        share (`float`): of the samples whose ratio is not above that of all but [`SHARE`] of the unseen images.
        limit (`float`): that ratio.
        probability (`float`): of at least so many, if samples were like unseen images (binomial).
        closeness (`float`): how often a sample is nearer to its training image than an unseen one is to its own; 0.5 where
            they are alike (the statistic of Mann and Whitney, used for copies by Meehan et al. 2020, arXiv:2004.05675).
        median, unseen_median (`float`): of the distances.
        is_flagged (`bool`)
    """

    share: float
    limit: float
    probability: float
    closeness: float
    median: float
    unseen_median: float
    is_flagged: bool


def judge_copying(samples: Nearness, unseen: Nearness) -> Copying:
    """Compares the nearness of samples with that of real images that were not trained on."""
    limit = torch.quantile(unseen.ratios, SHARE).item()
    close = int((samples.ratios <= limit).sum())
    count = len(samples.ratios)
    probability = scipy.stats.binom.sf(close - 1, count, SHARE).item() if close else 1.0
    result = scipy.stats.mannwhitneyu(unseen.distances.numpy(), samples.distances.numpy())
    share = close / count
    return Copying(
        share=share,
        limit=limit,
        probability=probability,
        closeness=result.statistic.item() / (count * len(unseen.distances)),
        median=samples.distances.median().item(),
        unseen_median=unseen.distances.median().item(),
        is_flagged=share >= FLAGGED_SHARE and probability < SIGNIFICANCE,
    )


def closest(samples: Nearness) -> torch.Tensor:
    """The samples that are most like copies, the most first."""
    return samples.ratios.argsort()[:PAIRS]
