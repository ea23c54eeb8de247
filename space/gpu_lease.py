"""Work on a GPU that is lent for seconds: Hugging Face's ZeroGPU, where the Space runs on it."""

import os
from collections.abc import Callable

# Where a GPU is lent for each call, as the Hub says it.
ON_ZERO_GPU = os.environ.get("SPACES_ZERO_GPU", "").lower() in ("1", "t", "true")


def on_gpu(duration: Callable[..., int]) -> Callable[[Callable], Callable]:
    """Decorates a function that calls a network; anywhere but on ZeroGPU it stays as it is.

    On ZeroGPU the function runs in a process of its own: what it is given and what it gives must be picklable and hold no
    CUDA tensor.

    Args:
        duration: the seconds that a call takes at most, from the arguments of the call.
    """
    if not ON_ZERO_GPU:
        return lambda function: function
    import spaces

    return spaces.GPU(duration=duration)
