"""The glossary: one short entry for each term, and no word that stands for two."""

import re
import subprocess
import sys

from ppl_gen.core.glossary import TERMS

ASKED = """nats elbo gap log-px standard-error monte-carlo-error at-least importance-sampling iwae-bound k-hat
effective-sample-size second-opinion blind jackknife active-units quadrature annealing bounds-from-both-sides
enumeration approximation-gap amortization-gap binarization density guide objective calibrated coverage seed
reconstruction-and-kl kl-warm-up"""
"""The entries that the documentation links."""


def test_each_term_has_one_short_entry() -> None:
    anchors = [term.anchor for term in TERMS]
    assert len(set(anchors)) == len(anchors) and set(ASKED.split()) <= set(anchors)
    assert all(re.fullmatch(r"\w+(-\w+)*", anchor) and anchor.islower() for anchor in anchors)
    for term in TERMS:
        assert term.text.endswith(".") and 8 <= len(term.text.split()) <= 62, term.name
        for sentence in re.split(r"(?<=[.]) (?=[A-Z`])", term.text):
            assert len(sentence.split()) <= 40, sentence


def test_no_word_stands_for_two() -> None:
    words = [word for term in TERMS for word in (term.name, *term.words)]
    assert len({word.lower() for word in words}) == len(words)


def test_it_is_data_alone() -> None:
    code = "import sys, ppl_gen.core.glossary; assert not {'torch', 'numpy', 'jinja2'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
