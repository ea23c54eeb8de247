"""Short runs of train.py: their arguments, what is done to them, and whether two of them came to the same."""

import signal
from pathlib import Path

from output_folder import claim_output, config_mark
from train_config import TrainConfig

# Everything that has a state: several averages, importance sampling, drop-out, flips, crops, accumulation, validation.
BUSY = [
    "--block_out_channels", "[8,16]", "--max_train_steps", "40", "--warmup_steps", "5", "--batch_size", "8",
    "--num_train_timesteps", "20", "--beta_end", "0.75", "--num_inference_steps", "2", "--fidelity_samples", "0",
    "--checkpoint_every", "7", "--log_every", "4", "--sample_every", "25", "--validation_split", "train[:40]",
    "--validation_every", "10", "--validation_images", "20", "--ema_decays", "[0.99,0.9]", "--ema_stds", "[0.05,0.1]",
    "--ema_snapshot_every", "15", "--timestep_sampling", "importance", "--dropout", "0.1", "--random_flip", "true",
    "--random_crop", "2", "--resolution", "8", "--split", "train[40:]",
]  # fmt: skip
SMALL = ["--block_out_channels", "[8,16]", "--max_train_steps", "12", "--warmup_steps", "2", "--batch_size", "8",
         "--num_inference_steps", "2", "--fidelity_samples", "0", "--sample_every", "0", "--log_every", "1"]  # fmt: skip

# A patch after which process `rank` does something once a step is reached.
AT_STEP = """
import os, trainer
step = trainer.Trainer.step
def act(self):
    step(self)
    if self.step_count == {step} and os.environ.get("RANK", "0") == "{rank}":
        {act}
trainer.Trainer.step = act
"""


def signalled(step: int, number: int = signal.SIGTERM, rank: int = 0) -> str:
    """A process is sent a signal."""
    return AT_STEP.format(step=step, rank=rank, act=f"os.kill(os.getpid(), {int(number)})")


def result_of(folder: Path) -> dict[str, bytes]:
    """All that must not depend on what happened: weights, averages, optimizer, snapshots, pictures and logs."""
    last = max((folder / "checkpoints").iterdir())
    files = [*last.glob("*.safetensors"), *folder.glob("*.csv"), *folder.glob("ema_snapshots/*"),
             folder / "unet" / "diffusion_pytorch_model.safetensors", *folder.glob("samples/**/*.png")]  # fmt: skip
    return {str(file.relative_to(folder)): file.read_bytes() for file in files}


def assert_same(folder: Path, other: Path) -> None:
    ours, theirs = result_of(folder), result_of(other)
    assert ours.keys() == theirs.keys()
    assert [name for name in ours if ours[name] != theirs[name]] == []


def claim(folder: Path, config: TrainConfig, in_place: bool = False) -> None:
    """A run that takes a folder, as it finds it, and ends at once."""
    with claim_output(folder, config, in_place, config_mark(folder)):
        pass
