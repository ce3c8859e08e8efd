"""The pictures of tutorial.md, drawn from what the `demo` model gives: `python -m docs.generate_pictures [FOLDER]`.

SVG, the same at each call and on each machine, because what is drawn is rounded first. Colours can be told apart by
everybody and in grey; the site inverts them in the dark.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import numpy.typing as npt
from matplotlib.figure import Figure

from pipeline import Engine

PROMPT = "I skip across the"
PROMPTS = [PROMPT, "The quiet fox", "Today", "Every bee", "Weather:", "Count: one,"]
BLUE, PALE, ORANGE, GREY = "#1d4f91", "#b9cde6", "#d9722e", "#777777"
STYLE: dict[Any, Any] = {
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlelocation": "left",
    "svg.hashsalt": "batchgen",
}
Row = dict[str, Any]
Probs = npt.NDArray[np.float64]


def draw(folder: Path) -> None:
    """Write every picture."""
    engine = Engine("demo", top_k=768)  # all tokens there are
    folder.mkdir(parents=True, exist_ok=True)
    for name, picture in PICTURES.items():
        with matplotlib.rc_context(STYLE):
            picture(engine).savefig(folder / f"{name}.svg", transparent=True, metadata={"Date": None})


def candidates(engine: Engine) -> Figure:
    """What may come next, as bars."""
    probs, tokens = _next(engine)
    figure = Figure((7, 3.2), layout="constrained")
    axes = figure.add_subplot()
    axes.barh(tokens[:10], np.round(100 * probs[:10], 1), color=[BLUE, *[PALE] * 9])
    axes.bar_label(axes.containers[0], fmt="%.1f %%", padding=4)  # type: ignore[arg-type]
    axes.invert_yaxis()
    axes.set(title=f"What comes after “{PROMPT}”?", xticks=[], xlim=(0, 23))
    axes.spines["bottom"].set_visible(False)
    axes.tick_params(length=0)
    return figure


def temperature(engine: Engine) -> Figure:
    """The same distribution sharpened and flattened, and where filters cut it."""
    probs, tokens = _next(engine)
    figure = Figure((8, 3.4), layout="constrained")
    panels = figure.subplots(1, 3, sharey=True)
    for axes, value in zip(panels, (0.5, 1.0, 2.0), strict=True):
        scaled = np.exp(np.log(probs) / value)
        scaled = np.round(scaled / scaled.sum(), 4)
        in_nucleus = np.cumsum(scaled) - scaled < 0.9
        shown = np.append(scaled[:12], scaled[12:].sum())
        colours = [*(BLUE if kept else PALE for kept in in_nucleus[:12]), GREY]
        axes.bar(range(13), 100 * shown, color=colours)
        axes.set(title=f"temperature {value}", xticks=range(13))
        axes.set_xticklabels([*tokens[:12], "all others"], rotation=90)
        axes.axvline(4.5, color=ORANGE, linestyle="--", linewidth=1)
        axes.tick_params(axis="x", length=0)
    panels[0].set_ylabel("probability, %")
    panels[0].annotate("top_k: 5 ends here", (4.8, 30), color=ORANGE)
    panels[0].annotate("dark: kept by top_p: 0.9", (4.8, 27), color=BLUE)
    return figure


def paths(engine: Engine) -> Figure:
    """How probable each token of the greedy completion and of the best beam was."""
    limit = {"max_new_tokens": 20}
    strategies = [
        {"name": "greedy", "type": "greedy", **limit},
        {"name": "beams", "type": "beam_search", "num_beams": 5, **limit},
    ]
    greedy, beam = engine.generate([PROMPT], strategies)
    figure = Figure((8, 4.2), layout="constrained")
    panels = zip(figure.subplots(2, 1, sharex=True), (greedy, beam), ("greedy", "best of 5 beams"), strict=True)
    for axes, row, title in panels:
        probs = np.round(100 * np.exp(row["token_logprobs"]), 1)
        axes.bar(range(len(probs)), probs, color=PALE)
        names = [engine.vocabulary.texts[token_id] for token_id in row["token_ids"]]
        for step, (prob, name) in enumerate(zip(probs, names, strict=True)):
            axes.annotate(_named(name), (step, prob), (0, 2), textcoords="offset points", ha="center", fontsize=8)
        axes.set(title=f"{title}: {100 * np.exp(row['cumulative_logprob']):.1f} % altogether", ylim=(0, 118))
        axes.set(ylabel="probability, %", yticks=[0, 50, 100])
    axes.set_xlabel("step")
    return figure


def trade_off(engine: Engine) -> Figure:
    """How sure of its text the model is, against how many texts differ."""
    engine = Engine("demo", top_k=0)  # nothing else is looked at
    draws: Row = {"type": "sampling", "max_new_tokens": 20, "num_return_sequences": 8}
    temperatures = (0.25, 0.5, 0.75, 1.0, 1.25, 1.5, 2.0)
    filters: dict[str, Row] = {"top_p: 0.8": {"top_p": 0.8}, "top_k: 5": {"top_k": 5}, "min_p: 0.2": {"min_p": 0.2}}
    plain: list[Row] = [{"name": f"{value}", "temperature": value, **draws} for value in temperatures]
    cut: list[Row] = [
        {"name": f"hot{number}", "temperature": 2.0, **keys, **draws} for number, keys in enumerate(filters.values())
    ]
    beams = {"name": "beams", "type": "beam_search", "max_new_tokens": 20, "num_beams": 8, "num_return_sequences": 8}
    rows = list(engine.generate(PROMPTS, [*plain, *cut, beams]))
    figure = Figure((7, 4), layout="constrained")
    axes = figure.add_subplot()
    line = [_point(rows, strategy["name"]) for strategy in plain]
    axes.plot(*zip(*line, strict=True), "o-", color=BLUE, label="temperature alone")
    for point, value in zip(line, temperatures, strict=True):
        axes.annotate(f"{value}", point, (6, -12), textcoords="offset points", color=BLUE)
    for number, (label, strategy) in enumerate(zip(filters, cut, strict=True)):
        axes.plot(*_point(rows, strategy["name"]), "s^D"[number], color=ORANGE, label=f"temperature 2.0, {label}")
    axes.plot(*_point(rows, "beams"), "P", color=GREY, label="8 beams")
    axes.set(xscale="log", xlabel="perplexity under the model itself", ylabel="different completions, %", ylim=(0, 108))
    axes.set_xticks([1, 2, 5, 10], labels=["1", "2", "5", "10"])
    axes.minorticks_off()
    axes.set_title("Sure, or various?")
    axes.legend(frameon=False, loc="lower right")
    return figure


PICTURES: dict[str, Callable[[Engine], Figure]] = {
    "candidates": candidates,
    "temperature": temperature,
    "paths": paths,
    "trade-off": trade_off,
}


def _next(engine: Engine) -> tuple[Probs, list[str]]:
    """Probabilities of all next tokens, in descending order, and the tokens."""
    (row,) = engine.generate([PROMPT], [{"name": "next", "type": "next_token"}])
    texts = [_named(engine.vocabulary.texts[token_id]) for token_id in row["top_token_ids"][0][:12]]
    return np.asarray(row["top_probs"][0], np.float64), texts


def _named(token: str) -> str:
    return "end" if token == "<|endoftext|>" else token.replace(" ", "·")


def _point(rows: list[Row], strategy: str) -> tuple[float, float]:
    """Perplexity, and the share of completions that differ from all others of their prompt, in percent."""
    chosen = [row for row in rows if row["strategy"] == strategy]
    logprob, tokens = (sum(row[key] for row in chosen) for key in ("cumulative_logprob", "num_generated_tokens"))
    different = {(row["row_index"], row["text"]) for row in chosen}
    return round(float(np.exp(-logprob / tokens)), 2), 100 * len(different) / len(chosen)


if __name__ == "__main__":
    draw(Path(sys.argv[1]) if sys.argv[1:] else Path(__file__).parent / "pictures")
