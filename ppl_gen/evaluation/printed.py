"""Results that print as a table."""

from html import escape

from ppl_gen.experiment.run_directory import Json


class Printed:
    """A result whose text is a table. A notebook shows the same text."""

    summary: Json
    """The content of its JSON file."""

    def _repr_html_(self) -> str:
        return f"<pre>{escape(str(self))}</pre>"
