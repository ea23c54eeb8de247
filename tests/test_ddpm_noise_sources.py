"""Noise by seed, and noise between two seeds."""

import math

import numpy as np
import pytest
import torch
from conftest import seeds

from ddpm_hub.ddpm_noise_sources import InterpolatedNoise, seeded, slerp


def noise(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


class TestSlerp:
    def test_the_ends_are_the_ends_to_the_bit(self):
        a, b = noise(1, 1, 3, 8, 8), noise(2, 1, 3, 8, 8)
        row = slerp(a, b, torch.linspace(0, 1, 5, dtype=torch.float64))
        assert torch.equal(row[:1], a)
        assert torch.equal(row[-1:], b)

    def test_the_angle_grows_evenly_and_the_length_between_equal_lengths_stays(self):
        a, b = (noise(s, 1, 1, 16, 16).double() for s in (1, 2))
        a, b = a / a.norm(), b / b.norm()
        row = slerp(a, b, torch.linspace(0, 1, 6, dtype=torch.float64)).flatten(1)
        # float64 rounding of a few operations, and acos near 0.3 multiplies it by at most 4.
        torch.testing.assert_close(row.norm(dim=1), torch.ones(6, dtype=torch.float64), rtol=1e-12, atol=0)
        angles = [math.acos((row[i] @ row[i + 1]).item()) for i in range(5)]
        assert max(angles) - min(angles) < 1e-12

    def test_noise_stays_noise(self):
        """Linear mixing would halve the variance in the middle."""
        a, b = noise(1, 1, 1, 300, 300), noise(2, 1, 1, 300, 300)
        middle = slerp(a, b, torch.tensor([0.5], dtype=torch.float64))
        # The variance of 90,000 values has the standard error √(2/90000) = 0.0047; five of them.
        assert abs(middle.var().item() - 1) < 0.024

    @pytest.mark.parametrize("sign", [1, -1])
    def test_one_direction_is_linear(self, sign):
        a = noise(1, 1, 1, 4, 4)
        row = slerp(a, sign * a, torch.tensor([0.0, 0.25, 1.0], dtype=torch.float64))
        torch.testing.assert_close(row, torch.cat([a, (0.75 + 0.25 * sign) * a, sign * a]))


class TestInterpolatedNoise:
    def test_every_row_has_its_share_of_the_same_two_draws(self):
        weights = torch.tensor([0.0, 0.3, 1.0], dtype=torch.float64)
        source = InterpolatedNoise(*seeds(1, 2), weights)
        like = torch.empty(3, 1, 4, 4)
        first, second = source.draw(like), source.draw(like)
        ends = [torch.randn(2, 1, 1, 4, 4, generator=one) for one in seeds(1, 2)]
        assert torch.equal(first[:1], ends[0][0])
        assert torch.equal(first[2:], ends[1][0])
        assert torch.equal(second[:1], ends[0][1])
        torch.testing.assert_close(first[1:2], slerp(ends[0][0], ends[1][0], weights[1:2]))

    def test_one_generator_is_one_draw_for_all(self):
        (one,) = seeds(1)
        drawn = InterpolatedNoise(one, one, torch.zeros(3, dtype=torch.float64)).draw(torch.empty(3, 1, 4, 4))
        assert torch.equal(drawn, noise(1, 1, 1, 4, 4).expand(3, -1, -1, -1))


class TestSeeded:
    def test_a_number_counts_up_and_a_list_is_taken_as_it_is(self):
        assert [one.initial_seed() for one in seeded(7, None, 3)] == [7, 8, 9]
        for three in ([5, 5, 1], np.array([5, 5, 1]), torch.tensor([5, 5, 1])):
            assert [one.initial_seed() for one in seeded(three, None, 3)] == [5, 5, 1]

    @pytest.mark.parametrize(
        ("seed", "message"),
        [
            ([1, 2], "`seed` has 2 entries for 3 images; pass one per image, or a number"),
            (-1, "`seed` is -1; it must be a whole number, from 0"),
            ([0, 1, 2**63], "`seed` is 9223372036854775808"),
            ([0, 1, "2"], "`seed` is '2'"),
            (1.5, "`seed` is 1.5"),
            (True, "`seed` is True"),
        ],
    )
    def test_what_is_no_seed(self, seed, message):
        with pytest.raises(ValueError, match=message):
            seeded(seed, None, 3)

    def test_both_are_refused(self):
        with pytest.raises(ValueError, match="`seed` and `generator` were both given"):
            seeded(1, torch.Generator(), 1)
