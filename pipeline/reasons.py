"""Why a key has no meaning for a type of strategy: what the type does, and what there is not, therefore.

Kept as data, one line for each type and each kind of key, so that a message and a table of combinations say the same.
"""

from __future__ import annotations

from pipeline.strategies import SAMPLERS, Processed

DOES = {
    "greedy": "greedy always takes the most probable token",
    "sampling": "sampling draws each token",
    "beam_search": "beam search keeps the best of many continuations",
    "contrastive_search": "contrastive search always takes its best candidate",
    "dola": "dola always takes the token with the best contrast",
    "next_token": "next_token only shows the candidates of one step",
    "score": "score takes a text as it is",
}
BEAMS = (
    "num_beams",
    "length_penalty",
    "early_stopping",
    "num_beam_groups",
    "diversity_penalty",
    "force_words",
    "force_words_ids",
)
SO = {
    **dict.fromkeys(Processed.model_fields, "nothing is generated that it could change or stop"),
    **dict.fromkeys(SAMPLERS, "nothing is drawn"),
    **dict.fromkeys(BEAMS, "there are no beams"),
    **dict.fromkeys(("max_new_tokens", "max_length"), "there is nothing to limit"),
    **dict.fromkeys(("target_column", "add_bos"), "no given text is scored"),
    "do_sample": "there is nothing to decide",
    "dola_layers": "no layers are compared",
    "num_return_sequences": "all of them would be the same",
    "penalty_alpha": "no candidates are compared with the text before them",
}


def why_not(key: str, kind: str) -> str:
    """Why `key`, of another type, has no meaning for a strategy of type `kind`.

    >>> why_not("temperature", "greedy")
    'greedy always takes the most probable token, so nothing is drawn'
    """
    return f"{DOES[kind]}, so {SO[key]}"
