"""A run, or several side by side, as one page of HTML: numbers, pictures, options, and the commands that make it again.

A page is whole in itself: its style and its pictures are in it. It loads nothing, and runs nothing but `explorer.js`,
which is in it too. `run.html.jinja` and `comparison.html.jinja` say what stands where. Importing this needs no torch.
"""

from ppl_gen.report.comparison_page import comparison
from ppl_gen.report.page import saving
from ppl_gen.report.run_page import report, write_report

__all__ = ["comparison", "report", "saving", "write_report"]
