"""Which timesteps are drawn: distributions, the history of losses against a plain one, and exact continuation."""

import collections
import dataclasses
import math

import pytest
import torch
from config_checks import LOSSES_PER_TIMESTEP
from timestep_sampling import TimestepSampler
from train_config import TrainConfig

CPU = torch.device("cpu")


def make(kind: str, num_train: int = 20, batch_size: int = 8, seed: int = 0, **more) -> TimestepSampler:
    config = dataclasses.replace(
        TrainConfig(),
        timestep_sampling=kind,
        num_train_timesteps=num_train,
        batch_size=batch_size,
        num_inference_steps=1,
        max_train_steps=10_000,
        seed=seed,
        **more,
    )
    return TimestepSampler(config, CPU)


def filled(losses: torch.Tensor, **kwargs) -> TimestepSampler:
    """A sampler by importance that knows `losses`, shape (T, n ≥ 10)."""
    sampler = make("importance", num_train=len(losses), **kwargs)
    sampler.update(torch.arange(len(losses)).repeat_interleave(losses.shape[1]), losses.flatten())
    return sampler


@pytest.mark.parametrize("kind", ["uniform", "stratified", "importance"])
def test_draws_are_a_function_of_seed_and_step(kind):
    sampler, again, other = make(kind), make(kind), make(kind, seed=1)
    drawn = [sampler.draw(step)[0] for step in range(20)]
    for step in reversed(range(20)):  # whatever was drawn before
        assert torch.equal(again.draw(step)[0], drawn[step])
    assert sum(torch.equal(other.draw(step)[0], drawn[step]) for step in range(20)) == 0
    assert len({tuple(t.tolist()) for t in drawn}) == 20
    assert all((t.dtype, t.shape, t.device) == (torch.int64, (8,), CPU) for t in drawn)


@pytest.mark.parametrize("kind", ["uniform", "stratified", "importance"])
@pytest.mark.parametrize(("num_train", "batch_size"), [(10, 4), (7, 64), (1, 3), (1000, 1)])
def test_every_timestep_is_as_likely_in_every_slot(kind, num_train, batch_size):
    sampler = make(kind, num_train=num_train, batch_size=batch_size)
    count = 2000
    drawn = torch.stack([sampler.draw(step)[0] for step in range(count)])
    assert (drawn.min() >= 0, drawn.max() < num_train) == (True, True)
    if num_train > 10:
        return
    for slot in (0, batch_size - 1):
        # A binomial count has the standard deviation √(n p (1−p)) ≤ √(n p); five of those.
        found = drawn[:, slot].bincount(minlength=num_train)
        assert (found - count / num_train).abs().max() <= 5 * (count / num_train) ** 0.5


@pytest.mark.parametrize(("num_train", "batch_size"), [(1000, 8), (10, 4), (7, 3), (3, 9)])
def test_each_part_of_the_range_has_one(num_train, batch_size):
    """The i-th of the sorted timesteps lies in [i T/B, (i+1) T/B), rounded down."""
    sampler = make("stratified", num_train=num_train, batch_size=batch_size)
    for step in range(200):
        timesteps, weights = sampler.draw(step)
        assert weights is None
        for i, t in enumerate(timesteps.sort().values.tolist()):
            assert i * num_train // batch_size <= t < math.ceil((i + 1) * num_train / batch_size)


def test_the_order_of_the_parts_is_random():
    """A process that takes the first two slots of four sees all pairs of parts, 1/6 each."""
    sampler = make("stratified", num_train=4, batch_size=4)
    count = 3000
    found = collections.Counter(tuple(sorted(sampler.draw(step)[0][:2].tolist())) for step in range(count))
    assert len(found) == 6
    assert max(abs(n - count / 6) for n in found.values()) <= 5 * (count / 6) ** 0.5


def test_the_largest_numbers_stay_in_the_range():
    """(7 + u)/8 rounds to 1 for the u next to 1."""
    largest = torch.full((2, 8), 1 - 2.0**-53, dtype=torch.float64)
    for kind in ("uniform", "stratified", "importance"):
        timesteps, _ = make(kind, num_train=1000)._from_numbers(largest)
        assert timesteps.max() == 999


