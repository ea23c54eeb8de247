"""What campaigns ask with: arguments that are right, and the same ones with one that is odd."""

import math
import random
import re
from collections.abc import Callable
from dataclasses import dataclass
from decimal import Decimal
from fractions import Fraction

import numpy as np
import torch
from hypothesis import strategies as st
from PIL import Image

DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]
OTHER_DTYPES = [torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64, torch.uint16, torch.uint32,
                torch.uint64, torch.complex64, torch.float8_e4m3fn]  # fmt: skip
INTEGERS = [torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64, torch.uint16, torch.uint32, torch.uint64]


def frozen(array: np.ndarray) -> np.ndarray:
    array.flags.writeable = False
    return array


# Made anew for each case: nothing that one of them changes is seen by the next.
_ODD_VALUES: list[Callable] = [
    lambda: None,
    lambda: True,
    lambda: False,
    lambda: 0,
    lambda: 1,
    lambda: -1,
    lambda: 7,
    lambda: 2**63 - 1,
    lambda: -(2**63) - 1,
    lambda: 2**64,
    lambda: 10**400,
    lambda: 0.5,
    lambda: -0.0,
    lambda: 1.0,
    lambda: 1e300,
    lambda: 5e-324,
    lambda: math.nan,
    lambda: math.inf,
    lambda: -math.inf,
    lambda: 1j,
    lambda: Fraction(1, 3),
    lambda: Decimal("0.5"),
    lambda: "",
    lambda: "zero",
    lambda: "1",
    lambda: b"1",
    lambda: [],
    lambda: [1],
    lambda: [2, 1, 0],
    lambda: [None],
    lambda: [[1, 0], [0]],
    lambda: [2**70],
    lambda: [0.5, "x"],
    lambda: (),
    lambda: (0, 1),
    lambda: {},
    lambda: {"a": 1},
    lambda: {1, 2},
    lambda: range(3),
    lambda: object(),
    lambda: int,
    lambda: len,
    lambda: torch.float32,
    lambda: np.int8(5),
    lambda: np.uint8(5),
    lambda: np.uint64(5),
    lambda: np.float16(0.5),
    lambda: np.float32(0.5),
    lambda: np.bool_(True),
    lambda: np.str_("ddpm"),
    lambda: np.array(5),
    lambda: np.array([2, 1]),
    lambda: np.array([0, 1, 2])[::-1],
    lambda: frozen(np.array([0.1, 0.2])),
    lambda: frozen(np.array([2, 1])),
    lambda: np.array([0.1 + 1j]),
    lambda: np.array(["x", "y"]),
    lambda: np.array([None, 1]),
    lambda: np.zeros((2, 2)),
    lambda: np.zeros(0),
    lambda: torch.tensor(5),
    lambda: torch.tensor(5, dtype=torch.uint8),
    lambda: torch.tensor(5, dtype=torch.uint16),
    lambda: torch.tensor(0.5),
    lambda: torch.tensor(True),
    lambda: torch.tensor([2, 1]),
    lambda: torch.tensor([0.1, 0.2], requires_grad=True),
    lambda: torch.tensor([]),
    lambda: torch.zeros(2, 2),
    lambda: [torch.tensor(2), torch.tensor(0.5)],
    lambda: [torch.tensor([2, 1])],
    lambda: [np.array([2, 1]), np.bool_(True)],
    lambda: torch.Generator(),
    lambda: [torch.Generator()],
    lambda: Image.new("L", (8, 8)),
]
odd_values = st.sampled_from(_ODD_VALUES).map(lambda make: make())


def tensors(shapes, dtypes) -> st.SearchStrategy[torch.Tensor]:
    """Tensors of normal numbers, or of integers that a schedule may have."""
    return st.builds(_tensor, shapes, dtypes, st.integers(0, 99))


def _tensor(shape: tuple[int, ...], dtype: torch.dtype, seed: int) -> torch.Tensor:
    numbers = torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return (numbers if dtype.is_floating_point or dtype.is_complex else (numbers * 9).abs()).to(dtype)


any_shape = st.lists(st.integers(0, 3), max_size=5).map(tuple)
any_tensor = tensors(any_shape, st.sampled_from([*DTYPES, *OTHER_DTYPES]))

