"""Metrics of a run: by hand, against DuckDB over the same folder, and the laws that hold for any run."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.errors import ConfigError, StorageError
from pipeline.results import open_run
from pipeline.statistics import METRICS, Collector, Estimate, StrategySummary, quantile, summarise
from pipeline.statistics.agreement import agreement
from pipeline.statistics.bootstrap import NUM_GROUPS, groups_of, interval, resampled
from pipeline.statistics.diversity import MOST_BIGRAMS, Overlap, Sample, common_budget, overlaps, sample_of
from pipeline.statistics.ragged import Ragged, ngrams, paired, uniqued
from pipeline.statistics.repetition import ends_in_loop, repetition
from pipeline.statistics.rows import read_strategies, whole_prompts
from tests.flows import GREEDY, SAMPLES, make_job, run_echo, write_prompts
from tests.forgery import run_demo
from tests.test_retry import ILL, ill_on, retry

Lists = Sequence[Sequence[int]]


def ragged(lists: Lists) -> Ragged:
    flat = np.array([entry for entries in lists for entry in entries], np.int32)
    return Ragged(flat, np.array([len(entries) for entries in lists], np.int64))


# Lists of different lengths


def test_null_lists_count_as_empty_and_chunks_are_joined() -> None:
    column = pa.chunked_array(
        [pa.array([[1, 2], None], pa.list_(pa.int32())), pa.array([[], [3]], pa.list_(pa.int32()))]
    )
    found = Ragged.of(column)
    assert (found.flat.tolist(), found.lengths.tolist()) == ([1, 2, 3], [2, 0, 0, 1])
    assert (found.starts.tolist(), found.owners.tolist(), found.positions.tolist()) == (
        [0, 2, 2, 2],
        [0, 0, 3],
        [0, 1, 0],
    )
    assert [each.tolist() for each in found.split()] == [[1, 2], [], [], [3]]
    assert found.totals().tolist() == [3, 0, 0, 3]


def test_the_last_entry_is_left_out_where_asked() -> None:
    found = ragged([[1, 2], [3], [], [4, 5]]).without_last(np.array([True, True, False, False]))
    assert [each.tolist() for each in found.split()] == [[1], [], [], [4, 5]]


LISTS = st.lists(st.lists(st.integers(0, 3), max_size=9), min_size=1, max_size=5)


@given(lists=LISTS, n=st.integers(1, 5))
def test_ngrams_are_equal_where_windows_are(lists: Lists, n: int) -> None:
    windows = [tuple(entries[at : at + n]) for entries in lists for at in range(len(entries) - n + 1)]
    found = ngrams(ragged(lists), n)
    assert found.lengths.tolist() == [max(0, len(entries) - n + 1) for entries in lists]
    codes = found.flat.tolist()
    assert len(codes) == len(windows)
    assert len(set(codes)) == len(set(windows)) == len(set(zip(codes, windows, strict=True)))


@given(lists=LISTS)
def test_uniqued_keeps_each_entry_of_a_list_once(lists: Lists) -> None:
    assert uniqued(ragged(lists)).lengths.tolist() == [len(set(entries)) for entries in lists]


def test_pairs_of_large_numbers_do_not_overflow() -> None:
    left, right = np.array([2**40, 2**41, 2**40]), np.array([2**40, 2**40, 2**40])
    first, second, third = paired(left, right).tolist()
    assert first == third != second


# Repetition


@pytest.mark.parametrize(
    ("ids", "expected"),
    [
        ([1, 2, 3], None),  # no 4-gram
        ([1, 2, 3, 4], 0.0),
        ([1, 2, 3, 4, 5, 6, 7], 0.0),
        ([1, 1, 1, 1, 1], 0.5),  # two 4-grams, one kind
        ([1, 2, 1, 2, 1, 2, 1], 0.5),  # four, two kinds
        ([7] * 13, 0.9),
    ],
)
def test_rep_4_of_a_completion(ids: list[int], expected: float | None) -> None:
    found = repetition(ragged([[9, 9], ids, []]))[1]
    assert math.isnan(found) if expected is None else found == pytest.approx(expected)


@pytest.mark.parametrize(
    ("ids", "expected"),
    [
        ([5, 5, 5], True),
        ([5, 5], False),
        ([1, 2, 1, 2, 1, 2], True),
        ([9, 1, 2, 1, 2, 1, 2], True),
        ([1, 2, 1, 2, 1, 2, 9], False),  # it got out again
        ([1, 2, 1, 2, 2], False),
        ([*range(20)] * 3, True),
        ([*range(21)] * 3, False),  # a block of 21 is too long
        ([*range(20)] * 2 + [*range(19)] + [0], False),
        ([], False),
    ],
)
def test_a_loop_is_a_block_of_up_to_20_tokens_three_times_running(ids: list[int], expected: bool) -> None:
    assert ends_in_loop(ragged([[1], ids, [2, 3]])).tolist() == [False, expected, False]


# Diversity


def test_overlap_is_the_mean_jaccard_over_pairs_of_samples() -> None:
    samples = [[1, 2, 3], [1, 2, 4], [5, 6]]  # bigrams {12 23} {12 24} {56}: 1/3, 0, 0
    assert overlaps(ragged([[7], *samples, [1, 2], [1, 2]]), np.array([3, 4, 4, 4, 9, 9])) == [
        Overlap(1, pytest.approx(1 / 9), False),
        Overlap(4, 1.0, True),
    ]


def test_overlap_is_undefined_where_no_sample_has_a_bigram() -> None:
    assert overlaps(ragged([[1], [2]]), np.array([0, 0])) == [Overlap(0, None, False)]
    assert overlaps(ragged([[1], []]), np.array([0, 1])) == []


def test_only_the_first_16_samples_count() -> None:
    lists = [[1, 2]] * 16 + [[3, 4]] * 4
    assert overlaps(ragged(lists), np.zeros(20, int)) == [Overlap(0, 1.0, True)]


def sample(*completions: tuple[str, int, Sequence[int]]) -> Sample:
    row_ids, indices, lists = zip(*completions, strict=True)
    return sample_of(pa.array(row_ids), np.arange(len(row_ids)), np.array(indices), ragged(lists))


def test_distinct_2_counts_first_samples_first_and_then_by_hash() -> None:
    found = sample(("a", 1, [9, 9, 9]), ("a", 0, [1, 2, 1, 2]), ("b", 0, [3, 4]))
    assert [(index, row) for index, _, row in found.keys] == [(0, 1), (0, 2), (1, 0)]  # md5: a 0cc1.. < b 92eb..
    assert found.num_bigrams == 6
    assert found.distinct(3) == pytest.approx(2 / 3)  # 12 21 12
    assert found.distinct(6) == pytest.approx(4 / 6)  # and 34 99 99
    assert found.distinct(7) is None
    assert found.distinct(0) is None


def test_a_sample_holds_no_more_than_it_needs_and_joins_in_any_order() -> None:
    parts = [sample((f"r{number}", 0, [1] * 7001)) for number in range(6)]
    random.Random(0).shuffle(parts)
    joined = Sample()
    for part in parts:
        joined = joined.joined(part)
    expected = sorted((key for part in parts for key in part.keys), key=lambda key: key[1])[:3]
    assert [key[:2] for key in joined.keys] == [key[:2] for key in expected]
    assert joined.num_bigrams == MOST_BIGRAMS


def test_the_budget_is_what_the_smallest_strategy_has_unless_it_has_next_to_nothing() -> None:
    sizes = [sample(("a", 0, [1] * length)) for length in (501, 41, 20, 1)]
    assert common_budget(sizes) == 40
    assert common_budget(sizes[2:]) == common_budget([]) == 0


# Agreement


def test_agreement_finds_the_first_difference_and_who_is_the_beginning_of_whom() -> None:
    lists = ragged([[1, 2, 3], [1, 9, 3, 4], [1, 2], [8], [], [1, 2, 3, 4]])
    found = agreement(
        lists, np.array([0, 0, 1, 5, 7, 7]), ragged([[1, 2, 3], [1, 2, 3], [1, 2, 3]]), np.array([0, 1, 7])
    )
    assert found.rows.tolist() == [0, 1, 2, 4, 5]  # prompt 5 has no baseline
    assert found.common.tolist() == [3, 1, 2, 0, 3]
    assert found.shorter.tolist() == [3, 3, 2, 0, 3]
    assert found.is_same.tolist() == [True, False, False, False, False]
    assert found.has_parted.tolist() == [False, True, False, False, False]


def test_agreement_with_nothing_is_nothing() -> None:
    assert agreement(ragged([[1]]), np.array([0]), ragged([]), np.array([], int)).rows.tolist() == []


# Intervals


def test_every_prompt_is_a_group_of_its_own_until_there_are_too_many() -> None:
    assert groups_of(np.arange(NUM_GROUPS), NUM_GROUPS).tolist() == list(range(NUM_GROUPS))
    counts = np.bincount(groups_of(np.arange(100 * NUM_GROUPS), 100 * NUM_GROUPS).astype(int), minlength=NUM_GROUPS)
    assert (len(counts), counts.min() > 50, counts.max() < 150) == (NUM_GROUPS, True, True)


def test_an_interval_is_as_wide_as_the_standard_error_says() -> None:
    values = np.random.default_rng(1).normal(5, 2, 400)
    resamples = resampled(np.stack([values, np.ones(400)], axis=1))
    low, high = interval(resamples[:, 0] / resamples[:, 1], 400)
    assert low is not None
    assert high is not None
    assert high - low == pytest.approx(2 * 1.96 * values.std() / 20, rel=0.15)
    assert low < values.mean() < high


def test_few_prompts_have_no_interval() -> None:
    resamples = np.linspace(0, 1, 1000)
    assert interval(resamples, 9) == (None, None)
    assert interval(resamples, 10) == pytest.approx((0.025, 0.975))
    assert interval(np.full(1000, np.nan), 100) == (None, None)


def test_a_quantile_is_the_smallest_value_that_covers_the_share() -> None:
    histogram = np.array([0, 2, 0, 1, 1])  # 1 1 3 4
    assert [quantile(histogram, share) for share in (0.25, 0.5, 0.51, 0.95, 1)] == [1, 1, 3, 4, 4]
    assert quantile(np.zeros(3, int), 0.5) is None


# A run, against DuckDB


def sql(folder: Path, query: str) -> dict[str, Any]:
    """First column to second."""
    return dict(duckdb.sql(query.replace("RUN", f"'{folder}/data/*.parquet'")).fetchall())


RANKED = "(SELECT strategy, unnest(token_ranks) r FROM RUN)"
QUERIES = {
    "length": "SELECT strategy, avg(num_generated_tokens) FROM RUN WHERE status = 'ok' GROUP BY 1",
    "error_rate": "SELECT strategy, avg((status = 'error')::INT) FROM RUN GROUP BY 1",
    "perplexity": "SELECT strategy, exp(-sum(cumulative_logprob) / sum(num_generated_tokens)) FROM RUN GROUP BY 1",
    "entropy": "SELECT strategy, avg(h) FROM (SELECT strategy, unnest(entropies)::DOUBLE h FROM RUN) GROUP BY 1",
    "rank_1": f"SELECT strategy, avg((r = 1)::INT) FROM {RANKED} GROUP BY 1",
    "rank_10": f"SELECT strategy, avg((r > 1 AND r <= 10)::INT) FROM {RANKED} GROUP BY 1",
    "rank_100": f"SELECT strategy, avg((r > 10 AND r <= 100)::INT) FROM {RANKED} GROUP BY 1",
    "rank_1000": f"SELECT strategy, avg((r > 100 AND r <= 1000)::INT) FROM {RANKED} GROUP BY 1",
    "rank_more": f"SELECT strategy, avg((r > 1000)::INT) FROM {RANKED} GROUP BY 1",
    "rep_4": """
        WITH words AS (
            SELECT strategy, CASE WHEN finish_reason = 'eos' THEN token_ids[:-2] ELSE token_ids END ids
            FROM RUN WHERE status = 'ok' AND text IS NOT NULL AND finish_reason <> 'scored'),
        grams AS (SELECT strategy, [ids[i:i+3] FOR i IN range(1, len(ids) - 2)] grams FROM words WHERE len(ids) >= 4)
        SELECT strategy, avg(1 - len(list_distinct(grams)) / len(grams)) FROM grams GROUP BY 1""",
    "same_as_baseline": """
        SELECT a.strategy, avg((a.token_ids = b.token_ids)::INT) FROM RUN a JOIN RUN b USING (row_index)
        WHERE b.strategy = 'greedy' AND a.strategy <> 'greedy' AND a.status = 'ok' AND b.status = 'ok'
        AND a.text IS NOT NULL AND a.finish_reason <> 'scored' GROUP BY 1""",
    "parted_share": """
        SELECT a.strategy, avg((a.token_ids[:least(len(a.token_ids), len(b.token_ids))]
                             <> b.token_ids[:least(len(a.token_ids), len(b.token_ids))])::INT)
        FROM RUN a JOIN RUN b USING (row_index)
        WHERE b.strategy = 'greedy' AND a.strategy <> 'greedy' AND a.status = 'ok' AND b.status = 'ok'
        AND a.text IS NOT NULL AND a.finish_reason <> 'scored' GROUP BY 1""",
    "identical_samples": """
        SELECT strategy, avg(same) FROM (
            SELECT strategy, row_index, (count(DISTINCT token_ids) < count(*))::INT same FROM RUN
            WHERE status = 'ok' AND text IS NOT NULL GROUP BY 1, 2 HAVING count(*) > 1) GROUP BY 1""",
}


@pytest.mark.parametrize("name", QUERIES)
def test_a_metric_is_what_duckdb_says_of_the_folder(sound: Path, name: str) -> None:
    expected = sql(sound, QUERIES[name])
    found = {each.name: each.metric(name).value for each in summarise(open_run(sound)).strategies}
    assert {key: value for key, value in found.items() if value is not None} == pytest.approx(expected)
    assert expected


def test_counts_reasons_errors_and_lengths_are_what_duckdb_says(sound: Path) -> None:
    for each in summarise(open_run(sound)).strategies:
        mine = f"FROM RUN WHERE strategy = '{each.name}'"
        assert each.totals["rows"] == sql(sound, f"SELECT 0, count(*) {mine}")[0]
        reasons = sql(sound, f"SELECT finish_reason, count(*) {mine} AND finish_reason IS NOT NULL GROUP BY 1")
        errors = sql(sound, f"SELECT error_type, count(*) {mine} AND error_type IS NOT NULL GROUP BY 1")
        assert (each.tally.finish_reasons, each.tally.error_types) == (reasons, errors)
        lengths = sql(sound, f"SELECT num_generated_tokens, count(*) {mine} AND status = 'ok' GROUP BY 1")
        assert {n: count for n, count in enumerate(each.tally.lengths.tolist()) if count} == lengths
        for share in (0.5, 0.95):
            quantile_of = f"SELECT 0, quantile_disc(num_generated_tokens, {share}) {mine} AND status = 'ok'"
            assert each.length_quantile(share) == sql(sound, quantile_of)[0]


def test_probability_by_position_is_what_duckdb_says(sound: Path) -> None:
    tally = summarise(open_run(sound)).strategy("hot").tally
    query = """SELECT step, sum(exp(l::DOUBLE)) FROM (
        SELECT unnest(token_logprobs) l, generate_subscripts(token_logprobs, 1) step
        FROM RUN WHERE strategy = 'hot') GROUP BY 1"""
    assert dict(enumerate(tally.probabilities.tolist(), 1)) == pytest.approx(sql(sound, query))
    assert tally.entropies.sum() == tally.steps.sum() == tally.sums[:, tally.names.index("tokens")].sum()


def test_where_completions_part_from_the_baseline_is_what_duckdb_says(sound: Path) -> None:
    query = """
        WITH pairs AS (
            SELECT a.strategy, list_zip(a.token_ids, b.token_ids, true) pairs FROM RUN a JOIN RUN b USING (row_index)
            WHERE b.strategy = 'greedy' AND a.status = 'ok' AND b.status = 'ok' AND a.text IS NOT NULL),
        steps AS (SELECT strategy, list_position([p[1] <> p[2] FOR p IN pairs], true) step FROM pairs)
        SELECT strategy, quantile_disc(step, 0.5) FROM steps WHERE step > 0 GROUP BY 1"""
    expected = sql(sound, query)
    found = {each.name: each.median_parting_step for each in summarise(open_run(sound)).strategies}
    assert {name: step for name, step in found.items() if step} == expected


def test_totals_are_those_of_the_manifest(sound: Path) -> None:
    results = open_run(sound)
    summary, manifest = summarise(results), results.run.manifest()
    assert manifest is not None
    for manifest_name, name in (("rows", "rows"), ("ok", "ok"), ("errors", "errors"), ("generated_tokens", "tokens")):
        assert summary.total(name) == manifest["totals"][manifest_name]
    assert summary.num_prompts == manifest["totals"]["input_rows"]
    assert summary.tokens_per_s == summary.total("tokens") / manifest["timings"]["elapsed_s"]


# Laws


def values_of(strategy: StrategySummary) -> dict[str, float | None]:
    return {name: estimate.value for name, estimate in strategy.metrics().items()}


def test_pieces_of_any_size_give_the_same(sound: Path) -> None:
    run = open_run(sound)
    whole = summarise(run)
    for piece_rows in (1, 5, 9):
        collector = Collector(run, "greedy")
        for rows in read_strategies(run, "greedy", piece_rows):
            collector.add(rows)
        for left, right in zip(collector.summary().strategies, whole.strategies, strict=True):
            assert left.tally.names == right.tally.names
            np.testing.assert_allclose(left.tally.sums, right.tally.sums, rtol=1e-12)
            assert values_of(left) == pytest.approx(values_of(right))
            assert left.tally.sample.keys == right.tally.sample.keys


def test_a_piece_never_divides_a_prompt(sound: Path) -> None:
    pieces = [table["row_index"].to_pylist() for table in whole_prompts(open_run(sound), ["row_index"], 5)]
    assert [row for piece in pieces for row in sorted(set(piece))] == list(range(7))
    assert len(pieces) > 3


def test_a_run_under_way_counts_the_parts_that_are_there(tmp_path: Path) -> None:
    source = write_prompts(tmp_path / "p.parquet", ["I skip across the"] * 7)
    run_echo(make_job(source, tmp_path / "out"))
    (tmp_path / "out/_SUCCESS").unlink()
    (tmp_path / "out/_manifest.json").unlink()
    (tmp_path / "out/data/part-00001.parquet").unlink()
    summary = summarise(open_run(tmp_path / "out"))
    assert (summary.num_prompts, summary.total("rows"), summary.elapsed_s) == (4, 12, None)


def test_rows_that_a_retry_mended_stand_in_the_place_of_their_errors(tmp_path: Path, sound: Path) -> None:
    folder = run_demo(tmp_path, engine_maker=ill_on(*ILL))
    before = summarise(open_run(folder))
    retry(folder)
    after, undisturbed = summarise(open_run(folder)), summarise(open_run(sound))
    assert (before.total("errors"), after.total("errors")) == (32, 8)
    for left, right in zip(after.strategies, undisturbed.strategies, strict=True):
        assert values_of(left) == pytest.approx(values_of(right))
        assert left.tally.finish_reasons == right.tally.finish_reasons


def test_a_damaged_part_is_named(tmp_path: Path) -> None:
    run_echo(make_job(write_prompts(tmp_path / "p.parquet", ["a b c"]), tmp_path / "out"))
    (tmp_path / "out/data/part-00000.parquet").write_bytes(b"PAR1 nonsense PAR1")
    with pytest.raises(StorageError, match=r"out/data/part-00000\.parquet cannot be read"):
        summarise(open_run(tmp_path / "out"))


def test_scored_texts_have_perplexity_and_nothing_that_only_generated_text_has(tmp_path: Path) -> None:
    scored = {"name": "given", "type": "score"}
    source = write_prompts(tmp_path / "p.parquet", ["I skip across the", "I walk"])
    run_echo(make_job(source, tmp_path / "out", strategies=[GREEDY, scored]))
    metrics = summarise(open_run(tmp_path / "out")).strategy("given").metrics()
    undefined = {name for name, estimate in metrics.items() if estimate.value is None}
    texts = {"rep_4", "loop_share", "sample_overlap", "identical_samples", "distinct_2"}
    assert undefined == texts | {"same_as_baseline", "parted_share", "common_prefix"}
    assert set(METRICS) < set(metrics)


def test_the_baseline_is_the_first_greedy_strategy_or_the_one_asked_for(tmp_path: Path) -> None:
    source = write_prompts(tmp_path / "p.parquet", ["I skip across the"] * 12)
    run_echo(make_job(source, tmp_path / "out", strategies=[SAMPLES, GREEDY, {"name": "next", "type": "next_token"}]))
    run = open_run(tmp_path / "out")
    by_default, by_name = summarise(run), summarise(run, "samples")
    assert (by_default.baseline, by_name.baseline) == ("greedy", "samples")
    assert by_default.strategy("samples").metric("same_as_baseline") == Estimate(1.0, 1.0, 1.0)
    assert by_default.strategy("greedy").metric("same_as_baseline") == Estimate(None)
    assert by_name.strategy("greedy").metric("same_as_baseline").value == 1.0
    for name in ("next", "nobody"):
        with pytest.raises(ConfigError, match=f"not `{name}`. Choose one of samples, greedy."):
            summarise(run, name)


def test_a_difference_is_of_pairs_and_has_its_own_interval(tmp_path: Path) -> None:
    source = write_prompts(tmp_path / "p.parquet", ["I skip across the"] * 12)
    run_echo(make_job(source, tmp_path / "out"))
    summary = summarise(open_run(tmp_path / "out"))
    greedy, samples = summary.strategies
    assert greedy.difference(samples, "perplexity") == Estimate(0.0, 0.0, 0.0)
    assert greedy.difference(samples, "sample_overlap") == Estimate(None)
