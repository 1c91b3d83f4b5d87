"""How results show themselves."""

from html import escape


class Printed:
    """A result whose text is its table: in a notebook, as it is printed."""

    def _repr_html_(self) -> str:
        return f"<pre>{escape(str(self))}</pre>"
