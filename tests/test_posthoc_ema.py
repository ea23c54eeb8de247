"""Averages of any width from snapshots: against averages of that width that were kept during the same walk."""

import dataclasses
import math
import shutil

import pytest
import safetensors.torch
import torch
from averaged_weights import AveragedWeights, gamma_of
from conftest import make_pipeline, run_python
from output_folder import save_model
from posthoc_ema import Snapshot, find_snapshots, fit_profiles, main, reconstruct, save_snapshot, snapshot_name
from train_config import TrainConfig, UserError

from ddpm_hub import DDPMHubPipeline

STEPS, EVERY = 400, 50


def config(*stds: float) -> TrainConfig:
    return dataclasses.replace(TrainConfig(), ema_stds=stds)


def snapshots(stds=(0.05, 0.1), steps=STEPS, every=EVERY) -> list[Snapshot]:
    return [Snapshot(None, std, step) for step in range(every, steps + 1, every) for std in stds]


def train(folder, extra=(), stds=(0.05, 0.1), steps=STEPS, every=EVERY, size=2000) -> dict:
    """A random walk that leaves snapshots; returns what averages of the `extra` widths are after each `every` steps."""
    generator = torch.Generator().manual_seed(0)
    parameter = torch.nn.Parameter(torch.ones(size))
    kept = AveragedWeights(config(*stds), {"p": parameter})
    others = AveragedWeights(config(*extra), {"p": parameter})
    direct = {}
    for step in range(1, steps + 1):
        with torch.no_grad():
            parameter += 0.01 * torch.randn(size, generator=generator)
        kept.update(step)
        others.update(step)
        if step % every == 0:
            save_snapshot(folder, kept, step)
            direct |= {(std, step): others.state(f"std_{std!r}")["p"].clone() for std in extra}
    return direct


def profile(std: float, step: int, steps: int = STEPS) -> torch.Tensor:
    """The weight of each step's parameters in an average, by running its recursion on unit vectors."""
    gamma, weights = gamma_of(std), torch.zeros(steps, dtype=torch.float64)
    for t in range(1, step + 1):
        beta = (1 - 1 / t) ** (gamma + 1)
        weights *= beta
        weights[t - 1] += 1 - beta
    return weights


# --- The fit -----------------------------------------------------------------------------------------------------------


def test_what_is_stored_is_found_alone():
    for number, wanted in enumerate(snapshots()):
        fit = fit_profiles(snapshots(), wanted.std, wanted.step)
        assert fit.weights == [float(i == number) for i in range(len(snapshots()))]
        assert fit.residual < 1e-7  # the root of the rounding of a difference of equal numbers


@pytest.mark.parametrize("std", [0.04, 0.075, 0.12, 0.15])
def test_the_residual_is_the_distance_of_the_profiles(std):
    """Against the profiles themselves, step by step. The integrals see steps as points of a line: what differs within a
    step is a share of 1/(STEPS · std) of the profile's shape."""
    fit = fit_profiles(snapshots(), std, STEPS)
    assert math.isclose(sum(fit.weights), 1, abs_tol=1e-12)
    pairs = zip(fit.weights, snapshots(), strict=True)
    made = sum(weight * profile(s.std, s.step) for weight, s in pairs)
    wanted = profile(std, STEPS)
    distance = ((made - wanted).norm() / wanted.norm()).item()
    assert math.isclose(distance, fit.residual, rel_tol=1 / (STEPS * std))


def test_no_other_weights_are_nearer():
    """The gradient of the distance is zero along all changes that keep the sum: a small step in any of them is no better."""
    wanted, given = profile(0.12, STEPS), torch.stack([profile(s.std, s.step) for s in snapshots()])
    best = torch.tensor(fit_profiles(snapshots(), 0.12, STEPS).weights, dtype=torch.float64)
    distance = (best @ given - wanted).norm()
    generator = torch.Generator().manual_seed(0)
    for _ in range(50):
        change = torch.randn(len(best), generator=generator, dtype=torch.float64)
        change = 0.05 * (change - change.mean())
        assert (best + change) @ torch.ones_like(best) == pytest.approx(1)
        assert ((best + change) @ given - wanted).norm() > distance


def test_more_snapshots_are_nearer():
    residuals = [fit_profiles(snapshots(every=every), 0.12, STEPS).residual for every in (400, 200, 100, 50, 25, 10)]
    assert residuals == sorted(residuals, reverse=True)
    assert residuals[0] > 0.05
    assert residuals[-1] < 0.002


