"""The average of the weights of any width, after the training: [Ka] arXiv:2312.02696, section 3.2 and appendix C.

    python training/posthoc_ema.py RUN_FOLDER --std 0.12

A run with `--ema_stds '[0.05,0.1]'` leaves snapshots of its averages. Each is a weighted mean of all weights up to its
step, with a known profile of weights. This finds the combination of the snapshots whose profile is the nearest to the one
that is asked for, and saves the model with the same combination of the stored weights.
"""

import argparse
import re
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

from durable_files import fresh_name, sync_folder, write_tensors
from train_config import UserError

SNAPSHOTS = "ema_snapshots"
# The distance of the profiles, as a share of the norm of the one asked for, at which this stops to be what was asked for.
LARGEST_RESIDUAL = 0.1
# Of the largest eigenvalue, added to all: rounding in directions in which the snapshots do not differ is not magnified.
RIDGE = 1e-12


@dataclass(frozen=True)
class Snapshot:
    """A stored average: its file, its relative width, and the step up to which it goes."""

    path: Path
    std: float
    step: int


@dataclass(frozen=True)
class Fit:
    """Weights of the snapshots, with sum 1, and the relative distance that is left between the profiles."""

    weights: list[float]
    residual: float


def snapshot_name(std: float, step: int) -> str:
    """`std_0.050_step_00000500`, with more digits where the width has more."""
    short = f"{std:.3f}"
    return f"std_{short if float(short) == std else repr(std)}_step_{step:08d}"


def save_snapshot(output: Path, averages, step: int, accelerator=None) -> None:
    """Writes the power-function averages ([`AveragedWeights`]) after a step, each file whole or not at all.

    The same weights give the same bytes: a run that goes back to a checkpoint writes the same files again.

    Args:
        output (`Path`): the run's output folder.
        averages (`AveragedWeights`): all of it; of `DTensor`s every process must call this.
        step (`int`): optimizer steps done.
        accelerator (`Accelerator`, *optional*): where several processes call this, so that the main one writes.
    """
    folder, writes = output / SNAPSHOTS, accelerator is None or accelerator.is_main_process
    if writes and averages.stds:
        folder.mkdir(exist_ok=True)
    for name, std in averages.stds.items():
        tensors = averages.state(name)
        if writes:
            path = folder / f"{snapshot_name(std, step)}.safetensors"
            write_tensors(path, tensors, {"std": repr(std), "step": str(step)})


def find_snapshots(run: Path) -> list[Snapshot]:
    """The snapshots of a run, by step and width.

    Raises:
        UserError: if there are none, or if one cannot be read.
    """
    from safetensors import SafetensorError, safe_open

    found = {}
    for path in sorted((run / SNAPSHOTS).glob("*.safetensors")):
        try:
            with safe_open(path, framework="pt") as file:
                facts = file.metadata()
            snapshot = Snapshot(path, float(facts["std"]), int(facts["step"]))
        except (SafetensorError, OSError, KeyError, TypeError, ValueError) as error:
            reason = " ".join(str(error).split())
            raise UserError(f"{str(path)!r} is no whole snapshot ({reason}); delete it and try again.") from error
        found[snapshot.step, snapshot.std] = snapshot
    if not found:
        raise UserError(
            f"RUN_FOLDER is {str(run)!r}, which holds no {SNAPSHOTS}/*.safetensors. A run leaves them when it is trained "
            f"with --ema_stds '[0.05,0.1]'."
        )
    return [found[key] for key in sorted(found)]


