"""The page of a run, or of several runs side by side: numbers, pictures, options, and commands that make it again.

A page is one file of HTML with its style and its pictures in it. It loads nothing. Its only script is `explorer.js`,
which is in it, too. The layout is in `run.html.jinja` and `comparison.html.jinja`. The page of a comparison needs no
torch.
"""
