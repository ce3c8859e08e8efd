"""Naive references: every strategy over one row, without cache, batch or padding, as its paper describes it.

In go a transformers GPT-2, a prompt and a strategy value; out come token ids, raw log-probabilities, reasons, scores.
Each step is a forward over the whole sequence, each beam a Python list. The processors are transformers' own classes.
Nothing here knows the engine: what both agree on was written twice.
"""

from tests.naive.search import reference
from tests.naive.values import Completed, Naive, Noise

__all__ = ["Completed", "Naive", "Noise", "reference"]
