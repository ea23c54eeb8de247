"""Checks of what visitors ask for, on the page and through the API: one sentence says what is allowed."""

from collections.abc import Sequence

from both_languages import Both

LARGEST_SEED = 2**32 - 1


class InvalidRequestError(ValueError):
    """A request that cannot be served.

    Args:
        en, zh (`str`): one sentence for the visitor; `str(error)` is the English one.
    """

    def __init__(self, en: str, zh: str):
        super().__init__(en, zh)
        self.message = Both(en, zh)

    def __str__(self) -> str:
        return self.message.en


def whole_number(name: Both, value: object, smallest: int, largest: int) -> int:
    """The value as an `int`; JSON may carry 7 as 7.0.

    Raises:
        InvalidRequestError: naming the argument, its value and the range.
    """
    whole = isinstance(value, int) and not isinstance(value, bool)
    whole = whole or (isinstance(value, float) and value.is_integer())
    if not whole or not smallest <= value <= largest:
        given = shown(value)
        raise InvalidRequestError(
            f"{name.en} is {given.en}; it must be a whole number from {smallest} to {largest}.",
            f"{name.zh}为 {given.zh}；它必须是 {smallest} 到 {largest} 的整数。",
        )
    return int(value)


def number(name: Both, value: object, smallest: float, largest: float) -> float:
    """The value as a `float`, within the range, its ends included; errors as in [`whole_number`]."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not smallest <= value <= largest:
        given = shown(value)
        raise InvalidRequestError(
            f"{name.en} is {given.en}; it must be a number from {smallest:g} to {largest:g}.",
            f"{name.zh}为 {given.zh}；它必须是 {smallest:g} 到 {largest:g} 的数。",
        )
    return float(value)


def choice(name: Both, value: object, allowed: Sequence[str]) -> str:
    """The value itself, if it is allowed; errors as in [`whole_number`]."""
    if not isinstance(value, str) or value not in allowed:
        given = shown(value)
        raise InvalidRequestError(
            f"{name.en} is {given.en}; it must be one of {', '.join(allowed)}.",
            f"{name.zh}为 {given.zh}；它必须是以下之一：{'、'.join(allowed)}。",
        )
    return value


def shown(value: object) -> Both:
    """A value as a message quotes it: short, whatever it is."""
    if value is None or value == "":
        return Both("empty", "空")
    text = repr(value) if isinstance(value, str) else str(value) if isinstance(value, int | float) else None
    if text is None:
        return Both(f"of type {type(value).__name__}", f" {type(value).__name__} 类型的值")
    return Both(*[text if len(text) <= 40 else f"{text[:37]}…"] * 2)