def fit_profiles(snapshots: list[Snapshot], std: float, step: int) -> Fit:
    """The combination of the snapshots whose profile is the nearest to that of `std` at `step`, by least squares.

    The average of exponent γ up to step t is the mean of θ(τ) with the density p(τ) = (γ + 1) τ^γ / t^(γ + 1) on [0, t]:
    exactly so of weights that stay the same from one step to the next. The inner product of two densities is then

        ⟨p_a, p_b⟩ = (γ_a + 1) (γ_b + 1) / (γ_a + γ_b + 1) · min(t_a, t_b)^(γ_a + γ_b + 1) / (t_a^(γ_a + 1) t_b^(γ_b + 1)).

    The weights have the sum 1, so that a parameter that never changed stays what it is: with r the snapshot that is the
    nearest by itself, the profile is p_r + Σ y_i (p_i − p_r), and the y_i are those of least squares. Where what is asked
    for is stored, it is p_r, all y_i are zero, and the result is the stored average to the last bit.
    """
    import torch
    from averaged_weights import gamma_of

    gammas = torch.tensor([gamma_of(s.std) for s in snapshots] + [gamma_of(std)], dtype=torch.float64)
    times = torch.tensor([s.step for s in snapshots] + [step], dtype=torch.float64)
    products = _inner_products(gammas, times)
    among, target, norm = products[:-1, :-1], products[:-1, -1], products[-1, -1]
    nearest = int((among.diagonal() - 2 * target).argmin())
    to_nearest = among[:, nearest]
    matrix = among - to_nearest[:, None] - to_nearest[None, :] + among[nearest, nearest]
    right = target - to_nearest - target[nearest] + among[nearest, nearest]
    # Without those that are the nearest one again, up to rounding.
    others = (matrix.diagonal() > RIDGE * among[nearest, nearest]).nonzero().flatten().tolist()
    weights = torch.zeros(len(snapshots), dtype=torch.float64)
    if others:
        matrix, right = matrix[others][:, others], right[others]
        lengths = matrix.diagonal().sqrt()
        values, vectors = torch.linalg.eigh(matrix / lengths[:, None] / lengths[None, :])
        share = vectors.T @ (right / lengths) / (values.clamp(min=0) + RIDGE * values[-1])
        weights[others] = vectors @ share / lengths
    weights[nearest] = 1 - weights.sum()
    distance = norm - 2 * weights @ target + weights @ among @ weights
    return Fit(weights.tolist(), (distance / norm).clamp(min=0).sqrt().item())


def _inner_products(gammas, times):
    """⟨p_a, p_b⟩ of all pairs, by logarithms: t^(γ + 1) leaves the range of float64."""
    import torch

    a, b = gammas[:, None], gammas[None, :]
    t_a, t_b = times[:, None], times[None, :]
    last = torch.minimum(t_a, t_b)
    factor = (a + 1) * (b + 1) / (a + b + 1) / last
    return factor * torch.exp((a + 1) * torch.log(last / t_a) + (b + 1) * torch.log(last / t_b))


def reconstruct(run: Path, std: float, step: int | None = None) -> tuple[dict, Fit, list[Snapshot], int]:
    """The averaged weights of relative width `std` up to `step`, by default the last with a snapshot.

    Returns:
        `tuple`: the float32 tensors by name, the fit, the snapshots in the order of its weights, and the step.

    Raises:
        UserError: if the width or the step cannot be, or if the snapshots do not give it.
    """
    from config_checks import LARGEST_EMA_STD

    if not 0 < std <= LARGEST_EMA_STD:
        raise UserError(
            f"`--std` is {std!r}; it must be above 0 and at most {LARGEST_EMA_STD:.4f}, where all steps count the same."
        )
    snapshots = find_snapshots(run)
    last = snapshots[-1].step
    step = last if step is None else step
    if not 1 <= step <= last:
        raise UserError(f"`--step` is {step}; it must be from 1 to {last}, the step of the last snapshot.")
    fit = fit_profiles(snapshots, std, step)
    if fit.residual > LARGEST_RESIDUAL:
        widths = ", ".join(f"{width:g}" for width in sorted({s.std for s in snapshots}))
        raise UserError(
            f"`--std` is {std!r} at step {step}, which {len(snapshots)} snapshots of the widths {widths} do not give: the "
            f"nearest combination is {fit.residual:.0%} away, and at most {LARGEST_RESIDUAL:.0%} is allowed. Take a width "
            f"nearer to these, or train with more snapshots (--ema_snapshot_every) or other --ema_stds."
        )
    return _combine(snapshots, fit), fit, snapshots, step


