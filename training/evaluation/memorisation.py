"""Does a model copy its training images? Its samples' nearest training images, beside those of images it never saw."""

from collections.abc import Iterable
from dataclasses import dataclass

import scipy.stats
import torch

from evaluation.distances import nearest_of_parts

NEIGHBORS = 50  # beside the nearest, by whose distance it is judged
SHARE = 0.01  # of the unseen images that are as near as what is called a copy
DUPLICATE = 0.01  # a ratio at which an unseen image is a training image
PAIRS = 8  # shown
# The share of samples that is called copying, where chance alone makes so much one time in a thousand.
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


def nearness(images: torch.Tensor, training: Iterable[torch.Tensor], scale: float = 1.0) -> Nearness:
    """How near images are to training images.

    Args:
        images (`torch.Tensor`, shape (N, d)): as vectors.
        training (`Iterable[torch.Tensor]`): parts of the training images, shapes (m, d); one after another is held.
        scale (`float`, defaults to `1.0`): what distances are divided by.
    """
    scale = images.shape[1] ** -0.5 / scale
    distances, rows = nearest_of_parts(images, training, NEIGHBORS + 1)
    beyond = distances[:, 1:].mean(dim=1) if distances.shape[1] > 1 else torch.ones(len(distances)).double()
    return Nearness(distances[:, 0] * scale, distances[:, 0] / beyond.clamp(min=1e-12), rows[:, 0])


@dataclass(frozen=True)
class Copying:
    """Whether samples are nearer to the training images than unseen real images are.

    Attributes:
        share (`float`): of the samples whose ratio is not above `limit`.
        limit (`float`): the ratio of the j-th nearest of n unseen images, j = n/100, or 1 of fewer.
        expected (`float`): j/(n+1), what the share is on average if samples are like unseen images.
        num_duplicates (`int`): of the unseen images, which are training images and set no limit.
        probability (`float`): of at least so many then: beta-binomial, since the limit is of n images itself.
        closeness (`float`): how often a sample is nearer to its training image than an unseen one is to its own; 0.5 where
            they are alike (the statistic of Mann and Whitney, used for copies by Meehan et al. 2020, arXiv:2004.05675).
        median, unseen_median (`float`): of the distances.
        is_flagged (`bool`)
    """

    share: float
    limit: float
    expected: float
    num_duplicates: int
    probability: float
    closeness: float
    median: float
    unseen_median: float
    is_flagged: bool


def judge_copying(samples: Nearness, unseen: Nearness) -> Copying:
    """Compares the nearness of samples with that of real images that were not trained on."""
    distinct = unseen.ratios[unseen.ratios > DUPLICATE]  # data sets have some images in both splits
    count, unseen_count = len(samples.ratios), len(distinct)
    rank = max(1, int(SHARE * unseen_count))
    limit = distinct.kthvalue(rank).values.item() if unseen_count else DUPLICATE
    close = int((samples.ratios <= limit).sum())
    probability = scipy.stats.betabinom.sf(close - 1, count, rank, max(unseen_count - rank, 0) + 1).item()
    result = scipy.stats.mannwhitneyu(unseen.distances.numpy(), samples.distances.numpy())
    share = close / count
    return Copying(
        share=share,
        limit=limit,
        expected=rank / (unseen_count + 1),
        num_duplicates=len(unseen.ratios) - unseen_count,
        probability=probability,
        closeness=result.statistic.item() / (count * len(unseen.distances)),
        median=samples.distances.median().item(),
        unseen_median=unseen.distances.median().item(),
        is_flagged=share >= FLAGGED_SHARE and probability < SIGNIFICANCE,
    )


def closest(samples: Nearness) -> torch.Tensor:
    """The samples that are most like copies, the most first."""
    return samples.ratios.argsort()[:PAIRS]
