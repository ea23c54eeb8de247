"""Distances of features against independent computations, closed forms, and their own claims of certainty."""

import numpy as np
import prdc
import pytest
import scipy.linalg
import torch
from evaluation.distances import (
    KID_BLOCKS,
    compare_manifolds,
    frechet_distance,
    inception_score,
    kernel_distance,
    kid_blocks,
    nearest_of_parts,
)
from torchmetrics.image.kid import poly_mmd


def features(count: int, width: int = 6, mean: float = 0.0, scale: float = 1.0, seed: int = 0) -> torch.Tensor:
    own = np.random.default_rng(seed)
    mixing = np.random.default_rng(99).normal(size=(width, width)) / width**0.5
    return torch.from_numpy((own.normal(size=(count, width)) @ mixing) * scale + mean).float()


class TestFrechetDistance:
    def test_it_is_that_of_a_matrix_square_root(self):
        """scipy's Schur method on numpy's covariances; both work in float64, and the root loses half of the digits."""
        real, fake = features(400), features(300, mean=0.3, scale=1.4, seed=1)
        mu, nu = real.double().numpy().mean(0), fake.double().numpy().mean(0)
        a, b = np.cov(real.double().numpy(), rowvar=False), np.cov(fake.double().numpy(), rowvar=False)
        wanted = np.square(mu - nu).sum() + np.trace(a + b - 2 * scipy.linalg.sqrtm(a @ b).real)
        assert frechet_distance(real, fake) == pytest.approx(wanted, rel=1e-8)

    def test_normal_data_have_a_known_distance(self):
        """N(0, I) and N(m, s² I) in d dimensions are d (m² + (1 − s)²) apart; with n images it is about 3 % from that."""
        own = torch.Generator().manual_seed(0)
        real = torch.randn(20_000, 4, generator=own)
        fake = 0.5 + 2 * torch.randn(20_000, 4, generator=own)
        assert frechet_distance(real, fake) == pytest.approx(4 * (0.25 + 1), rel=0.03)

    def test_the_same_set_is_nowhere_else(self):
        # √ of eigenvalues that are wrong by 1e-16 of the largest: 1e-8 of the trace.
        assert frechet_distance(features(50), features(50)) == pytest.approx(0, abs=1e-6)

    @pytest.mark.parametrize("small", ["real", "fake"])
    def test_too_few_for_the_covariance(self, small):
        sets = {"real": features(50), "fake": features(50)} | {small: features(6)}
        message = f"`{small}` has 6 images, too few for the covariance of 6 features; there must be at least 7."
        with pytest.raises(ValueError, match=message):
            frechet_distance(**sets)


class TestKernelDistance:
    def test_it_is_the_estimate_of_torchmetrics(self):
        real, fake = features(60).double(), features(60, mean=0.2, seed=1).double()
        assert kernel_distance(real, fake)[0] == pytest.approx(poly_mmd(real, fake).item(), rel=1e-10)

    def test_of_sets_of_different_sizes_it_is_the_sum_over_all_pairs(self):
        real, fake = features(50).double().numpy(), features(43, mean=0.2, seed=1).double().numpy()

        def kernel(x, y):
            return (x @ y.T / x.shape[1] + 1) ** 3

        a, b, c = kernel(real, real), kernel(fake, fake), kernel(real, fake)
        wanted = (a.sum() - np.trace(a)) / (50 * 49) + (b.sum() - np.trace(b)) / (43 * 42) - 2 * c.mean()
        found = kernel_distance(torch.from_numpy(real), torch.from_numpy(fake))[0]
        assert found == pytest.approx(wanted, rel=1e-10)

    def test_the_standard_error_is_the_jackknife_over_blocks(self):
        """By its definition: the estimate again without one block of both sets, for each of them."""
        real, fake = features(67), features(59, mean=0.3, seed=1)

        def kernel(x, y):
            return (x @ y.T / x.shape[1] + 1) ** 3

        def estimate(x, y):
            a, b, c = kernel(x, x), kernel(y, y), kernel(x, y)
            n, m = len(x), len(y)
            return (a.sum() - np.trace(a)) / (n * (n - 1)) + (b.sum() - np.trace(b)) / (m * (m - 1)) - 2 * c.mean()

        blocks = [kid_blocks(len(each)).numpy() for each in (real, fake)]
        x, y = real.double().numpy(), fake.double().numpy()
        left_out = np.array([estimate(x[blocks[0] != k], y[blocks[1] != k]) for k in range(KID_BLOCKS)])
        wanted = np.sqrt((KID_BLOCKS - 1) * left_out.var())
        assert kernel_distance(real, fake)[1] == pytest.approx(wanted, rel=1e-9)

    @pytest.mark.parametrize(("mean", "low", "high"), [(0.5, 0.75, 1.3), (0.0, 0.9, 2.0)])
    def test_the_standard_error_is_what_other_draws_vary_by(self, mean, low, high):
        """Over 120 draws of both sets, whose spread is known to √(1/240) = 6 %; where the sets are alike it is too large.

        Four times that, and the jackknife's own bias, are the limits.
        """
        found = np.array([
            kernel_distance(features(100, seed=2 * i), features(140, mean=mean, seed=2 * i + 1)) for i in range(120)
        ])  # fmt: skip
        assert low < found[:, 1].mean() / found[:, 0].std() < high
        if mean == 0:  # without bias: four standard errors of the mean
            assert abs(found[:, 0].mean()) < 4 * found[:, 0].std() / 120**0.5

    def test_too_few(self):
        with pytest.raises(ValueError, match=f"30 and 100 images; KID needs {2 * KID_BLOCKS} of each"):
            kernel_distance(features(30), features(100))


