"""Results that print as a table."""

from html import escape
from typing import Any


class Printed:
    """A result whose text is a table. A notebook shows the same text."""

    summary: dict[str, Any]
    """The content of its JSON file."""

    def _repr_html_(self) -> str:
        return f"<pre>{escape(str(self))}</pre>"
