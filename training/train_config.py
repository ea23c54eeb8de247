"""The configuration of a training run: one dataclass is the command line, the YAML file and the record of the run.

Imports nothing heavy, so that `train.py --help` is instant and a mistake is told at once.
"""

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from config_checks import UserError, check_config

__all__ = ["REPOSITORY", "TrainConfig", "UserError"]

REPOSITORY = Path(__file__).resolve().parent.parent


@dataclass(frozen=True)
class TrainConfig:
    """The defaults train the embedded digits.

    Args:
        dataset_name: a Hub data set, a local folder (Parquet files or an image folder), or a data set saved with
            `save_to_disk`. A relative folder is looked up in the working directory, then in this repository.
        dataset_config: the configuration of a data set that has several.
        split: the split to train on.
        image_column: the column with the images; by default the one whose feature type is `Image` (or else `Array2D` or
            `Array3D`, channels first, of 8- or 16-bit unsigned integers).
        label_column: the column with the classes; by default the one whose feature type is `ClassLabel`, if any.
        class_conditional: whether to train on the classes, where there are any.
        streaming: read the images as they come instead of decoding all of them first, for sets larger than the disk.
        shuffle_buffer: images that are shuffled together when streaming.
        resolution: height and width of the images, one number or `[height, width]`; by default the data's own. Images of
            another size are scaled until they cover it, and cropped in the middle.
        random_crop: prepare the images this many pixels higher and wider than `resolution`, and cut a window out at random
            each time.
        random_flip: mirror every second image left to right, at random each time.
        image_mode: convert every image to `L`, `RGB` or `RGBA`; by default the data's own mode.
        unreadable_images: `refuse` to train when images cannot be read, or `skip` them; they are listed in a report.
        cache_dir: where decoded images are kept; by default `ddpm_hub` in the folder of the Hugging Face caches.
        validation_split: a split on which the loss is measured, with the same noise each time, like `test` or
            `train[90%:]`.
        validation_images: how many images of it, the first ones.
        validation_every: optimizer steps between such measurements.
        output_dir: where the model, its grids and its figures go. An earlier run there is kept beside it.
        license: under which the model is published, as an identifier of the Hub (`mit`, `cc-by-4.0`, …).
        block_out_channels: channels of the U-Net at each resolution; each further level halves the image.
        layers_per_block: residual blocks at each level.
        attention_resolutions: image heights at which the U-Net has self-attention, beside the middle.
        attention_head_dim: channels of each attention head; null for one head.
        norm_num_groups: groups of the U-Net's group normalisation.
        dropout: drop-out in the U-Net.
        unet_options: further arguments of diffusers' `UNet2DModel`, by name.
        init_from: a model whose weights training begins with instead of random ones, a folder or `USER/NAME` of the Hub. Its
            network must be the one that this configuration describes, or have fewer layers or less attention; its classes may be
            others.
        gradient_checkpointing: compute activations again in the backward pass, which takes less memory and more time.
        compile: compile the network with `torch.compile`; refused on a CPU, where PyTorch then computes wrong gradients.
        num_train_timesteps: T.
        beta_schedule: `linear`, `scaled_linear`, `squaredcos_cap_v2` or `sigmoid`.
        beta_start: β_1, of all schedules but `squaredcos_cap_v2`.
        beta_end: β_T, likewise.
        rescale_betas_zero_snr: change the schedule so that nothing of the image is left at t = T.
        prediction_type: what the network predicts: `epsilon`, `sample` or `v_prediction`.
        variance_type: the variance of the reverse step: `fixed_small`, `fixed_large` or `learned_range`.
        objective: `simple` (the mean squared error), `vlb` (the variational bound), `hybrid` (both, where the bound trains the
            variance alone) or `simple_and_vlb` (both, where it trains the mean as well).
        vlb_weight: of the variational bound in `hybrid` and `simple_and_vlb`.
        loss_weighting: of the mean squared error by t: `none`, `snr` (SNR, as error of x_0) or `min_snr` (at most γ).
        min_snr_gamma: γ of `min_snr`.
        timestep_sampling: how t is drawn: `uniform`, `stratified` over each batch, or by `importance`.
        importance_uniform_share: of the draws by importance, how many stay uniform, so that a t whose losses were small is
            still looked at. A loss is multiplied by at most 1 over it. The bound's terms span four orders of magnitude.
        class_dropout: how often a class is replaced by the null class, so that the model also learns to do without.
        max_train_steps: optimizer steps.
        batch_size: images per optimizer step, over all processes and accumulation steps.
        gradient_accumulation_steps: into how many passes each process splits its part of a batch.
        optimizer: `adamw`, or `muon`, which is Muon for the weights of hidden layers and AdamW for all others.
        learning_rate: the highest rate, of either optimizer.
        lr_schedule: after the warm-up the rate is `constant`, or falls to zero by `cosine` or `linear`, counted in
            optimizer steps.
        warmup_steps: optimizer steps in which the rate rises from zero.
        weight_decay: the share of each weight that a step at rate 1 would take away (decoupled from the gradient).
        max_grad_norm: gradients are scaled down to this norm.
        max_skipped_steps: a step whose loss or gradient is not finite is skipped; training stops after this many in a row.
        ema_decays: averages of the weights, one for each number: its largest decay; early on it is lower,
            1 − (1 + step)^(−3/4). The first is the model that is sampled and saved.
        ema_stds: power-function averages, one for each relative width (0.05, 0.1); `training/posthoc_ema.py` makes an
            average of any width from two of them.
        ema_snapshot_every: optimizer steps between snapshots of the power-function averages.
        mixed_precision: `no`, `fp16` or `bf16`, for the network only; `auto` is `bf16` where the device computes faster in it.
        seed: of the first weights, the order of the data, the noise and the samples.
        resume: continue from the newest checkpoint in `output_dir`; `false` begins anew, beside the earlier run.
        checkpoint_every: optimizer steps between checkpoints; 0 for none but the last.
        checkpoints_kept: older ones are deleted.
        log_every: optimizer steps between lines of the log.
        report_to: trackers beside the log on disk: `tensorboard`, `wandb`, `trackio`.
        tracker_project: under which name they list the run.
        sample_every: optimizer steps between sample grids; 0 for none but the last.
        sampler: with which the grids and the scored samples are drawn, `ddpm`, `ddim`, `dpm++`, `sde-dpm++` or `unipc`; this and the
            four that follow are stored with the model, as what it is sampled with where a call says nothing else.
        num_inference_steps: steps of the sampler.
        eta: of `ddpm` (1 by default) and `ddim` (0 by default), from 0 to 1.
        guidance_scale: w of classifier-free guidance, with which classes are drawn; 1 is none. It takes two network
            evaluations a step.
        guidance_interval: the smallest and the largest timestep at which there is guidance (arXiv:2404.07724); all, if it is
            left out.
        fidelity_samples: class-conditional samples that a classifier judges at the end; 0 for none.
        push_to_hub: `USER/NAME` on the Hub, where the finished model is published; needs HF_TOKEN or `hf auth login`.
        hub_private_repo: whether only its owner sees that repository, if it is new.
        dry_run: print the resolved configuration, what it takes and how long, after a few timed steps; write nothing.
    """

    dataset_name: str = "training/data/digits"
    dataset_config: str | None = None
    split: str = "train"
    image_column: str | None = None
    label_column: str | None = None
    class_conditional: bool = True
    streaming: bool = False
    shuffle_buffer: int = 10_000
    resolution: int | tuple[int, int] | None = None
    random_crop: int = 0
    random_flip: bool = False
    image_mode: str | None = None
    unreadable_images: str = "refuse"
    cache_dir: str | None = None
    validation_split: str | None = None
    validation_images: int = 1000
    validation_every: int = 500
    output_dir: str = "outputs/digits"
    license: str = "apache-2.0"

    block_out_channels: tuple[int, ...] = (32, 64)
    layers_per_block: int = 1
    attention_resolutions: tuple[int, ...] = ()
    attention_head_dim: int | None = 8
    norm_num_groups: int = 8
    dropout: float = 0.0
    unet_options: dict[str, Any] = dataclasses.field(default_factory=dict)
    init_from: str | None = None
    gradient_checkpointing: bool = False
    compile: bool = False

    num_train_timesteps: int = 1000
    beta_schedule: str = "linear"
    beta_start: float = 1e-4
    beta_end: float = 0.02
    rescale_betas_zero_snr: bool = False
    prediction_type: str = "epsilon"
    variance_type: str = "fixed_small"

    objective: str = "simple"
    vlb_weight: float = 0.001
    loss_weighting: str = "none"
    min_snr_gamma: float = 5.0
    timestep_sampling: str = "uniform"
    importance_uniform_share: float = 0.001
    class_dropout: float = 0.1
    max_train_steps: int = 800
    batch_size: int = 64
    gradient_accumulation_steps: int = 1
    optimizer: str = "adamw"
    learning_rate: float = 1e-3
    lr_schedule: str = "cosine"
    warmup_steps: int = 100
    weight_decay: float = 1e-4
    max_grad_norm: float = 1.0
    max_skipped_steps: int = 20
    ema_decays: tuple[float, ...] = (0.9999,)
    ema_stds: tuple[float, ...] = ()
    ema_snapshot_every: int = 500
    mixed_precision: str = "no"
    seed: int = 0

    resume: bool = True
    checkpoint_every: int = 500
    checkpoints_kept: int = 2
    log_every: int = 20
    report_to: tuple[str, ...] = ()
    tracker_project: str = "ddpm_hub"
    sample_every: int = 400
    sampler: str = "ddpm"
    num_inference_steps: int = 20
    eta: float | None = None
    guidance_scale: float = 1.0
    guidance_interval: tuple[int, int] | None = None
    fidelity_samples: int = 200

    push_to_hub: str | None = None
    hub_private_repo: bool = True
    dry_run: bool = False

    def __post_init__(self):
        check_config(self)

    def sampling(self, has_classes: bool) -> dict:
        """How the model is sampled, as it is stored with it: [`DDPMHubPipeline`]'s `sampling`."""
        settings = {"sampler": self.sampler, "num_inference_steps": self.num_inference_steps, "eta": self.eta}
        if has_classes:
            interval = None if self.guidance_interval is None else list(self.guidance_interval)
            settings |= {"guidance_scale": self.guidance_scale, "guidance_interval": interval}
        return {name: value for name, value in settings.items() if value is not None}

    def to_yaml(self) -> str:
        """The resolved configuration; [`parse_config`] reads it back to an equal one."""
        return yaml.safe_dump(dataclasses.asdict(self), sort_keys=False, allow_unicode=True)