# Pictures and arrays of which most are nobody's images.
odd_images = (
    st.builds(
        Image.new,
        st.sampled_from(["L", "RGB", "RGBA", "1", "P", "I;16", "F", "LA", "CMYK", "I"]),
        st.sampled_from([(8, 8), (8, 4), (0, 0), (0, 8)]),
    )
    | st.builds(
        lambda shape, dtype, value: np.full(shape, value).astype(dtype),
        st.sampled_from(
            [(8, 8), (8, 8, 1), (1, 8, 8, 1), (2, 8, 8, 3), (8, 8, 3), (1, 1, 8, 8), (0, 8, 8), (0, 0), (8,), ()]
        ),
        st.sampled_from(["u1", ">u2", "u4", "i8", "f2", ">f4", "f8", "g", "?", "c8", "O", "U4", "M8[s]"]),
        st.sampled_from([0, 1, 2, 200]),
    )
    | st.builds(
        lambda shape, dtype, value: torch.full(shape, value).to(dtype),
        st.sampled_from([(8, 8), (1, 8, 8), (2, 8, 8), (1, 1, 8, 8), (2, 1, 8, 8)]),
        st.sampled_from([*DTYPES, *OTHER_DTYPES]),
        st.sampled_from([0.0, 0.5, 1.0, 200.0, math.nan]),
    )
)


@dataclass(frozen=True)
class Seeds:
    """What generators are made of, new ones for each call: of a number one for all rows, of a tuple one for each."""

    numbers: int | tuple[int, ...]

    def generators(self) -> torch.Generator | list[torch.Generator]:
        if isinstance(self.numbers, int):
            return torch.Generator().manual_seed(self.numbers)
        return [torch.Generator().manual_seed(number) for number in self.numbers]


@dataclass
class Asked:
    """The arguments of a call, and which of them was made odd, if one was."""

    arguments: dict
    odd: str | None = None


@st.composite
def spoiled(draw, arguments: dict, wrong: dict[str, st.SearchStrategy], others: tuple[str, ...] = ()) -> Asked:
    """The arguments as they are, or with an odd value for one of them or of the `others`: as `wrong` says, or any odd one."""
    odd = draw(st.none() | st.sampled_from(sorted({*arguments, *others})))
    if odd is None:
        return Asked(arguments)
    return Asked(arguments | {odd: draw(wrong.get(odd, odd_values))}, odd)


class Answers:
    """Takes calls' results or their refusals, counts both, and fails at any third thing."""

    def __init__(self):
        self.given = self.refused = 0

    def of(self, call: Callable, asked: Asked, may_refuse: bool = False):
        """The result; `None` for a `ValueError` that names an argument, where one is odd (or `may_refuse`)."""
        before, result, refusal = snapshot(asked.arguments), None, None
        try:
            result = call(**asked.arguments)
        except ValueError as error:
            if asked.odd is None and not may_refuse:
                raise
            refusal = str(error)
        assert snapshot(asked.arguments) == before, "the call changed its arguments"
        if refusal is None:
            self.given += 1
        else:
            named = set(re.findall(r"`(\w+)", refusal))
            assert named & set(asked.arguments), f"the refusal names no argument: {refusal}"
            self.refused += 1
        return result


def snapshot(value) -> object:
    """Something equal as long as nothing in the value changes; a generator is there to change."""
    if isinstance(value, torch.Tensor):
        raw = value.detach().contiguous().reshape(-1)
        return value.dtype, value.shape, raw.view(torch.uint8).numpy().tobytes() if raw.numel() else b""
    if isinstance(value, np.ndarray):
        return value.dtype, value.shape, repr(value.tolist())
    if isinstance(value, Image.Image):
        return value.mode, value.size, value.tobytes()
    if isinstance(value, dict):
        return {name: snapshot(one) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return [snapshot(one) for one in value]
    return repr(value)


def random_state() -> tuple:
    """Of the generators that all of a process share."""
    numpy_state = np.random.get_state(legacy=False)
    return torch.get_rng_state().numpy().tobytes(), random.getstate(), repr(numpy_state["state"]["key"].tolist())
