"""What is noted while training: sums on the device during the steps, tables on disk between them."""

import csv
import io
import math
from pathlib import Path

import torch
from accelerate import Accelerator
from output_folder import write_whole
from train_config import TrainConfig

QUARTILES = 4  # of t


class NotFiniteError(RuntimeError):
    """Too many steps in a row had a loss or a gradient that is not finite."""


class Table:
    """Rows of numbers that are kept in memory, saved in checkpoints, and written as one CSV file.

    Attributes:
        columns (`tuple[str, ...]`): the first is `step`.
        rows (`list[list]`): numbers, `None` where there is none.
    """

    def __init__(self, file: Path, columns: tuple[str, ...]):
        self.file, self.columns, self.rows = file, columns, []

    def add(self, *values: float | None) -> None:
        self.rows.append([None if value is None or not math.isfinite(value) else value for value in values])

    def column(self, name: str) -> list:
        return [row[self.columns.index(name)] for row in self.rows]

    def last(self) -> dict[str, float]:
        """The numbers of the last row, by column."""
        return {
            name: v for name, v in zip(self.columns, self.rows[-1], strict=True) if v is not None and name != "step"
        }

    def save(self) -> None:
        """Writes the whole file, as it is at the beginning or at a checkpoint."""
        write_whole(self.file, self._lines([self.columns, *self.rows]))

    def append(self) -> None:
        """Writes the last row."""
        with self.file.open("a", encoding="utf-8", newline="") as file:
            file.write(self._lines(self.rows[-1:]))

    @staticmethod
    def _lines(rows: list) -> str:
        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerows(rows)
        return text.getvalue()


