"""Caption and alternative text of a picture. The file of each picture defines its own."""

from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Caption:
    """A picture in words."""

    text: str
    """Text below the picture."""
    alt: str
    """Alternative text, for a reader who does not see the picture."""

    def with_numbers(self, more: str) -> "Caption":
        """The same caption, with numbers added to its alternative text."""
        return replace(self, alt=self.alt + more)
