"""What changes while a model is trained, the step that changes it, and how it is saved and found again.

[Ho] algorithm 1 with the configured optimizer and averaged weights; [Ho] is arXiv:2006.11239.
"""

from pathlib import Path

import torch
from accelerate import Accelerator
from averaged_weights import AveragedWeights
from checkpoints import Checkpoint, save_checkpoint
from image_data import ImageData
from layer_speed import place_for_training
from learning_rate import learning_rate
from objectives import Objective
from optimizer import build_optimizer
from random_batches import Batches, generator
from sharded_tensors import divided_as, whole
from streamed_images import StreamedImages
from timestep_sampling import TimestepSampler
from train_config import TrainConfig
from train_log import StepTotals

from ddpm_hub import DDPMHubPipeline
from ddpm_hub.ddpm_network_calls import keep_freed_memory


class Trainer:
    """A training run between two steps.

    Attributes:
        step_count (`int`): optimizer steps done, skipped ones included.
        model: the network as accelerate prepared it, for the forward pass in training.
        unet (`UNet2DModel`): the network itself; in training it holds the raw weights.
        averages (`AveragedWeights`): the averages of its parameters.
        totals (`StepTotals`): what the steps leave for the log.
    """

    def __init__(
        self,
        config: TrainConfig,
        data: ImageData | StreamedImages,
        pipeline: DDPMHubPipeline,
        accelerator: Accelerator,
    ):
        self.config, self.accelerator, self.step_count = config, accelerator, 0
        if accelerator.device.type == "cpu":
            keep_freed_memory()
        self.unet = place_for_training(pipeline.unet, accelerator)
        if config.gradient_checkpointing:
            self.unet.enable_gradient_checkpointing()
        self.model, self.optimizer = accelerator.prepare(self.unet, build_optimizer(config, self.unet))
        self.averages = AveragedWeights(config, dict(self.unet.named_parameters()))
        self.objective = Objective(config, pipeline.scheduler)
        self.timesteps = TimestepSampler(config, accelerator.device)
        self.batches = Batches(config, data, accelerator.device, accelerator.process_index, accelerator.num_processes)
        self.totals = StepTotals(config, accelerator)

        self._position: dict | None = None  # of the data, in a checkpoint

    def start(self) -> None:
        """Begins to prepare batches, from the step that was reached."""
        self.batches.start(self.step_count, self._position)

    def step(self) -> None:
        """One step of the optimizer. The host waits for nothing here that the device computes."""
        step, accelerator = self.step_count, self.accelerator
        timesteps, weights = self.timesteps.draw(step)
        parts = self.batches.next(timesteps, weights)
        losses = []
        for number, batch in enumerate(parts):
            if self.config.dropout:
                self._seed_dropout(step, number)
            with accelerator.accumulate(self.model):
                result = self.objective(self.model, batch)
                # A loss that is not finite makes the gradient NaN in every process, so that all skip the same steps.
                accelerator.backward(result.loss * torch.where(result.loss.isfinite(), 1.0, torch.nan))
                losses.append(result.per_image)
                if accelerator.sync_gradients:
                    norm = accelerator.clip_grad_norm_(self.unet.parameters(), self.config.max_grad_norm)
                    self._update(norm)
                self.optimizer.zero_grad()
        self.step_count += 1
        self.averages.update(self.step_count)
        own = torch.cat([batch.timesteps for batch in parts])
        own_weights = None if weights is None else torch.cat([batch.loss_weights for batch in parts])
        self.totals.add(self.step_count, own, torch.cat(losses), whole(norm), own_weights)
        if self.timesteps.needs_losses:
            self.timesteps.update(timesteps, self._in_slot_order(torch.stack(losses)))

    def _update(self, norm: torch.Tensor) -> None:
        optimizer = self.optimizer.optimizer
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(self.config, self.step_count)
        if self.accelerator.scaler is None:  # the scaler of fp16 does the same
            # The optimizer leaves everything as it is where this is 1; it is read on the device.
            optimizer.grad_scale, optimizer.found_inf = None, (~whole(norm).isfinite()).float()
        self.optimizer.step()

    def _seed_dropout(self, step: int, number: int) -> None:
        seed = generator(
            self.config.seed, "network dropout", step, number, self.accelerator.process_index
        ).initial_seed()
        torch.manual_seed(seed)

    def _in_slot_order(self, losses: torch.Tensor) -> torch.Tensor:
        """The losses of the whole batch, from this process's, of shape (parts, share)."""
        gathered = self.accelerator.gather(losses)  # process by process
        by_process = gathered.view(self.accelerator.num_processes, *losses.shape)
        return by_process.transpose(0, 1).reshape(-1)

    # --- Saving and loading ---

    def save(self, folder: Path, state: dict) -> None:
        """Writes a checkpoint of this step, with `state` in it; to be called by every process."""
        tensors = {"model": {name: whole(p.detach()) for name, p in self.unet.state_dict().items()}}
        tensors["optimizer"] = {
            f"{key}.{name}": whole(value)
            for name, parameter in self.unet.named_parameters()
            for key, value in self.optimizer.optimizer.state[parameter].items()
        }
        for name in self.averages.names:
            tensors[f"average_{name}"] = self.averages.state(name)
        if sampler := self.timesteps.state():
            tensors["timesteps"] = sampler
        scaler = self.accelerator.scaler
        state = state | {
            "step": self.step_count,
            "mixed_precision": self.accelerator.mixed_precision,
            "position": self.batches.position(),
            "totals": self.totals.state(),
            "scaler": None if scaler is None else scaler.state_dict(),
        }
        if self.accelerator.is_main_process:
            save_checkpoint(folder, self.step_count, tensors, state, self.config.checkpoints_kept)
        self.accelerator.wait_for_everyone()

    def load(self, checkpoint: Checkpoint) -> None:
        """Goes back to the step of a checkpoint, exactly."""
        network = self.unet.state_dict()
        for name, value in checkpoint.tensors("model").items():
            network[name].copy_(divided_as(value, network[name]))
        saved = checkpoint.tensors("optimizer")
        keys = sorted({entry.split(".", 1)[0] for entry in saved})
        for name, parameter in self.unet.named_parameters():
            state = {key: saved[f"{key}.{name}"] for key in keys if f"{key}.{name}" in saved}
            for key, value in state.items():
                # A count of steps is a number; all else has the parameter's shape and layout.
                state[key] = value.to(parameter.device) if value.ndim == 0 else _laid_out_as(parameter, value)
            if state:
                self.optimizer.optimizer.state[parameter] = state
        for name in self.averages.names:
            self.averages.load(name, checkpoint.tensors(f"average_{name}"))
        if self.timesteps.state():
            self.timesteps.load(checkpoint.tensors("timesteps"))
        if self.accelerator.scaler is not None:
            self.accelerator.scaler.load_state_dict(checkpoint.state["scaler"])
        self.totals.load(checkpoint.state["totals"])
        self.step_count, self._position = checkpoint.state["step"], checkpoint.state["position"]


def _laid_out_as(parameter: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    return torch.zeros_like(parameter).copy_(divided_as(value, parameter))
