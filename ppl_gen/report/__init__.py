"""The page of a run, or of several runs side by side: numbers, pictures, options, and commands that make it again.

A page is one file of HTML with its style and its pictures in it. It loads nothing. Its only script is `explorer.js`,
which is in it, too. The layout is in `run.html.jinja` and `comparison.html.jinja`. Importing this needs no torch.
"""

from ppl_gen.report.comparison_page import comparison
from ppl_gen.report.page import saving
from ppl_gen.report.run_page import report, write_report

__all__ = ["comparison", "report", "saving", "write_report"]