class TestManifolds:
    @pytest.mark.parametrize("k", [1, 3, 5])
    def test_they_are_those_of_their_authors(self, k):
        """`prdc` is the code of Naeem et al. for all four; no ball's edge is near any point here."""
        real, fake = features(230), features(170, mean=0.4, scale=0.8, seed=1)
        wanted = prdc.compute_prdc(real.double().numpy(), fake.double().numpy(), nearest_k=k)
        found = compare_manifolds(real, fake, k)
        for name, value in wanted.items():
            assert getattr(found, name) == pytest.approx(value, abs=1e-12), name

    def test_more_rows_than_a_chunk(self, monkeypatch):
        real, fake = features(130), features(110, mean=0.3, seed=1)
        whole = compare_manifolds(real, fake)
        monkeypatch.setattr("evaluation.distances.CHUNK", 16)
        assert compare_manifolds(real, fake) == whole

    def test_too_few(self):
        with pytest.raises(ValueError, match="`k` is 5; it must be less than the number of images, 5 and 9"):
            compare_manifolds(features(5), features(9), 5)


def test_the_inception_score_is_exp_of_the_mean_divergence():
    """Of ten equal parts whose images are the same in each, so that the order does not matter."""
    logits = torch.randn(5, 8, generator=torch.Generator().manual_seed(0)) * 3
    p = logits.double().softmax(1)
    wanted = (p * (p.log() - p.mean(0).log())).sum(1).mean().exp().item()
    before = torch.random.get_rng_state()
    mean, spread = inception_score(logits.repeat(400, 1))
    assert torch.equal(torch.random.get_rng_state(), before)
    # A part is 200 of 2,000 images in random order, not 40 of each: its score varies by about a hundredth.
    assert mean == pytest.approx(wanted, rel=0.05)
    assert spread < 0.1 * mean
    assert inception_score(logits.repeat(400, 1)) == (mean, spread)


def test_nearest_of_parts_is_the_sorted_distance():
    points, others = features(40).double(), features(30, seed=1).double()
    wanted = np.sort(np.linalg.norm(points.numpy()[:, None] - others.numpy()[None], axis=2), axis=1)[:, :3]
    for size in (30, 7, 1):
        distances, rows = nearest_of_parts(points, others.split(size), 3)
        np.testing.assert_allclose(distances.numpy(), wanted, rtol=1e-9)
        again = (points[:, None] - others[rows]).norm(dim=2)
        torch.testing.assert_close(again, distances, rtol=1e-9, atol=0)
    assert nearest_of_parts(points, others[:2].split(1), 3)[0].shape == (40, 2)


def test_the_blocks_are_of_equal_size_and_at_random():
    blocks = kid_blocks(203)
    assert set(blocks.bincount().tolist()) == {10, 11}
    assert torch.equal(blocks, kid_blocks(203))
    assert not torch.equal(blocks, torch.arange(203) % KID_BLOCKS)