def _combine(snapshots: list[Snapshot], fit: Fit) -> dict:
    """Added up in float64, one file after the other."""
    from safetensors.torch import load_file

    total: dict = {}
    for snapshot, weight in zip(snapshots, fit.weights, strict=True):
        if weight:
            tensors = load_file(snapshot.path)
            if total and {n: t.shape for n, t in tensors.items()} != {n: t.shape for n, t in total.items()}:
                raise UserError(f"{str(snapshot.path)!r} holds other tensors than the other snapshots; delete it.")
            for name, tensor in tensors.items():
                if name in total:
                    total[name].add_(tensor.double(), alpha=weight)
                else:
                    total[name] = tensor.double() * weight
    return {name: tensor.float() for name, tensor in total.items()}


def save_reconstruction(run: Path, tensors: dict, output: Path) -> None:
    """Saves the run's model with these weights, the folder whole or not at all.

    Raises:
        UserError: if the run has no model, or one of another kind.
    """
    import torch
    from output_folder import save_model

    from ddpm_hub import DDPMHubPipeline

    try:
        pipeline = DDPMHubPipeline.from_pretrained(run)
    except (FileNotFoundError, OSError, ValueError) as error:
        raise UserError(f"RUN_FOLDER is {str(run)!r}, whose model cannot be loaded: {error}") from error
    parameters = dict(pipeline.unet.named_parameters())
    if {n: p.shape for n, p in parameters.items()} != {n: t.shape for n, t in tensors.items()}:
        raise UserError(f"RUN_FOLDER is {str(run)!r}, whose snapshots are of another network than its model.")
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(tensors[name])
    output.parent.mkdir(parents=True, exist_ok=True)
    fresh = fresh_name(output.parent, f".writing-{output.name}-")
    fresh.mkdir()
    try:
        save_model(pipeline, fresh)
        fresh.rename(output)
    finally:
        shutil.rmtree(fresh, ignore_errors=True)
    sync_folder(output.parent)


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="posthoc_ema.py", description="Saves the average of a run's weights of any width.", allow_abbrev=False
    )
    parser.add_argument("run", metavar="RUN_FOLDER", type=Path, help="a run that was trained with --ema_stds")
    parser.add_argument("--std", type=float, required=True, help="the width, as a share of the training, like 0.12")
    parser.add_argument("--step", type=int, help="up to which step; by default the last with a snapshot")
    parser.add_argument(
        "--output", type=Path, help="where the model goes; by default a folder in RUN_FOLDER/posthoc_ema"
    )
    args = parser.parse_args(argv)
    try:
        if args.output is not None:
            _check_free(args.output)
        tensors, fit, snapshots, step = reconstruct(args.run, args.std, args.step)
        output = args.output or args.run / "posthoc_ema" / snapshot_name(args.std, step)
        _check_free(output)
        save_reconstruction(args.run, tensors, output)
    except (UserError, OSError) as error:
        print(f"posthoc_ema.py: error: {error}", file=sys.stderr)
        return 2 if isinstance(error, UserError) else 1
    used = [(w, s) for w, s in zip(fit.weights, snapshots, strict=True) if w]
    print(f"The average of width {args.std:g} up to step {step}, from {len(used)} snapshots:")
    for weight, snapshot in sorted(used, key=lambda item: -abs(item[0]))[:10]:
        print(f"  {weight:+9.4f} × {re.sub('[.]safetensors$', '', snapshot.path.name)}")
    if len(used) > 10:
        print(f"  and {len(used) - 10} with smaller weights")
    print(f"Its profile is {fit.residual:.2g} of its norm away from the one asked for. Saved in {output}.")
    return 0


def _check_free(output: Path) -> None:
    if output.exists() and not (output.is_dir() and not any(output.iterdir())):
        raise UserError(f"`--output` is {str(output)!r}, which is there already; choose another folder.")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
