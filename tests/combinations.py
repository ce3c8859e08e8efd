"""Which keys go with which strategies, asked of the job file's own rules: the tables of docs/combinations.md.

`python -m tests.combinations` prints them, `--write` puts them into the page. Every answer is that of `parse_job`, so
the tables hold whatever the rules become; `KINDS` and `KEYS` only bring values to ask with.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping
from itertools import combinations
from pathlib import Path
from typing import Any, get_args

from pipeline.errors import ConfigError
from pipeline.jobfile import parse_job
from pipeline.strategies import PROCESSORS, SAMPLERS, Decoding, Score

PAGE = Path(__file__).parent.parent / "docs" / "combinations.md"
BEGIN, END = "<!-- made by python -m tests.combinations --write -->\n", "<!-- end -->\n"

BEAMS = {"type": "beam_search", "max_new_tokens": 10, "num_beams": 4}
KINDS: dict[str, dict[str, Any]] = {
    "greedy": {"type": "greedy", "max_new_tokens": 10},
    "sampling": {"type": "sampling", "max_new_tokens": 10},
    "beam_search": BEAMS,
    "do_sample": BEAMS | {"do_sample": True},
    "num_beam_groups": BEAMS | {"num_beam_groups": 2, "diversity_penalty": 0.5},
    "force_words": BEAMS | {"force_words": ["castle"]},
    "contrastive_search": {"type": "contrastive_search", "max_new_tokens": 10, "penalty_alpha": 0.2, "top_k": 4},
    "dola": {"type": "dola", "max_new_tokens": 10, "dola_layers": "low"},
    "next_token": {"type": "next_token"},
    "score": {"type": "score"},
}

# A value of each key, strong enough to be seen in a completion of the demo model.
KEYS: dict[str, Any] = {
    "guidance_scale": 4.0,
    "negative_prompt": "The quiet fox",
    "negative_prompt_ids": [40, 294],
    "sequence_bias": [{"token_ids": [417], "bias": 40.0}],
    "diversity_penalty": 5.0,
    "encoder_repetition_penalty": 30.0,
    "repetition_penalty": 30.0,
    "frequency_penalty": 2.0,
    "presence_penalty": 2.0,
    "no_repeat_ngram_size": 1,
    "bad_words": ["line", "street", "I"],
    "bad_words_ids": [[423], [374], [13], [40], [765]],
    "min_new_tokens": 10,
    "allowed_words": ["castle", "river"],
    "allowed_words_ids": [[417], [374], [277, 372, 394]],
    "forced_bos_token_id": 417,
    "forced_eos_token_id": 767,
    "exponential_decay_length_penalty": [1, 5.0],
    "suppress_tokens": [423, 374, 13, 40, 765],
    "begin_suppress_tokens": [423, 374, 13, 40, 765],
    "temperature": 0.3,
    "top_h": 0.2,
    "top_k": 3,
    "top_p": 0.3,
    "min_p": 0.6,
    "typical_p": 0.2,
    "epsilon_cutoff": 0.15,
    "eta_cutoff": 0.5,
    "stop_strings": ["e"],
    "stop_token_ids": [423, 374, 13, 259],
    "ignore_eos": True,
    "max_new_tokens": 5,
    "max_length": 16,
    "num_return_sequences": 2,
    "num_beams": 4,
    "length_penalty": 2.0,
    "early_stopping": True,
    "do_sample": True,
    "num_beam_groups": 2,
    "force_words": ["castle"],
    "force_words_ids": [[417]],
    "penalty_alpha": 0.6,
    "dola_layers": "low",
    "target_column": "target",
    "add_bos": True,
}
# What a key needs beside it.
WITH: dict[str, dict[str, Any]] = {
    "negative_prompt": {"guidance_scale": 4.0},
    "negative_prompt_ids": {"guidance_scale": 4.0},
    "diversity_penalty": {"num_beam_groups": 2},
    "num_beam_groups": {"diversity_penalty": 0.5},
}
STOPS = ("stop_strings", "stop_token_ids", "ignore_eos", "max_new_tokens", "max_length", "num_return_sequences")
BESIDE = {
    "guidance_scale": ("negative_prompt", "negative_prompt_ids"),
    "bad_words_ids": ("bad_words",),
    "allowed_words_ids": ("allowed_words",),
}
PROCESSING = tuple(each for key in PROCESSORS for each in (key, *BESIDE.get(key, ())))
OWN = tuple(key for key in KEYS if key not in (*PROCESSING, *SAMPLERS, *STOPS))
GROUPS: Mapping[str, tuple[str, ...]] = {
    "Processors": PROCESSING,
    "Samplers": SAMPLERS,
    "Stops, limits and rows": STOPS,
    "Keys of one type": OWN,
}


def all_keys() -> set[str]:
    """Every key that any type of strategy has."""
    return {key for kind in (*get_args(Decoding), Score) for key in kind.model_fields} - {"name", "type"}


def strategy(kind: str, *keys: str) -> dict[str, Any]:
    """Values of a strategy of this kind with these keys; `max_length` takes the place of the kind's own limit."""
    values = dict(KINDS[kind])
    if "max_length" in keys and "max_new_tokens" not in keys:
        values.pop("max_new_tokens", None)
    added = {key: KEYS[key] for key in keys if key not in values or key not in OWN}
    needed = {other: value for key in keys for other, value in WITH.get(key, {}).items() if other not in added}
    return {"name": "-".join((kind, *keys))[:64], **values, **added, **needed}