class StepTotals:
    """Sums over the steps of one interval, on the device: nothing here waits for it until [`read`].

    A step whose gradient is not finite is counted as skipped and left out of the sums.
    """

    def __init__(self, config: TrainConfig, accelerator: Accelerator):
        self._accelerator = accelerator
        self._timesteps = config.num_train_timesteps
        self._limit = config.max_skipped_steps
        self._edges = torch.arange(QUARTILES, device=accelerator.device)
        zero = torch.zeros((), device=accelerator.device)
        self._steps, self._norm, self._skipped = zero.clone(), zero.clone(), zero.clone()
        self._streak, self._worst, self._worst_step = zero.clone(), zero.clone(), zero.clone()
        # Least and largest t of the steps that were skipped in a row: of the losses that are not finite, and of all.
        self._nowhere = torch.tensor([config.num_train_timesteps, -1.0] * 2, device=accelerator.device)
        self._range, self._worst_range = self._nowhere.clone(), self._nowhere.clone()
        self._losses = torch.zeros(2, QUARTILES, device=accelerator.device)  # sums of the losses and of their weights

    def add(
        self,
        step: int,
        timesteps: torch.Tensor,
        losses: torch.Tensor,
        norm: torch.Tensor,
        weights: torch.Tensor | None = None,
    ) -> None:
        """Adds a step.

        Args:
            step (`int`): its number, from 1.
            timesteps, losses (`torch.Tensor`, shape (B,)): t and the loss of this process's images.
            norm (`torch.Tensor`, shape ()): the gradient's norm before it is scaled down.
            weights (`torch.Tensor`, shape (B,), *optional*): importance weights; the means are those of a uniform t.
        """
        weights = torch.ones_like(losses) if weights is None else weights
        good = norm.isfinite()
        quartile = (timesteps * QUARTILES // self._timesteps)[:, None] == self._edges
        finite = losses.isfinite()
        counted = quartile & finite[:, None] & good
        self._losses[0] += torch.where(counted, (weights * losses)[:, None], 0.0).sum(0)
        self._losses[1] += torch.where(counted, weights[:, None], 0.0).sum(0)
        self._norm += torch.where(good, norm, 0.0)
        self._steps += good
        self._skipped += ~good
        self._streak = torch.where(good, 0.0, self._streak + 1)
        self._range = torch.where(good, self._nowhere, self._widened(timesteps, finite))
        is_worst = self._streak > self._worst
        self._worst_step = torch.where(is_worst, step, self._worst_step)
        self._worst_range = torch.where(is_worst, self._range, self._worst_range)
        self._worst = torch.maximum(self._worst, self._streak)

    def _widened(self, timesteps: torch.Tensor, finite: torch.Tensor) -> torch.Tensor:
        lowest, highest, lowest_of_all, highest_of_all = self._range.unbind()
        suspects = torch.where(finite, self._nowhere[0], timesteps), torch.where(finite, -1, timesteps)
        return torch.stack([
            suspects[0].amin().minimum(lowest), suspects[1].amax().maximum(highest),
            timesteps.amin().minimum(lowest_of_all), timesteps.amax().maximum(highest_of_all),
        ])  # fmt: skip

    def _own(self) -> torch.Tensor:
        """All sums of this process in one row."""
        own = [self._steps, self._norm, self._skipped, self._streak, self._worst, self._worst_step]
        own = torch.stack([value.float() for value in own])
        return torch.cat([self._losses.flatten(), own, self._range, self._worst_range])

    def state(self) -> list[list[float]]:
        """A row for each process, for a checkpoint; to be called by all of them."""
        return self._accelerator.gather(self._own()[None]).tolist()

    def load(self, state: list[list[float]]) -> None:
        """Goes on from [`state`], also with another number of processes."""
        process, count = self._accelerator.process_index, self._accelerator.num_processes
        rows = torch.tensor(state, device=self._accelerator.device)
        losses = rows[:, : 2 * QUARTILES]
        if len(rows) != count:  # one process takes all
            losses = torch.cat([losses.sum(0, keepdim=True), losses.new_zeros(count - 1, 2 * QUARTILES)])
        self._losses = losses[process].view(2, QUARTILES).clone()
        self._steps, self._norm, self._skipped, self._streak, self._worst, self._worst_step = (
            rows[0, 2 * QUARTILES : -8].clone().unbind()
        )
        self._range, self._worst_range = whole_range(rows[:, -8:-4]), whole_range(rows[:, -4:])

    def read(self) -> dict[str, float]:
        """The means since the last call, over all processes, and the number of skipped steps since the beginning.

        Raises:
            NotFiniteError: if `max_skipped_steps` steps in a row were skipped.
        """
        rows = self._accelerator.gather(self._own()[None]).cpu().double()
        sums, weights = rows[:, :QUARTILES].sum(0), rows[:, QUARTILES : 2 * QUARTILES].sum(0)
        steps, norm, skipped, _, worst, worst_step = rows[0, 2 * QUARTILES : -8].tolist()
        if worst >= self._limit:
            low, high, lowest, highest = whole_range(rows[:, -4:]).tolist()
            if high < 0:  # every loss was finite: it is the gradient that was not, and any of these t may be the cause
                low, high = lowest, highest
            raise NotFiniteError(
                f"{worst:.0f} steps in a row, up to step {worst_step:.0f}, had a loss or gradient that is not finite, at "
                f"t from {low:.0f} to {high:.0f}"
            )
        names = [f"loss_q{q + 1}" for q in range(QUARTILES)]
        means = dict(zip(names, (sums / weights).tolist(), strict=True))
        for value in (self._losses, self._steps, self._norm):
            value.zero_()
        return {
            "loss": (sums.sum() / weights.sum()).item(),
            **means,
            "grad_norm": norm / steps if steps else math.nan,
            "skipped_steps": int(skipped),
        }


def whole_range(rows: torch.Tensor) -> torch.Tensor:
    """The range of t over all processes, from a row of each: least and largest, twice."""
    return torch.stack([rows[:, 0].amin(), rows[:, 1].amax(), rows[:, 2].amin(), rows[:, 3].amax()])
