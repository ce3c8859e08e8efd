"""Exact metrics of a run per strategy, over all rows of its folder, in memory that does not grow with the run.

    summary = summarise(open_run("out/demo"))
    summary.strategy("nucleus").metric("perplexity")      Estimate(value=2.1, low=2.0, high=2.3)

`rows` reads and measures, `tally` adds up, `summary` answers; `ragged`, `repetition`, `diversity`, `agreement` and
`bootstrap` are arithmetic on arrays and know nothing of runs.
"""

from pipeline.statistics.bootstrap import Estimate
from pipeline.statistics.metrics import METRICS
from pipeline.statistics.summary import Collector, RunSummary, StrategySummary, quantile, summarise

__all__ = ["METRICS", "Collector", "Estimate", "RunSummary", "StrategySummary", "quantile", "summarise"]