@pytest.mark.parametrize("std", [0.02, 0.075, 0.2])
def test_thousand_snapshots_do_not_blow_up(std):
    """Neighbours are all but equal: weights of millions that cancel would bring the rounding of float32 to light."""
    fit = fit_profiles(snapshots(steps=10**6, every=2000), std, 10**6)
    assert sum(map(abs, fit.weights)) < 100
    assert fit.residual < 0.001


def test_snapshots_that_are_all_but_equal_do_not_blow_up():
    """Their difference is rounding alone: no weight may be put on it."""
    given = snapshots(stds=(0.05, 0.1, 0.1 * (1 + 1e-13)))
    fit = fit_profiles(given, 0.12, STEPS)
    assert sum(map(abs, fit.weights)) < 10
    assert fit.residual == pytest.approx(fit_profiles(snapshots(), 0.12, STEPS).residual, rel=1e-3)


# --- The weights -------------------------------------------------------------------------------------------------------


def test_what_is_stored_comes_back_to_the_bit(tmp_path):
    train(tmp_path)
    for snapshot in find_snapshots(tmp_path):
        tensors, *_ = reconstruct(tmp_path, snapshot.std, snapshot.step)
        assert torch.equal(tensors["p"], safetensors.torch.load_file(snapshot.path)["p"])


@pytest.mark.parametrize("std", [0.07, 0.12])
def test_it_is_the_average_that_was_kept(tmp_path, std):
    """The walk is θ(τ) = θ_0 + Σ increments, and both averages have the sum 1: their difference is Σ_s d_s D_s of increments
    d_s of 0.01 and D_s = Σ_{τ ≥ s} (made − wanted). Over 2000 parameters its root mean square is 0.01 ‖D‖, with a spread of
    1/√4000; four of them, and the rounding of float32, are allowed."""
    direct = train(tmp_path, extra=(std,))
    tensors, fit, used, step = reconstruct(tmp_path, std)
    assert step == STEPS
    made = sum(weight * profile(s.std, s.step) for weight, s in zip(fit.weights, used, strict=True))
    tails = (made - profile(std, STEPS)).flip(0).cumsum(0)
    error = (tensors["p"] - direct[std, STEPS]).double().square().mean().sqrt().item()
    assert error == pytest.approx(0.01 * tails.norm().item(), rel=4 / math.sqrt(4000), abs=2e-6)
    nearest = min((0.05, 0.1), key=lambda other: abs(other - std))
    other = safetensors.torch.load_file(tmp_path / "ema_snapshots" / f"{snapshot_name(nearest, STEPS)}.safetensors")[
        "p"
    ]
    assert error < 0.2 * (other - direct[std, STEPS]).double().square().mean().sqrt()


def test_an_earlier_step(tmp_path):
    direct = train(tmp_path, extra=(0.08,))
    tensors, *_ = reconstruct(tmp_path, 0.08, 200)
    right = (tensors["p"] - direct[0.08, 200]).norm()
    assert right < 0.1 * (tensors["p"] - direct[0.08, 400]).norm()


def test_weights_that_never_change_stay(tmp_path):
    parameter = torch.nn.Parameter(torch.linspace(-3, 3, 100))
    averages = AveragedWeights(config(0.05, 0.1), {"p": parameter})
    for step in range(1, 101):
        averages.update(step)
        if step % 25 == 0:
            save_snapshot(tmp_path, averages, step)
    tensors, *_ = reconstruct(tmp_path, 0.12)
    # Each snapshot is the number itself; the sum of a few of them in float64 is rounded once.
    assert (tensors["p"] - parameter).abs().max() <= 3 * 2**-23


def test_the_same_run_again_writes_the_same_files(tmp_path):
    for name in ("once", "again"):
        (tmp_path / name).mkdir()
        train(tmp_path / name, size=10)
    train(tmp_path / "again", size=10)  # over the files that are there
    files = sorted(path.name for path in (tmp_path / "once" / "ema_snapshots").iterdir())
    assert files[0] == "std_0.050_step_00000050.safetensors"
    assert len(files) == 2 * STEPS // EVERY
    for path in (tmp_path / "again" / "ema_snapshots").iterdir():
        assert path.read_bytes() == (tmp_path / "once" / "ema_snapshots" / path.name).read_bytes()


def test_names_of_widths_differ():
    assert snapshot_name(0.05, 500) == "std_0.050_step_00000500"
    assert snapshot_name(0.0501, 500) == "std_0.0501_step_00000500"


# --- What cannot be ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("std", [0.0, -0.1, 0.3, math.nan])
def test_widths_out_of_range(tmp_path, std):
    with pytest.raises(UserError, match=r"`--std` is .*; it must be above 0 and at most 0\.2887"):
        reconstruct(tmp_path, std)


