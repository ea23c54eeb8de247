"""The network as one call of the pipeline uses it: classes, guidance, the embeddings of t, compilation, memory.

This file is copied beside every model that is published: it imports its siblings, torch and diffusers.
"""

import copy
import ctypes
import math
import platform
import sys
import threading
import warnings
from collections.abc import Callable

import torch
from diffusers import UNet2DModel

# Parameters of mallopt(3).
_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4

# What torch, C++ and oneDNN say on a CPU, where none of them has a class of errors for it.
_NO_MEMORY = ("can't allocate memory", "bad_alloc", "could not create a memory", "could not create a primitive",
              "could not execute a primitive")  # fmt: skip

_ANY_NUMBER = 2**30
_ALIGNMENT = 64  # bytes; that of what torch allocates on a CPU
_compiling = threading.Lock()


class NetworkCalls:
    """The network's output for x_t, as one call of the pipeline asks for it.

    Args:
        unet (`UNet2DModel`): the network.
        timesteps (`list[int]`): where it will be asked; their embeddings are computed here, once.
        labels (`torch.Tensor`, shape (B,), *optional*): the class of each image, on the device of the samples.
        batch_size (`int`): B.
        guidance_scale (`float`): w of classifier-free guidance; 1 is none.
        guidance_interval (`tuple[int, int]`, *optional*): the smallest and the largest timestep that are guided.
        compiled (`Callable`, *optional*): the network compiled, to be called in its place.
    """

    def __init__(
        self,
        unet: UNet2DModel,
        timesteps: list[int],
        labels: torch.Tensor | None,
        batch_size: int,
        guidance_scale: float = 1.0,
        guidance_interval: tuple[int, int] | None = None,
        compiled: Callable | None = None,
    ):
        self.batch_size = batch_size
        self._scale, self._compiled = float(guidance_scale), compiled
        self._dtype = unet.dtype  # diffusers looks through all parameters for it
        self._interval = guidance_interval or (0, math.inf)
        self._labels = labels
        self._both = None
        if guidance_scale != 1:
            null_class = unet.config.num_class_embeds - 1
            self._both = torch.cat([labels, torch.full_like(labels, null_class)])
        self._network = unet if compiled else with_embeddings_of(unet, timesteps, self._dtype)

    @torch.no_grad()
    def __call__(self, sample: torch.Tensor, timestep: int) -> torch.Tensor:
        """The prediction for x_t, float32, shape (B, C, H, W) or (B, 2C, H, W); of a learned variance the class alone decides.

        Raises:
            torch.OutOfMemoryError: naming the largest batch of half, a quarter, … this one that fits.
        """
        sample = sample.to(self._dtype)
        is_guided = self._both is not None and self._interval[0] <= timestep <= self._interval[1]
        try:
            return self._predict(sample, timestep, is_guided)
        except (RuntimeError, MemoryError) as error:
            if not _is_out_of_memory(error):
                raise
        # Outside of the handler, whose traceback keeps what was computed until then.
        raise torch.OutOfMemoryError(self._what_fits(sample, timestep, is_guided))

    def _predict(self, sample: torch.Tensor, timestep: int, is_guided: bool) -> torch.Tensor:
        if not is_guided:
            return self._output(sample, timestep, None if self._labels is None else self._labels[: len(sample)])
        both = self._both.reshape(2, -1)[:, : len(sample)].flatten()
        output = self._output(torch.cat([sample, sample]), timestep, both)
        conditional, unconditional = output.chunk(2)
        channels = sample.shape[1]
        guided = torch.lerp(unconditional[:, :channels], conditional[:, :channels], self._scale)
        return torch.cat([guided, conditional[:, channels:]], dim=1)

    def _output(self, sample: torch.Tensor, timestep: int, labels: torch.Tensor | None) -> torch.Tensor:
        if self._compiled is None:
            output = self._network(sample, timestep, class_labels=labels, return_dict=False)[0]
        else:
            output = self._compiled(sample, torch.full((len(sample),), timestep, device=sample.device), labels)
        return output.to(torch.float32)

    def _what_fits(self, sample: torch.Tensor, timestep: int, is_guided: bool) -> str:
        """Tries half of the batch, and half of that, and says which went through."""
        count = len(sample)
        while (count := count // 2) > 0:
            if sample.is_cuda:
                torch.cuda.empty_cache()
            try:
                self._predict(sample[:count], timestep, is_guided)
            except (RuntimeError, MemoryError) as error:
                if not _is_out_of_memory(error):
                    raise
            else:
                break
        height, width = sample.shape[-2:]
        remedy = f"a batch of {count} fits (it was tried)" if count else "not even a batch of 1 fits"
        return f"A batch of {len(sample)} images of {width}×{height} does not fit into the memory of {sample.device}; {remedy}."


class _TimeTable(torch.nn.Module):
    """Embeddings that were computed before, by timestep; NaN elsewhere."""

    def __init__(self, rows: torch.Tensor):
        super().__init__()
        self.register_buffer("rows", rows)

    def forward(self, timesteps: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.embedding(timesteps, self.rows)


class _EmbeddedUNet(UNet2DModel):
    """A `UNet2DModel` around a [`_TimeTable`]."""

    @property
    def dtype(self) -> torch.dtype:
        # diffusers' own looks through all parameters at every forward pass: an eighth of a small network's time.
        return self.time_proj.rows.dtype


@torch.no_grad()
def with_embeddings_of(unet: UNet2DModel, timesteps: list[int], dtype: torch.dtype) -> UNet2DModel:
    """The same network with the embeddings of these timesteps computed, in its `dtype`; it shares all else with `unet`.

    A network that something has been wrapped around (offloading, compilation), or of another time embedding than the
    paper's, comes back as it is.
    """
    is_plain = type(unet) is UNet2DModel and "forward" not in vars(unet) and unet._compiled_call_impl is None
    if not is_plain or unet.config.time_embedding_type != "positional" or unet.config.class_embed_type is not None:
        return unet
    device = unet.device
    visited = torch.tensor(timesteps, device=device)
    embeddings = unet.time_embedding(unet.time_proj(visited).to(dtype))
    rows = torch.full((max(timesteps) + 1, embeddings.shape[1]), math.nan, dtype=dtype, device=device)
    rows[visited] = embeddings
    other = copy.copy(unet)  # a module of its own, whose children are those of `unet`
    other.__class__ = _EmbeddedUNet
    other._modules = {**unet._modules, "time_proj": _TimeTable(rows), "time_embedding": torch.nn.Identity()}
    return other


def _is_out_of_memory(error: Exception) -> bool:
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or any(sign in str(error) for sign in _NO_MEMORY)


def align_weights(unet: torch.nn.Module) -> None:
    """Moves the weights on a CPU that lie elsewhere than torch would have allocated them.

    A file that is mapped into memory has them at any address, and on AMD's processors MKL rounds a matrix product by the address
    of its factors: without this, a model that was saved and loaded draws other last bits than before.
    """
    for weight in unet.parameters():
        if weight.device.type == "cpu" and weight.data_ptr() % _ALIGNMENT:
            weight.data = weight.data.clone()


# --- fast=True ---


class CompiledNetwork:
    """A network compiled by torch.compile, with CUDA graphs on a GPU; as it was, after a warning, where that fails.

    It reads the network's own weights at every call. The first call for each shape of its input compiles: about a minute
    on a CPU, less once torch's cache on disk has it.
    """

    def __init__(self, unet: UNet2DModel):
        self.unet = unet
        self._on_gpu = unet.device.type == "cuda"
        self._compiled: Callable | None = None
        self._failed = False
        self._shapes: set[tuple] = set()
        if unet.device.type == "cpu":
            keep_freed_memory()

    def __call__(self, sample: torch.Tensor, timesteps: torch.Tensor, labels: torch.Tensor | None) -> torch.Tensor:
        arguments = (sample.contiguous(memory_format=torch.channels_last), timesteps, labels)
        key = (sample.shape, sample.dtype, sample.device, labels is None)
        if not self._failed and key not in self._shapes:
            with _compiling:  # one thread compiles, others wait for what comes out
                self._try(arguments, key)
        if self._failed:
            return self.unet(*arguments, return_dict=False)[0]
        output = self._compiled(*arguments, return_dict=False)[0]
        return output.clone() if self._on_gpu else output  # a CUDA graph writes over what it gave before

    def _try(self, arguments: tuple, key: tuple) -> None:
        if self._failed or key in self._shapes:
            return
        try:
            if self._compiled is None:
                options = {"mode": "reduce-overhead"} if self._on_gpu else {"options": {"cpp_wrapper": True}}
                self._compiled = torch.compile(self.unet, dynamic=False, **options)
            # torch counts the shapes of all networks of a class together, and after eight stops compiling without a word.
            with torch._dynamo.config.patch(recompile_limit=_ANY_NUMBER, accumulated_recompile_limit=_ANY_NUMBER):
                self._compiled(*arguments, return_dict=False)
            self._shapes.add(key)
        except Exception as error:  # compilers, drivers and torch's own passes fail in their own ways
            if _is_out_of_memory(error):
                raise
            self._failed = True
            reason = (str(error).strip().splitlines() or [""])[0]
            warnings.warn(
                f"`fast` is True, but torch.compile fails here ({type(error).__name__}: {reason}). The network runs as it "
                f"does without `fast`, with the same result.",
                stacklevel=2,
            )


def keep_freed_memory() -> None:
    """Tells the C library that the memory which a network call frees is for the next one; for networks on a CPU.

    glibc gives large blocks back to the system, which clears each of their pages again when they are next touched: 10 to 15 %
    of a training step (docs/TRAINING_SPEED.md). Elsewhere than on Linux with glibc this does nothing.
    """
    if sys.platform == "linux" and platform.libc_ver()[0] == "glibc":
        library = ctypes.CDLL(None)
        library.mallopt(_M_TRIM_THRESHOLD, -1)
        library.mallopt(_M_MMAP_MAX, 0)