def refusal(values: dict[str, Any]) -> str | None:
    """Why a job with this one strategy is refused, None if it is not."""
    job = {"model": "demo", "input": {"path": "prompts.jsonl"}, "output": {"path": "out"}, "strategies": [values]}
    try:
        parse_job(job)
    except ConfigError as error:
        return str(error).splitlines()[0].removeprefix("error: ")
    return None


def works_with(kind: str) -> list[str]:
    """Keys that a kind takes."""
    return [key for key in KEYS if refusal(strategy(kind, key)) is None]


def tables() -> str:
    """All tables, as the page has them."""
    notes: dict[str, int] = {}
    parts = [_group(title, keys, notes) for title, keys in GROUPS.items()]
    why = "".join(f"{number}. {reason}\n" for reason, number in notes.items())
    return "\n".join([*parts, f"## Why not\n\n{_what_types_do()}\n{why}", _not_together(), _not_alone()])


def _group(title: str, keys: Iterable[str], notes: dict[str, int]) -> str:
    rows = [[f"`{key}`", *(_cell(kind, key, notes) for kind in KINDS)] for key in keys]
    return f"## {title}\n\n{_table(['', *(f'`{kind}`' for kind in KINDS)], rows)}"


def _cell(kind: str, key: str, notes: dict[str, int]) -> str:
    why = refusal(strategy(kind, key))
    if why is None:
        return "✓"
    of_type = _halves(kind, why)
    reason = of_type[1] if of_type else why.removeprefix(f"`{key}` has ")
    return str(notes.setdefault(reason, len(notes) + 1))


def _halves(kind: str, why: str) -> list[str]:
    """What a type does and what there is not, therefore; empty if a refusal is not about the type."""
    _, is_of_type, reason = why.partition(f" does not apply to `type: {KINDS[kind]['type']}`: ")
    return reason.split(", so ") if is_of_type else []


def _what_types_do() -> str:
    refusals = ((kind, refusal(strategy(kind, key))) for kind in KINDS for key in KEYS)
    does = dict.fromkeys(halves[0] for kind, why in refusals if why and (halves := _halves(kind, why)))
    return "".join(f"- {what}, so ...\n" for what in does)


def _not_together() -> str:
    """Keys that a kind takes one by one, but not together."""
    found: dict[tuple[str, str], list[str]] = {}
    could: dict[tuple[str, str], list[str]] = {}
    for kind in KINDS:
        for pair in combinations(works_with(kind), 2):
            could.setdefault(pair, []).append(kind)
            if why := refusal(strategy(kind, *pair)):
                found.setdefault((*pair, why), []).append(kind)
    rows = [
        [f"`{one}`", f"`{other}`", why, "all" if kinds == could[one, other] else ", ".join(kinds)]
        for (one, other, why), kinds in found.items()
    ]
    return f"## Not together\n\n{_table(['key', 'key', 'why', 'of the types with both'], rows)}"


def _not_alone() -> str:
    """Keys that a kind takes, but not without what `WITH` says."""
    found = {
        (key, why): None
        for kind in KINDS
        for key in sorted(set(works_with(kind)) & WITH.keys() - KINDS[kind].keys())
        if (why := refusal({other: value for other, value in strategy(kind, key).items() if other not in WITH[key]}))
    }
    return f"## Not alone\n\n{_table(['key', 'why'], [[f'`{key}`', why] for key, why in found])}"


def _table(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def page(text: str) -> str:
    """The page with its tables made anew."""
    before, rest = text.split(BEGIN)
    return f"{before}{BEGIN}\n{tables()}\n{END}{rest.split(END)[1]}"


if __name__ == "__main__":
    if sys.argv[1:] == ["--write"]:
        PAGE.write_text(page(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
    else:
        print(tables())