def test_no_snapshots(tmp_path):
    with pytest.raises(UserError, match=r"holds no ema_snapshots.*trained with --ema_stds '\[0\.05,0\.1\]'"):
        reconstruct(tmp_path, 0.1)


@pytest.mark.parametrize("step", [0, STEPS + 1])
def test_steps_out_of_range(tmp_path, step):
    train(tmp_path, size=1)
    with pytest.raises(UserError, match=rf"`--step` is {step}; it must be from 1 to {STEPS}"):
        reconstruct(tmp_path, 0.1, step)


@pytest.mark.parametrize(
    ("stds", "every", "std"), [((0.05,), 400, 0.1), ((0.05, 0.1), 400, 0.2), ((0.05, 0.1), 50, 0.01)]
)
def test_what_the_snapshots_do_not_give_is_refused(tmp_path, stds, every, std):
    """Too few of them, or a width too far from theirs."""
    train(tmp_path, stds=stds, every=every, size=1)
    with pytest.raises(UserError, match=r"do not give: the nearest combination is \d+% away.*--ema_snapshot_every"):
        reconstruct(tmp_path, std)


def test_a_snapshot_that_was_cut_off(tmp_path):
    train(tmp_path, size=10)
    path = next((tmp_path / "ema_snapshots").iterdir())
    path.write_bytes(path.read_bytes()[:-3])
    with pytest.raises(UserError, match=rf"{path.name}.* is no whole snapshot .*; delete it"):
        reconstruct(tmp_path, 0.1)


def test_a_snapshot_of_another_network(tmp_path):
    train(tmp_path, size=10)
    (tmp_path / "other").mkdir()
    train(tmp_path / "other", size=11)
    name = "std_0.100_step_00000400.safetensors"
    shutil.copy(tmp_path / "other" / "ema_snapshots" / name, tmp_path / "ema_snapshots" / name)
    with pytest.raises(UserError, match="holds other tensors than the other snapshots"):
        reconstruct(tmp_path, 0.12)


# --- The command line --------------------------------------------------------------------------------------------------


@pytest.fixture
def run(tmp_path):
    """A run's folder with a real model and snapshots of its network."""
    folder, pipeline = tmp_path / "run", make_pipeline()
    folder.mkdir()
    save_model(pipeline, folder)
    parameters = dict(pipeline.unet.named_parameters())
    averages = AveragedWeights(config(0.05, 0.1), parameters)
    for step in range(1, 101):
        with torch.no_grad():
            for parameter in parameters.values():
                parameter += 0.01 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(step))
        averages.update(step)
        if step % 10 == 0:
            save_snapshot(folder, averages, step)
    return folder


def test_a_model_is_saved_that_loads(run, capsys):
    assert main([str(run), "--std", "0.12"]) == 0
    output = run / "posthoc_ema" / "std_0.120_step_00000100"
    pipeline = DDPMHubPipeline.from_pretrained(output)
    tensors, fit, *_ = reconstruct(run, 0.12)
    assert all(torch.equal(parameter, tensors[name]) for name, parameter in pipeline.unet.named_parameters())
    assert pipeline.num_classes == 3
    said = capsys.readouterr().out
    assert "width 0.12 up to step 100, from 20 snapshots" in said
    assert f"{fit.residual:.2g} of its norm away" in said
    assert str(output) in said
    assert [path.name for path in output.parent.iterdir()] == [output.name]


def test_the_output_is_never_written_over(run, tmp_path, capsys):
    assert main([str(run), "--std", "0.1", "--step", "50", "--output", str(tmp_path / "made")]) == 0
    before = {p: p.read_bytes() for p in (tmp_path / "made").rglob("*") if p.is_file()}
    assert main([str(run), "--std", "0.12", "--output", str(tmp_path / "made")]) == 2
    assert "is there already; choose another folder" in capsys.readouterr().err
    assert {p: p.read_bytes() for p in (tmp_path / "made").rglob("*") if p.is_file()} == before


def test_a_run_without_a_model(run, capsys):
    (run / "model_index.json").unlink()
    assert main([str(run), "--std", "0.12"]) == 2
    assert "whose model cannot be loaded" in capsys.readouterr().err
    assert not (run / "posthoc_ema").exists()


def test_a_model_of_another_network(run, capsys):
    save_model(make_pipeline(channels=3), run)
    assert main([str(run), "--std", "0.12"]) == 2
    assert "whose snapshots are of another network than its model" in capsys.readouterr().err


def test_started_as_a_user_starts_it(tmp_path):
    result = run_python("training/posthoc_ema.py", str(tmp_path), "--std", "0.12")
    assert result.returncode == 2
    assert result.stderr.startswith("posthoc_ema.py: error: RUN_FOLDER is ")
    assert "Traceback" not in result.stderr
