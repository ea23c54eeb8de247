"""Text in English and in Chinese."""

from dataclasses import dataclass
from typing import Generic, TypeVar

T = TypeVar("T")


@dataclass(frozen=True)
class Both(Generic[T]):
    """A value in English and in Chinese."""

    en: T
    zh: T

    @property
    def html(self) -> str:
        """Both, as HTML of which the style of the page shows one; the values are HTML already."""
        return f'<span class="en" lang="en">{self.en}</span><span class="zh" lang="zh">{self.zh}</span>'
