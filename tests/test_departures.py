"""Where the engine departs from transformers on purpose: what `docs/departures.md` lists and no other test shows."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import GPT2LMHeadModel

from pipeline.records import Completion, Request
from pipeline.strategies import BeamSearch, ContrastiveSearch, Decoding, Dola, Greedy
from tests.models import engine_for, random_model

EOS = 5
MODEL = random_model(vocab_size=40, layers=4, positions=16)
PAGE = Path(__file__).parent.parent / "docs" / "departures.md"


def complete(prompts: list[tuple[int, ...]], strategy: Decoding) -> list[Completion]:
    """The best completion of each prompt."""
    responses = engine_for(MODEL, eos=EOS).generate([Request(prompt, strategy, (0,)) for prompt in prompts])
    return [response.completions[0] for response in responses]  # type: ignore[index]


def logprobs(model: GPT2LMHeadModel, tokens: tuple[int, ...]) -> torch.Tensor:
    with torch.no_grad():
        return model(torch.tensor([tokens])).logits[0, -1].log_softmax(-1)


def test_the_page_of_departures_names_a_test_for_each() -> None:
    rows = [line for line in PAGE.read_text().splitlines() if line.startswith("| ")][1:]
    named = [re.findall(r"`(test_\w+)`", row.split(" | ")[-1]) for row in rows]
    defined = {
        name
        for path in Path(__file__).parent.glob("test_*.py")
        for name in re.findall(r"^def (test_\w+)", path.read_text(), re.MULTILINE)
    }
    assert len(named) > 15
    assert all(names and set(names) <= defined for names in named)


def test_a_row_of_no_repeated_tokens_does_not_see_the_padding_of_transformers() -> None:
    """GPT-2 pads with end of text, which a padded row of transformers therefore never generates."""
    prompts = [(9, 3, 1, 7), (9,)]
    values: dict[str, Any] = {"no_repeat_ngram_size": 1, "max_new_tokens": 3}
    bias = {"sequence_bias": [[[EOS], 100.0]]}
    padded = MODEL.generate(
        torch.tensor([prompts[0], (EOS, EOS, EOS, 9)]),
        attention_mask=torch.tensor([[1, 1, 1, 1], [0, 0, 0, 1]]),
        do_sample=False,
        pad_token_id=EOS,
        eos_token_id=EOS,
        **values,
        **bias,
    )[:, 4:].tolist()
    assert (padded[0][0], EOS in padded[1]) == (EOS, False)
    strategy = Greedy.model_validate(
        {"name": "g", "type": "greedy", **values, "sequence_bias": [{"token_ids": [EOS], "bias": 100.0}]}
    )
    assert [done.token_ids.tolist() for done in complete(prompts, strategy)] == [[EOS], [EOS]]


def test_guided_beams_are_guided_by_their_own_texts() -> None:
    strategy = BeamSearch(
        name="b", type="beam_search", num_beams=4, max_new_tokens=6, guidance_scale=2.0, negative_prompt_ids=(8, 9)
    )
    prompts = [(1, 2, 3), (4,), (11, 30)]
    for prompt, done in zip(prompts, complete(prompts, strategy), strict=True):
        tokens = tuple(done.token_ids.tolist())
        total = 0.0
        for step, token in enumerate(tokens):
            with_prompt, without = logprobs(MODEL, prompt + tokens[:step]), logprobs(MODEL, (8, 9, *tokens[:step]))
            total += float((without + 2.0 * (with_prompt - without))[token])
        assert done.sequence_score == pytest.approx(total / len(tokens), abs=1e-4)


def layers_of(prompt: tuple[int, ...], *, with_norm: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """Log-probabilities of the last layer, (V,), and of layers 0 to 3, (4, V)."""
    with torch.no_grad():
        *early, last = MODEL(torch.tensor([prompt]), output_hidden_states=True).hidden_states
        read = [MODEL.transformer.ln_f(state) if with_norm else state for state in early]
        return MODEL.lm_head(last)[0, -1].log_softmax(-1), torch.stack(
            [MODEL.lm_head(state)[0, -1].log_softmax(-1) for state in read]
        )


def contrasted(prompt: tuple[int, ...], layer: int, *, with_norm: bool = True) -> int:
    """The first token of DoLa over one early layer, from its paper."""
    final, early = layers_of(prompt, with_norm=with_norm)
    gains = torch.where(final.exp() >= 0.1 * final.exp().max(), final - early[layer], -torch.inf)
    return int(gains.argmax())


def first_tokens(prompts: list[tuple[int, ...]], *layers: int) -> list[int]:
    strategy = Dola(name="d", type="dola", dola_layers=layers, max_new_tokens=1)
    return [int(done.token_ids[0]) for done in complete(prompts, strategy)]


PROMPTS = [(one, other) for one in range(40) for other in (3, 17)]


def test_dola_reads_early_layers_through_the_final_norm() -> None:
    found = first_tokens(PROMPTS, 1)
    assert found == [contrasted(prompt, 1) for prompt in PROMPTS]
    assert found != [contrasted(prompt, 1, with_norm=False) for prompt in PROMPTS]


def test_dola_chooses_the_layer_of_each_row_by_itself() -> None:
    together = first_tokens(PROMPTS, 2, 3)
    assert together == [first_tokens([prompt], 2, 3)[0] for prompt in PROMPTS]
    by_layer = [(contrasted(prompt, 2), contrasted(prompt, 3)) for prompt in PROMPTS]
    assert all(token in tokens for token, tokens in zip(together, by_layer, strict=True))
    assert {tokens.index(token) for token, tokens in zip(together, by_layer, strict=True) if len({*tokens}) == 2} == {
        0,
        1,
    }


def test_contrastive_search_ends_with_the_last_position() -> None:
    strategy = ContrastiveSearch(
        name="c", type="contrastive_search", penalty_alpha=0.6, top_k=3, max_new_tokens=50, ignore_eos=True
    )
    greedy = Greedy(name="g", type="greedy", max_new_tokens=50, ignore_eos=True)
    prompts = [(1, 2, 3), (4,) * 15, (4,) * 16]
    assert [len(done.token_ids) for done in complete(prompts, strategy)] == [13, 1, 0]
    assert [len(done.token_ids) for done in complete(prompts, greedy)] == [14, 2, 1]
    assert {done.finish_reason for done in complete(prompts, strategy)} == {"context"}