class TestImportance:
    def test_it_is_uniform_until_every_timestep_has_ten(self):
        sampler = make("importance", num_train=4)
        sampler.update(torch.tensor([0, 1, 2]).repeat_interleave(50), torch.linspace(1, 100, 150))
        sampler.update(torch.full((LOSSES_PER_TIMESTEP - 1,), 3), torch.ones(LOSSES_PER_TIMESTEP - 1))
        assert torch.equal(sampler.draw(0)[1], torch.ones(8))
        assert torch.equal(sampler.draw(0)[0], make("uniform", num_train=4).draw(0)[0])
        sampler.update(torch.tensor([3]), torch.ones(1))
        assert not torch.equal(sampler.draw(0)[1], torch.ones(8))

    @pytest.mark.parametrize("share", [0.001, 0.5])
    def test_timesteps_are_drawn_as_often_as_their_losses_are_large(self, share):
        """p_t ∝ √E[L_t²] but for the uniform share, by counting; and the weights are 1/(T p_t)."""
        losses = (
            torch.rand(5, LOSSES_PER_TIMESTEP, generator=torch.Generator().manual_seed(0)) * torch.arange(1, 6)[:, None]
        )
        size = losses.double().square().mean(1).sqrt()
        wanted = (1 - share) * size / size.sum() + share / 5
        sampler = filled(losses, batch_size=500, importance_uniform_share=share)
        drawn = [sampler.draw(step) for step in range(100)]
        timesteps, weights = (torch.cat(parts) for parts in zip(*drawn, strict=True))
        count = 100 * 500
        found = timesteps.bincount(minlength=5)
        assert ((found - count * wanted).abs() <= 5 * (count * wanted * (1 - wanted)).sqrt()).all()
        assert weights.dtype == torch.float32
        torch.testing.assert_close(weights, (1 / (5 * wanted)).float()[timesteps], rtol=2**-22, atol=0)

    def test_the_weighted_mean_is_the_uniform_one(self):
        """E[w_t L_t] = mean of L over t, whatever the history said; five standard deviations of the mean of n draws."""
        random = torch.Generator().manual_seed(1)
        sampler = filled(torch.rand(50, LOSSES_PER_TIMESTEP, generator=random) ** 4, batch_size=1000)
        of_each = torch.rand(50, generator=random).double()
        drawn = [sampler.draw(step) for step in range(50)]
        values = torch.cat([weights * of_each[timesteps] for timesteps, weights in drawn])
        assert abs(values.mean() - of_each.mean()) <= 5 * values.std() / len(values) ** 0.5
        plain = torch.cat([of_each[timesteps] for timesteps, _ in drawn])
        assert abs(plain.mean() - of_each.mean()) > 5 * plain.std() / len(plain) ** 0.5

    def test_it_lowers_the_variance_of_the_estimate(self):
        """With losses that are known and do not vary at a given t, only the uniform share varies."""
        sizes = 10.0 ** -torch.arange(0, 4, 0.1)
        timesteps, weights = filled(sizes[:, None].expand(-1, LOSSES_PER_TIMESTEP), batch_size=2000).draw(0)
        estimates = weights * sizes[timesteps]
        uniform = sizes[make("uniform", num_train=len(sizes), batch_size=2000).draw(0)[0]]
        assert estimates.std() < 0.05 * uniform.std()

    def test_the_history_is_that_of_a_plain_queue(self):
        """Batches with many of one t, more than the ring has places for, and losses that are not finite."""
        random = torch.Generator().manual_seed(0)
        sampler, queues = (
            make("importance", num_train=6),
            [collections.deque(maxlen=LOSSES_PER_TIMESTEP) for _ in range(6)],
        )
        for _ in range(30):
            timesteps = torch.randint(6, (40,), generator=random) * torch.randint(2, (40,), generator=random)
            losses = torch.rand(40, generator=random)
            losses[3], losses[17], losses[18] = math.nan, math.inf, -math.inf
            for t, loss in zip(timesteps.tolist(), losses.tolist(), strict=True):
                if math.isfinite(loss):
                    queues[t].append(loss)
            sampler.update(timesteps, losses)
            state = sampler.state()
            assert state["counts"].clamp(max=LOSSES_PER_TIMESTEP).tolist() == [len(queue) for queue in queues]
            for t, queue in enumerate(queues):
                known = state["losses"][t][: len(queue)]
                assert sorted(known.tolist()) == sorted(queue)
                newest = (state["counts"][t] - 1) % LOSSES_PER_TIMESTEP
                assert not queue or state["losses"][t][newest] == queue[-1]
        assert all(len(queue) == LOSSES_PER_TIMESTEP for queue in queues)

    def test_losses_that_are_not_finite_change_nothing(self):
        sampler = filled(torch.rand(4, LOSSES_PER_TIMESTEP, generator=torch.Generator().manual_seed(0)))
        before = sampler.state()
        sampler.update(torch.arange(4), torch.tensor([math.nan, math.inf, -math.inf, math.nan]))
        assert all(torch.equal(before[name], tensor) for name, tensor in sampler.state().items())

    @pytest.mark.parametrize("size", [0.0, 1e-30, 3e38])
    def test_losses_of_any_size(self, size):
        sampler = filled(torch.full((4, LOSSES_PER_TIMESTEP), size))
        timesteps, weights = sampler.draw(0)
        torch.testing.assert_close(weights, torch.ones(8))
        assert torch.equal(timesteps, make("uniform", num_train=4).draw(0)[0])

    @pytest.mark.parametrize("share", [0.001, 0.5])
    def test_what_has_no_loss_is_still_looked_at(self, share):
        losses = torch.zeros(4, LOSSES_PER_TIMESTEP)
        losses[0] = 1.0
        timesteps, weights = filled(losses, batch_size=20_000, importance_uniform_share=share).draw(0)
        count = (timesteps != 0).sum()
        wanted = 20_000 * share * 3 / 4
        assert abs(count - wanted) <= 5 * wanted**0.5
        assert weights.max().item() == pytest.approx(1 / share)

    def test_it_goes_on_from_its_state(self):
        def train(sampler, steps):
            for step in steps:
                timesteps, _ = sampler.draw(step)
                sampler.update(timesteps, (timesteps + step % 3).float())
            return sampler

        whole = train(make("importance"), range(200))
        half = train(make("importance"), range(90))
        saved = half.state()
        train(half, range(90, 100))  # what is saved is a copy
        resumed = make("importance")
        resumed.load(saved)
        train(resumed, range(90, 200))
        assert (whole.state()["counts"] >= LOSSES_PER_TIMESTEP).all()
        assert all(torch.equal(resumed.state()[name], tensor) for name, tensor in whole.state().items())
        for a, b in zip(whole.draw(200), resumed.draw(200), strict=True):
            assert torch.equal(a, b)


