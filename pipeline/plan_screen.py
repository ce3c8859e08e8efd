"""How a forecast looks: a line per subject, the strategies as a table, and warnings on stderr."""

from __future__ import annotations

import sys

from pipeline.forecast import Forecast
from pipeline.status_screen import between
from pipeline.terminal import print_table, visible

UNITS = ("B", "KiB", "MiB", "GiB", "TiB", "PiB")


def size(num_bytes: float) -> str:
    """Bytes in their largest unit, as `1.5 GiB`."""
    unit = 0
    while num_bytes >= 1024 and unit + 1 < len(UNITS):
        num_bytes, unit = num_bytes / 1024, unit + 1
    return f"{num_bytes:.3g} {UNITS[unit]}" if unit else f"{num_bytes:.0f} B"


def print_forecast(found: Forecast) -> None:
    """On stdout; what to think about before starting on stderr."""
    for head, rest in _lines(found):
        print(f"{head:<9} {visible(rest)}")
    rows = [[each.name, each.type, f"{each.rows:,}", f"{each.new_tokens:,}"] for each in found.needs]
    print_table(["strategy", "type", "rows", "new tokens at most"], rows)
    for warning in warnings(found):
        print(f"warning: {visible(warning)}", file=sys.stderr)
    print("nothing was started", file=sys.stderr)


def warnings(found: Forecast) -> list[str]:
    """What may go wrong, though it is not certain."""
    said, limit = [], found.plan.job.run.max_error_rate
    if found.error_rate > limit:
        said.append(
            f"{found.error_rate:.1%} of the sample's rows would be errors, more than run.max_error_rate ({limit:.1%}): "
            "the run may stop with exit code 3."
        )
    if found.truncated or found.too_long:
        count = found.truncated + found.too_long
        done = "cut" if found.truncated else "refused"
        said.append(f"{count:,} prompts of the sample do not fit the model and would be {done} (input.on_long_prompt).")
    if not found.trials:
        said.append("time and output size are not known without --calibrate.")
    elif len(found.trials) == 1 or found.trials[-1].rows < found.plan.shard_rows:
        said.append(f"the largest trial had {found.trials[-1].rows:,} rows; whole shards may be faster per row.")
    return said


def _lines(found: Forecast) -> list[tuple[str, str]]:
    plan = found.plan
    done = f" · {found.num_done:,} of them done" if found.num_done else ""
    whole = "all rows" if found.is_exact else f"a sample of {found.num_sampled:,} rows"
    num_files = len(plan.dataset.files)
    lines = [
        ("input", f"{num_files:,} file{'s' * (num_files != 1)} · {plan.dataset.num_rows:,} rows"),
        ("prompts", f"{_prompts(found)} · {whole}"),
        ("output", f"{found.folder} · {plan.num_output_rows:,} rows"),
        ("shards", f"{len(plan.shards):,} of up to {plan.shard_rows:,} rows{done}"),
        ("model", f"{plan.model.name} · {plan.job.model.dtype} · {plan.model.num_positions:,} positions"),
    ]
    if found.errors:
        counts = ", ".join(f"{name} {count:,}" for name, count in found.errors.items())
        lines.append(("errors", f"{found.error_rate:.3%} of the rows looked at: {counts}"))
    if found.cache:
        each = f"{found.cache.rows:,} rows of {found.cache.positions:,} positions at {size(found.cache.token_bytes)}"
        lines.append(("cache", f"{size(found.cache.num_bytes)} of keys and values in a replica: {each}"))
    return [*lines, *_estimates(found)]


def _prompts(found: Forecast) -> str:
    lengths = found.prompt_tokens
    tokens = f"tokens p50 {lengths.p50:,}, p95 {lengths.p95:,}, max {lengths.longest:,}" if lengths else "none usable"
    counts = {"truncated": found.truncated, "too long": found.too_long, "empty": found.empty}
    return " · ".join([tokens, *(f"{count:,} {name}" for name, count in counts.items() if count)])


def _estimates(found: Forecast) -> list[tuple[str, str]]:
    if not found.takes or not found.trials:
        return []
    last = found.trials[-1]
    pace = f"{last.tokens / last.seconds:,.0f} tok/s in a batch of {last.rows:,} rows on {found.device}"
    said = [f"{between(*found.takes.replica_s)} on one replica"]
    if found.takes.run_s:
        said.append(f"{between(*found.takes.run_s)} on the {found.plan.job.run.replica_limits[1]} of the job")
    if found.takes.gpu_hours:
        low, high = found.takes.gpu_hours
        said.append(f"{low:.3g} to {high:.3g} GPU-hours")
    low_bytes, high_bytes = found.takes.output_bytes
    return [
        ("trial", pace),
        ("time", " · ".join(said)),
        ("size", f"{size(low_bytes)} to {size(high_bytes)} of parts"),
    ]
