"""Caption and alternative text of a picture. The file of each picture defines its own."""

from collections.abc import Callable
from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Caption:
    """A picture in words."""

    text: str
    """Text below the picture."""
    alt: str
    """Alternative text, for a reader who does not see the picture."""

    def changed(self, change: Callable[[str], str]) -> "Caption":
        """The caption with both texts changed by a function."""
        return Caption(change(self.text), change(self.alt))

    def followed_by(self, sentence: str) -> "Caption":
        """The same caption, with a sentence added to its text."""
        return replace(self, text=f"{self.text} {sentence}")

    def with_numbers(self, more: str) -> "Caption":
        """The same caption, with numbers added to its alternative text."""
        return replace(self, alt=self.alt + more)