@pytest.mark.parametrize("kind", ["uniform", "stratified"])
def test_the_others_need_no_losses(kind):
    sampler = make(kind)
    assert not sampler.needs_losses
    sampler.update(torch.arange(8), torch.ones(8))
    assert sampler.state() == {}
    sampler.load({})
    assert sampler.draw(3)[1] is None


def test_the_state_of_another_configuration_is_refused():
    state = make("importance", num_train=20).state()
    with pytest.raises(ValueError, match=r"holds losses \(20, 10\), counts \(20,\); .*T = 30 needs losses \(30, 10\)"):
        make("importance", num_train=30).load(state)
    with pytest.raises(ValueError, match="`timestep_sampling` = 'uniform' with T = 20 needs nothing"):
        make("uniform").load(state)
    with pytest.raises(ValueError, match="holds nothing"):
        make("importance").load({})


def test_the_host_never_waits_for_an_accelerator():
    """Tensors on the device "meta" have shapes and no values: whatever read one on the host would fail here."""
    for kind in ("uniform", "stratified", "importance"):
        config = dataclasses.replace(TrainConfig(), timestep_sampling=kind)
        sampler = TimestepSampler(config, torch.device("meta"))
        numbers = torch.empty(2, 64, dtype=torch.float64, device="meta")
        timesteps, _ = sampler._from_numbers(numbers)
        sampler.update(timesteps, torch.empty(64, device="meta"))
        assert (timesteps.device.type, timesteps.shape) == ("meta", (64,))
        with pytest.raises(RuntimeError, match="meta tensors"):
            timesteps.max().item()
