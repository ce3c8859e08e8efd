"""Numbers and sentences of the report. A difference is only called one where its interval leaves out 0."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from pipeline.statistics import Estimate, RunSummary, StrategySummary

UNDEFINED = "–"


def number(value: float | None) -> str:
    """Three significant digits, or all of a whole number; a dash for what is undefined."""
    if value is None:
        return UNDEFINED
    if abs(value) >= 100:
        return f"{value:,.0f}"
    return _digits(value)


def share(value: float | None) -> str:
    """A share in percent."""
    if value is None:
        return UNDEFINED
    return f"{_digits(100 * value)} %"


def between(estimate: Estimate, is_share: bool) -> str:
    """The interval of an estimate, "" where it has none or is a point."""
    if estimate.low is None or estimate.high is None or estimate.low == estimate.high:
        return ""
    low, high = (100 * end if is_share else end for end in (estimate.low, estimate.high))
    return f"{_digits(low)}–{_digits(high)}"


def change(estimate: Estimate, is_share: bool) -> tuple[str, str]:
    """A difference with its sign, and its interval; of shares in percentage points."""
    if estimate.value is None:
        return UNDEFINED, ""
    scale, unit = (100, " pt") if is_share else (1, "")
    value = _signed(scale * estimate.value)
    if estimate.low is None or estimate.high is None or estimate.low == estimate.high:
        return f"{value}{unit if value != '0' else ''}", ""
    return f"{value}{unit}", f"{_signed(scale * estimate.low)} to {_signed(scale * estimate.high)}"


def duration(seconds: float) -> str:
    """As `41 s`, `7 min 41 s` or `3 h 5 min`."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{seconds:.3g} s"


def _digits(value: float) -> str:
    return f"{value:#.3g}".rstrip(".") if value else "0"


def _signed(value: float) -> str:
    return f"{'+' if value > 0 else '−'}{_digits(abs(value))}" if value else "0"


def counted(counts: Mapping[str, int]) -> str:
    """As `eos 12, length 3`."""
    return ", ".join(f"{name} {count:,}" for name, count in sorted(counts.items()))


def sentences(summary: RunSummary) -> Iterator[str]:
    """What there is to say of a run at a glance."""
    yield _errors(summary)
    texts = [each for each in summary.strategies if each.metric("rep_4").value is not None]
    yield from _most_repetitive(texts)
    yield from _loops(texts)
    yield from _agreement(summary)


def _errors(summary: RunSummary) -> str:
    errors = summary.total("errors")
    if not errors:
        return "every row is ok"
    types: dict[str, int] = {}
    for each in summary.strategies:
        for name, count in each.tally.error_types.items():
            types[name] = types.get(name, 0) + count
    return f"{errors:,} rows are errors ({share(errors / summary.total('rows'))}): {counted(types)}"


def _most_repetitive(strategies: Sequence[StrategySummary]) -> Iterator[str]:
    """The strategy with the highest rep-4, if it is higher than that of every other one beyond doubt."""
    if len(strategies) < 2:
        return
    first, *others = sorted(strategies, key=lambda each: each.metric("rep_4").value or 0, reverse=True)
    lows = [first.difference(other, "rep_4").low for other in others]
    if all(low is not None and low > 0 for low in lows):
        how_much = share(first.metric("rep_4").value)
        yield f"{first.name} repeats itself most: {how_much} of a completion's 4-grams stood in it before"


def _loops(strategies: Sequence[StrategySummary]) -> Iterator[str]:
    loops = {each.name: each.metric("loop_share").value or 0 for each in strategies}
    name = max(loops, key=loops.__getitem__, default=None)
    if name is not None and loops[name] >= 0.01:
        yield f"{share(loops[name])} of the completions of {name} end in a loop"


def _agreement(summary: RunSummary) -> Iterator[str]:
    compared = [each for each in summary.strategies if each.metric("parted_share").value is not None]
    if not compared:
        return
    most = max(compared, key=lambda each: each.metric("parted_share").value or 0)
    parted, step = most.metric("parted_share").value, most.median_parting_step
    if parted and step:
        how_often = f"in {share(parted)} of its completions, half of them by token {step}"
        yield f"{most.name} parts from {summary.baseline} {how_often}"
    same = [each.name for each in compared if each.metric("same_as_baseline").value == 1]
    if same:
        yield f"{', '.join(same)} gave the same tokens as {summary.baseline} throughout"
