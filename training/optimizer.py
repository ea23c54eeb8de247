"""The optimizer: AdamW, or Muon for the weights of hidden layers and AdamW for all others.

[Jordan] is Keller Jordan et al. 2024, https://kellerjordan.github.io/posts/muon/; [Liu] is arXiv:2502.16982.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from sharded_tensors import divided_as, own_part, whole

if TYPE_CHECKING:
    from train_config import TrainConfig

MOMENTUM = 0.95
# p(x) = a·x + b·x³ + c·x⁵, which brings singular values from 0.01 to 1 near 1 when it is applied five times; [Jordan].
QUINTIC = (3.4445, -4.7750, 2.0315)
ITERATIONS = 5
SMALLEST_NORM = 1e-7
# The root mean square that an update of AdamW has about, to which Muon's is scaled; [Liu] section 2.2.
UPDATE_RMS = 0.2


def build_optimizer(config: TrainConfig, network: torch.nn.Module) -> torch.optim.Optimizer:
    """The optimizer of all parameters of a network; its `found_inf` is read on the device, and skips a step where it is 1."""
    settings = {"lr": config.learning_rate, "weight_decay": config.weight_decay}
    if config.optimizer == "adamw":
        return torch.optim.AdamW(network.parameters(), fused=True, **settings)
    matrices = hidden_weights(network)
    are_matrices = set(map(id, matrices))
    return Muon(matrices, [p for p in network.parameters() if id(p) not in are_matrices], **settings)


def hidden_weights(network: torch.nn.Module) -> list[torch.nn.Parameter]:
    """What Muon moves: the weights of convolutions and linear layers, but not of a U-Net's first and last convolution, whose
    input or output is an image."""
    ends = [getattr(network, name, None) for name in ("conv_in", "conv_out")]
    layers = (m for m in network.modules() if isinstance(m, torch.nn.Conv2d | torch.nn.Linear))
    return [layer.weight for layer in layers if not any(layer is end for end in ends)]


def moment_numbers(config: TrainConfig, network: torch.nn.Module) -> int:
    """How many numbers the optimizer keeps: AdamW two of each parameter, Muon one."""
    both = 2 * sum(parameter.numel() for parameter in network.parameters())
    return both if config.optimizer == "adamw" else both - sum(weight.numel() for weight in hidden_weights(network))


class Muon(torch.optim.AdamW):
    """Muon [Jordan] for matrices, AdamW for what else there is, in one optimizer, as the scaler of fp16 needs it.

    A weight of shape (out, in, height, width) is a matrix of out × (in · height · width). Of its gradient's average with
    Nesterov's look ahead, U S Vᵀ, it moves along about U Vᵀ, times `UPDATE_RMS` · √(the longer side), so that rate and decay
    are those of AdamW [Liu]. Differs from `torch.optim.Muon`: it takes convolutions, computes in float32, reads `found_inf`
    and `grad_scale`, and takes parameters that FSDP has divided, of which each process then computes every matrix.

    Args:
        matrices: the weights that Muon moves, of two or more axes.
        others: the parameters that AdamW moves.
        lr, weight_decay: of both; the decay is decoupled from the gradient.
    """

    def __init__(self, matrices: list, others: list, lr: float, weight_decay: float):
        groups = [{"params": matrices, "muon": True}, {"params": others, "muon": False}]
        super().__init__([group for group in groups if group["params"]], lr=lr, weight_decay=weight_decay, fused=True)

    def __setstate__(self, state: dict) -> None:
        torch.optim.Optimizer.__setstate__(self, state)  # AdamW's own expects a count of steps of every parameter

    @torch.no_grad()
    def step(self, closure: Callable | None = None) -> torch.Tensor | None:
        loss, gradients = None, {}
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            if group["muon"]:
                parameters = [p for p in group["params"] if p.grad is not None]
                gradients |= {parameter: parameter.grad for parameter in parameters}
                self._take_in(parameters)
                with products_in_float32():
                    self._move(parameters, group)
        for parameter in gradients:
            parameter.grad = None  # AdamW leaves a parameter without a gradient alone
        super().step()
        for parameter, gradient in gradients.items():
            parameter.grad = gradient
        return loss

    def _take_in(self, parameters: list) -> None:
        """Averages the gradients, but nothing that is to be skipped."""
        found_inf, grad_scale = getattr(self, "found_inf", None), getattr(self, "grad_scale", None)
        for parameter in parameters:
            state, gradient = self.state[parameter], own_part(parameter.grad)
            if "momentum_buffer" not in state:
                state["momentum_buffer"] = torch.zeros_like(parameter)
            average = own_part(state["momentum_buffer"])
            if grad_scale is not None:
                gradient.div_(grad_scale)
            if found_inf is not None:
                gradient.copy_(torch.where(found_inf != 0, average, gradient))
            average.lerp_(gradient, 1 - MOMENTUM)

    def _move(self, parameters: list, group: dict) -> None:
        found_inf = getattr(self, "found_inf", None)
        rate = group["lr"] * (1.0 if found_inf is None else 1 - found_inf)

        def matrices() -> Iterator[torch.Tensor]:
            for parameter in parameters:
                ahead = parameter.grad.lerp(self.state[parameter]["momentum_buffer"], MOMENTUM)
                yield whole(ahead).flatten(1)

        for parameter, step in zip(parameters, orthogonalized(matrices), strict=True):
            own_part(parameter).mul_(1 - rate * group["weight_decay"])
            scaled = step.reshape(parameter.shape) * (rate * UPDATE_RMS * max(step.shape) ** 0.5)
            own_part(parameter).sub_(own_part(divided_as(scaled, parameter)))


def orthogonalized(matrices: Callable[[], Iterable[torch.Tensor]]) -> Iterator[torch.Tensor]:
    """About U Vᵀ of each matrix U S Vᵀ: all singular values that are not tiny beside the norm become 0.7 to 1.2.

    The Newton–Schulz iteration of [Jordan], X ← p(X). Since p(X) = (a + b·A + c·A²) X with A = X Xᵀ, and A stays a polynomial
    of the first A, only the small square matrices are iterated, all those of one size at once, and each X is multiplied once.
    That A is squared makes it need float32's precision: see [`products_in_float32`].

    Args:
        matrices: called twice, so that one that computes them need not hold them all.
    """
    squares = [x @ x.T for x in map(_wide, matrices())]
    by_size = defaultdict(list)
    for number, square in enumerate(squares):
        by_size[len(square)].append(number)
    factors = {}
    for numbers in by_size.values():
        together = torch.stack([squares[number] for number in numbers])
        factors |= dict(zip(numbers, _newton_schulz_factors(together), strict=True))
    del squares
    for number, matrix in enumerate(matrices()):
        found = factors.pop(number) @ _wide(matrix)
        yield found if len(matrix) <= matrix.shape[1] else found.T


def _wide(matrix: torch.Tensor) -> torch.Tensor:
    """With no more rows than columns, and of norm 1."""
    wide = (matrix if len(matrix) <= matrix.shape[1] else matrix.T).float()
    return wide / wide.norm().clamp(min=SMALLEST_NORM)


def _newton_schulz_factors(squares: torch.Tensor) -> torch.Tensor:
    """By what each X is to be multiplied, from A = X Xᵀ, of shape (matrices, side, side)."""
    a, b, c = QUINTIC
    factor = product = None
    for _ in range(ITERATIONS):
        if factor is not None:
            squares = factor @ squares @ factor
        factor = torch.baddbmm(squares, squares, squares, beta=b, alpha=c)
        factor.diagonal(dim1=1, dim2=2).add_(a)
        product = factor if product is None else factor @ product
    return product


@contextmanager
def products_in_float32() -> Iterator[None]:
    """Matrix products without TF32 or bfloat16, which accelerate allows where it compiles."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)
