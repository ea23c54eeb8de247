"""What training minimises: L_simple, L_vlb, or both ([Ho] is arXiv:2006.11239, [ND] Nichol & Dhariwal 2021, arXiv:2102.09672)."""

from typing import NamedTuple

import torch
from random_batches import Batch
from train_config import TrainConfig

from ddpm_hub import DDPMHubScheduler
from ddpm_hub.ddpm_equations import normalize, snr_loss_weight
from ddpm_hub.ddpm_sample_arithmetic import columns_at
from ddpm_hub.variational_bound import NATS_PER_BIT, VariationalBound

BIT_DEPTHS = {torch.uint8: 8, torch.uint16: 16}


class Losses(NamedTuple):
    """The losses of one pass.

    Attributes:
        loss (`torch.Tensor` of `float32`, shape ()): what is differentiated.
        per_image (`torch.Tensor` of `float32`, shape (B,)): each image's loss before importance weights, detached.
    """

    loss: torch.Tensor
    per_image: torch.Tensor


class Objective:
    """The loss of a configuration, from a batch of pixels to the number that is differentiated.

    - `simple`: each image's mean squared error of the prediction ([Ho] equation 14), times `loss_weighting` by t.
    - `vlb`: T·L_{t−1} in bits per dimension. With t drawn uniformly (or weighted as if it were) its mean is the variational
      bound itself, less L_T, which nothing trains, so the log shows bits per dimension. On the error of ε (linear
      schedule, T = 1000, `fixed_small`) this puts a weight of 9.9 at half of all t and 865 at t = 2, where L_simple has 1;
      the mean over t in nats, T/ln 2 times less, would have 0.007 and 0.6, too little for `max_grad_norm` to hold its
      outliers back.
    - `hybrid`: L_simple + `vlb_weight`·L_vlb, in which the bound trains the variance alone ([ND] equation 16). In these
      units `vlb_weight` is their λ, and 0.001 weighs a term T/1000 bits.
    - `simple_and_vlb`: the same sum, in which the bound trains the mean as well: L_simple hardly counts the errors at the
      least noise, of which most of the bits consist.

    `loss_weighting` counts in the error of x_0 (Hang et al. 2023, arXiv:2303.09556): `snr` is the loss of ε whatever the
    network predicts, `min_snr` has the SNR cut off at `min_snr_gamma`. It has no say in L_vlb.

    Samples, targets and losses are float32; what the network returns in less is converted. Nothing is read on the host.

    Args:
        config (`TrainConfig`): `objective`, `vlb_weight`, `loss_weighting` and `min_snr_gamma`.
        scheduler (`DDPMHubScheduler`): the schedule, the prediction type and the variance. With `learned_range` the network
            returns 2C channels, and L_simple is that of the first C.
    """

    def __init__(self, config: TrainConfig, scheduler: DDPMHubScheduler):
        self._config = config
        self._scheduler = scheduler
        self._loss_weights = {torch.device("cpu"): _loss_weights(config, scheduler).float()[None]}
        self._bounds = {dtype: VariationalBound(scheduler, bits) for dtype, bits in BIT_DEPTHS.items()}

    def __call__(self, model, batch: Batch) -> Losses:
        """The losses of `model` on one batch.

        Args:
            model (`Callable`): `model(x_t, timesteps, class_labels=labels, return_dict=False)[0]` is the prediction.
            batch (`Batch`): pixels of 8 or 16 bits, which the decoder of L_vlb counts in.
        """
        x_0, timesteps = normalize(batch.pixels), batch.timesteps
        x_t = self._scheduler.add_noise(x_0, batch.noise, timesteps)
        output = model(x_t, timesteps, class_labels=batch.labels, return_dict=False)[0].float()
        objective = self._config.objective
        if objective == "vlb":
            per_image = self._bits(output, x_0, x_t, batch, stop_gradient_at_mean=False)
        else:
            per_image = self._simple(output, x_0, batch)
        if objective in ("hybrid", "simple_and_vlb"):
            bits = self._bits(output, x_0, x_t, batch, stop_gradient_at_mean=objective == "hybrid")
            per_image = per_image + self._config.vlb_weight * bits
        weighted = per_image if batch.loss_weights is None else per_image * batch.loss_weights
        return Losses(weighted.mean(), per_image.detach())

    def _simple(self, output: torch.Tensor, x_0: torch.Tensor, batch: Batch) -> torch.Tensor:
        """L_simple of each image, weighted by t."""
        target = self._scheduler.training_target(x_0, batch.noise, batch.timesteps)
        channels = x_0.shape[1]
        prediction = output if output.shape[1] == channels else output.narrow(1, 0, channels)
        errors = torch.nn.functional.mse_loss(prediction, target, reduction="none").mean(dim=(1, 2, 3))
        if self._config.loss_weighting == "none":
            return errors
        device = x_0.device
        if device not in self._loss_weights:
            self._loss_weights[device] = self._loss_weights[torch.device("cpu")].to(device)
        return errors * columns_at(self._loss_weights[device], batch.timesteps).squeeze(0)

    def _bits(self, output, x_0, x_t, batch: Batch, stop_gradient_at_mean: bool) -> torch.Tensor:
        """T·L_{t−1} of each image, in bits per dimension."""
        bound = self._bounds[batch.pixels.dtype]
        terms = bound.terms(output, x_0, x_t, batch.timesteps, stop_gradient_at_mean=stop_gradient_at_mean)
        return terms * (len(self._scheduler) / NATS_PER_BIT)


def _loss_weights(config: TrainConfig, scheduler: DDPMHubScheduler) -> torch.Tensor:
    """`loss_weighting` for the squared error of what the network predicts, by t: float64, shape (T,)."""
    log_abar = scheduler.log_alphas_cumprod[1:]
    if config.loss_weighting == "none":
        return torch.ones_like(log_abar)
    largest = config.min_snr_gamma if config.loss_weighting == "min_snr" else float("inf")
    return snr_loss_weight(scheduler.config.prediction_type, log_abar, largest)
