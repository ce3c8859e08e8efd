"""The tokenizer against published ids and against transformers' own, for the demo model and for GPT-2."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pytest
import tokenizers
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import decoders, models, normalizers, pre_tokenizers
from transformers import AutoTokenizer

from pipeline import words
from pipeline.checkpoint import DEMO
from pipeline.errors import ModelError
from pipeline.tokenizer import Tokenizer
from pipeline.words import WordIds

GPT2 = Path(os.environ.get("BATCHGEN_GPT2") or Path(__file__).parents[2] / "shared" / "gpt2-tokenizer")
VOCAB_SIZE = {"demo": 768, "gpt2": 50257}
PARTIAL = {"demo": (94, 95, 162, 245), "gpt2": (94, 95, 160, 162, 17312, 30325, 33768)}  # each part of a character
REPLACEMENT = "\N{REPLACEMENT CHARACTER}"

OWN = "Put the files of the checkpoint's own tokenizer there."


class Pair(NamedTuple):
    """A tokenizer and transformers' own for the same files."""

    ours: Tokenizer
    theirs: Any


def folder_of(name: str) -> Path:
    if name == "demo":
        return DEMO
    if not (GPT2 / "merges.txt").exists() or not (GPT2 / "vocab.json").exists():
        pytest.skip(f"no GPT-2 vocabulary in {GPT2}")
    return GPT2


@pytest.fixture(scope="module", params=["demo", "gpt2"])
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def pair(name: str) -> Pair:
    folder = folder_of(name)
    return Pair(Tokenizer(folder, VOCAB_SIZE[name]), AutoTokenizer.from_pretrained(folder))


@pytest.fixture(scope="module")
def demo() -> Tokenizer:
    return Tokenizer(DEMO, VOCAB_SIZE["demo"])


@pytest.fixture(scope="module")
def gpt2() -> Tokenizer:
    return Tokenizer(folder_of("gpt2"), VOCAB_SIZE["gpt2"])


def refusal(folder: Path, vocab_size: int = 768) -> str:
    with pytest.raises(ModelError) as refused:
        Tokenizer(folder, vocab_size)
    return str(refused.value)


# Encoding


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Preposterous, I'm flabbergasted!", [37534, 6197, 516, 11, 314, 1101, 781, 397, 3900, 8992, 0]),
        ("I skip across the", [40, 14267, 1973, 262]),
        ("Hello world", [15496, 995]),
        (" Hello world", [18435, 995]),
        ("", []),
    ],
)
def test_gpt2_gives_the_published_ids(gpt2: Tokenizer, text: str, expected: list[int]) -> None:
    assert gpt2.encode([text]) == [expected]
    assert gpt2.decode(expected) == text


def test_published_gpt2_ids_decode_to_their_text(gpt2: Tokenizer) -> None:
    ids = [40, 14267, 1973, 262, 1627, 284, 257, 1295, 810, 314, 460, 766]
    ids += [340, 13, 198, 198, 464, 1306, 640, 345, 821, 287, 3240, 11]
    assert gpt2.decode(ids) == "I skip across the line to a place where I can see it.\n\nThe next time you're in town,"
    assert gpt2.decode([1627]) == " line"


def test_several_texts_keep_their_order_and_are_not_padded(demo: Tokenizer) -> None:
    texts = ["I skip across the", "", "Every bee"]
    assert demo.encode(texts) == [demo.encode([text])[0] for text in texts]
    assert demo.encode([]) == []


def test_the_name_of_a_special_token_in_a_text_is_text(pair: Pair) -> None:
    (ids,) = pair.ours.encode(["a<|endoftext|>b"])
    assert pair.ours.tokens.index("<|endoftext|>") not in ids
    assert pair.ours.decode(ids) == "a<|endoftext|>b"
    assert ids == pair.theirs.encode("a<|endoftext|>b", split_special_tokens=True)


def test_a_limit_in_the_file_does_not_cut_or_pad(tmp_path: Path) -> None:
    library = tokenizers.Tokenizer.from_file(str(DEMO / "tokenizer.json"))
    library.enable_truncation(max_length=3)
    library.enable_padding(length=50)
    library.save(str(tmp_path / "tokenizer.json"))
    text = "I skip across the line to the other side"
    assert Tokenizer(tmp_path, 768).encode([text]) == Tokenizer(DEMO, 768).encode([text])


@given(text=st.text())
def test_any_text_has_the_ids_of_transformers_and_comes_back(pair: Pair, text: str) -> None:
    (ids,) = pair.ours.encode([text])
    assert ids == pair.theirs.encode(text, add_special_tokens=False, split_special_tokens=True)
    assert pair.ours.decode(ids) == text


# By words


def library_ids(tokenizer: Tokenizer, texts: list[str]) -> list[list[int]]:
    """Ids of whole texts from the library."""
    return [encoding.ids for encoding in tokenizer._tokenizer.encode_batch(texts, add_special_tokens=False)]


def test_every_two_ascii_characters_have_the_ids_of_the_library(pair: Pair) -> None:
    texts = [chr(first) + chr(second) for first in range(128) for second in range(128)]
    assert pair.ours.encode(texts) == library_ids(pair.ours, texts)


@given(text=st.text(st.sampled_from("  \t\r\n\x1c'sdelv1.aZ") | st.characters(max_codepoint=127), max_size=40))
def test_any_ascii_text_has_the_ids_of_the_library(pair: Pair, text: str) -> None:
    assert pair.ours.encode([text]) == library_ids(pair.ours, [text])


def test_more_words_than_are_remembered_have_the_ids_of_the_library(
    demo: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(words, "_MAX_CHARACTERS", 0)
    word_ids = WordIds(demo._encode)
    for text in ("a new word here", "a word", "and another new word"):
        assert list(word_ids([text])) == library_ids(demo, [text])
        assert word_ids._ids == {}


@pytest.mark.parametrize(
    ("pre_tokenizer", "normalizer"),
    [
        (pre_tokenizers.ByteLevel(add_prefix_space=True), None),
        (pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False), None),
        (pre_tokenizers.Sequence([pre_tokenizers.Digits(True), pre_tokenizers.ByteLevel(False)]), None),
        (pre_tokenizers.ByteLevel(add_prefix_space=False), normalizers.Lowercase()),
    ],
)
def test_a_tokenizer_that_cuts_otherwise_cuts_as_it_does(tmp_path: Path, pre_tokenizer: Any, normalizer: Any) -> None:
    values = json.loads((DEMO / "tokenizer.json").read_text(encoding="utf-8"))
    values["model"]["vocab"]["tĠ"] = 768  # which no word has
    values["model"]["merges"].insert(0, ["t", "Ġ"])
    library = tokenizers.Tokenizer.from_str(json.dumps(values))
    by_words = Tokenizer(save(library, tmp_path), 769)
    library.pre_tokenizer = pre_tokenizer
    if normalizer:
        library.normalizer = normalizer
    text = "Quiet foxes walk 1234 lines"
    assert Tokenizer(save(library, tmp_path), 769).encode([text]) == [library.encode(text).ids]
    assert library.encode(text).ids != by_words.encode([text])[0]


# Decoding


@given(data=st.data())
def test_any_ids_decode_as_in_transformers(name: str, pair: Pair, data: st.DataObject) -> None:
    any_id = st.integers(0, VOCAB_SIZE[name] - 1) | st.sampled_from(PARTIAL[name])
    ids = data.draw(st.lists(any_id, max_size=12))
    assert pair.ours.decode(ids) == pair.theirs.decode(ids, skip_special_tokens=True)


def test_every_single_id_decodes_as_in_transformers(name: str, pair: Pair) -> None:
    ids = range(VOCAB_SIZE[name])
    assert [pair.ours.decode([i]) for i in ids] == pair.theirs.batch_decode(
        [[i] for i in ids], skip_special_tokens=True
    )


def test_bytes_of_all_ids_join_to_what_they_decode_to(name: str, pair: Pair) -> None:
    ids = list(range(VOCAB_SIZE[name]))
    joined = b"".join(pair.ours.token_bytes).decode("utf-8", errors="replace")
    assert joined == pair.ours.decode(ids) == pair.theirs.decode(ids, skip_special_tokens=True)


def test_every_byte_is_a_token(pair: Pair) -> None:
    assert {bytes([byte]) for byte in range(256)} <= set(pair.ours.token_bytes)


def test_a_completion_may_end_inside_a_character(pair: Pair) -> None:
    (ids,) = pair.ours.encode(["日本 \N{GRINNING FACE}"])
    texts = [pair.ours.decode(ids[:end]) for end in range(1, len(ids) + 1)]
    assert texts[-1] == "日本 \N{GRINNING FACE}"
    assert texts[-2] == "日本 " + REPLACEMENT
    assert texts == [pair.theirs.decode(ids[:end]) for end in range(1, len(ids) + 1)]


def test_special_tokens_do_not_show(pair: Pair) -> None:
    special = pair.ours.tokens.index("<|endoftext|>")
    (ids,) = pair.ours.encode(["one two"])
    assert pair.ours.decode([special, *ids, special]) == "one two"
    assert pair.ours.token_bytes[special] == b""
    assert pair.ours.decode([]) == ""


def test_an_added_token_that_is_not_special_shows(tmp_path: Path) -> None:
    library = tokenizers.Tokenizer.from_file(str(DEMO / "tokenizer.json"))
    library.add_tokens(["<name of a fox>"])
    library.save(str(tmp_path / "tokenizer.json"))
    tokenizer = Tokenizer(tmp_path, 769)
    (ids,) = tokenizer.encode(["I, <name of a fox>!"])
    assert 768 in ids
    assert tokenizer.decode(ids) == library.decode(ids) == "I, <name of a fox>!"


@pytest.mark.parametrize(
    ("text", "stop", "expected"),
    [
        ("one. two. three", "three", "one. two. "),
        (
            "one. two.",
            ".",
            "one. two",
        ),  # only the one that ended it: an earlier one may be there, as min_new_tokens wants
        ("日本 \N{GRINNING FACE}", "\N{GRINNING FACE}", "日本 "),
        ("one two", "one two", ""),
        ("the quiet fox", " quiet fox", "the"),  # over several tokens
    ],
)
def test_text_is_cut_before_the_stop_string_that_ended_it(pair: Pair, text: str, stop: str, expected: str) -> None:
    (ids,) = pair.ours.encode([text])
    assert pair.ours.decode(ids, stop) == expected


def test_a_stop_string_inside_the_last_token_takes_the_rest_of_the_token_too(gpt2: Tokenizer) -> None:
    assert gpt2.decode([1627]) == " line"
    assert gpt2.decode([262, 1627], "in") == " the l"


# Words to ids


@pytest.mark.parametrize(
    ("word", "expected"),
    [
        ("skip", [(48267,), (14267,), (50232,), (32214,), (18831, 4061), (14277, 4061)]),
        (
            "iPod",
            [(72, 41565), (26915,), (541, 375), (20966, 375), (40, 33320), (314, 33320), (4061, 3727), (6101, 3727)],
        ),
        ("!", [(0,), (5145,)]),
        (
            "new york",
            [(3605, 331, 967), (649, 331, 967), (3791, 331, 967), (968, 331, 967), (13965, 28154), (12682, 28154)],
        ),
    ],
)
def test_a_word_becomes_its_forms_with_and_without_a_space(
    gpt2: Tokenizer, word: str, expected: list[tuple[int, ...]]
) -> None:
    assert gpt2.variants_ids([word]) == expected


def test_words_keep_their_order_and_lose_repetitions(demo: Tokenizer) -> None:
    line, fox = demo.variants_ids(["line"]), demo.variants_ids(["fox"])
    assert demo.variants_ids(["line", "fox", "LINE"]) == [*line, *fox]
    assert [demo.decode(ids) for ids in line] == ["line", " line", "Line", " Line", "LINE", " LINE"]
    assert demo.variants_ids([]) == []


# The vocabulary as a table


def test_the_vocabulary_has_a_row_per_id(pair: Pair, name: str) -> None:
    table = pair.ours.vocabulary()
    assert table.schema == pa.schema([("token_id", pa.int32()), ("token", pa.string()), ("bytes", pa.binary())])
    assert table["token_id"].to_pylist() == list(range(VOCAB_SIZE[name]))
    assert table["token"].to_pylist() == pair.theirs.convert_ids_to_tokens(range(VOCAB_SIZE[name]))
    assert table["bytes"].to_pylist() == pair.ours.token_bytes


def test_rows_of_the_gpt2_vocabulary(gpt2: Tokenizer) -> None:
    table = gpt2.vocabulary()
    assert table.take([0, 188, 220, 198, 1627, 50256]).to_pylist() == [
        {"token_id": 0, "token": "!", "bytes": b"!"},
        {"token_id": 188, "token": "Ā", "bytes": b"\x00"},
        {"token_id": 220, "token": "Ġ", "bytes": b" "},
        {"token_id": 198, "token": "Ċ", "bytes": b"\n"},
        {"token_id": 1627, "token": "Ġline", "bytes": b" line"},
        {"token_id": 50256, "token": "<|endoftext|>", "bytes": b""},
    ]


def test_ids_that_only_the_model_knows_have_no_token(tmp_path: Path) -> None:
    tokenizer = Tokenizer(DEMO, 800)
    assert tokenizer.vocabulary().slice(766, 3)["token"].to_pylist()[1:] == ["<|endoftext|>", None]
    assert len(tokenizer.tokens) == len(tokenizer.token_bytes) == 800
    assert tokenizer.decode([799, *tokenizer.encode(["fox"])[0], 768]) == "fox"


# Files


def write_old_files(source: Path, target: Path) -> None:
    """`vocab.json` and `merges.txt` from a `tokenizer.json`."""
    values = json.loads((source / "tokenizer.json").read_text(encoding="utf-8"))
    special = {token["content"]: token["id"] for token in values["added_tokens"]}
    (target / "vocab.json").write_text(json.dumps(values["model"]["vocab"] | special), encoding="utf-8")
    merges = "".join(f"{left} {right}\n" for left, right in values["model"]["merges"])
    (target / "merges.txt").write_text("#version: 0.2\n" + merges, encoding="utf-8")


@given(text=st.text())
def test_the_old_pair_of_files_gives_the_same_ids(old_and_new: tuple[Tokenizer, Tokenizer], text: str) -> None:
    old, new = old_and_new
    (ids,) = new.encode([text])
    assert old.encode([text]) == [ids]
    assert old.decode(ids) == text


@pytest.fixture(scope="module")
def old_and_new(name: str, pair: Pair, tmp_path_factory: pytest.TempPathFactory) -> tuple[Tokenizer, Tokenizer]:
    folder = tmp_path_factory.mktemp(name)
    if name == "demo":
        write_old_files(DEMO, folder)
    else:
        for file in ("vocab.json", "merges.txt"):
            shutil.copy(GPT2 / file, folder)
    return Tokenizer(folder, VOCAB_SIZE[name]), pair.ours


def test_the_old_pair_of_files_gives_the_same_vocabulary(old_and_new: tuple[Tokenizer, Tokenizer]) -> None:
    old, new = old_and_new
    assert old.vocabulary() == new.vocabulary()
    assert old.encode(["<|endoftext|>"]) == new.encode(["<|endoftext|>"])


def test_a_vocabulary_larger_than_the_models_is_refused() -> None:
    assert refusal(DEMO, 767) == (
        f"the tokenizer in {DEMO} knows ids up to 767, but the model has only 767 tokens. {OWN}"
    )


@pytest.mark.parametrize("present", [(), ("vocab.json",), ("merges.txt",), ("config.json",)])
def test_a_folder_without_a_tokenizer_is_refused(tmp_path: Path, present: tuple[str, ...]) -> None:
    for file in present:
        (tmp_path / file).touch()
    expected = f"{tmp_path} has no tokenizer: neither tokenizer.json nor vocab.json with merges.txt. {OWN}"
    assert refusal(tmp_path) == expected


@pytest.mark.parametrize("damage", [b"", b"{", b"\xff\xfe", b"[]", (DEMO / "tokenizer.json").read_bytes()[:-2000]])
def test_a_damaged_file_is_refused_by_its_folder(tmp_path: Path, damage: bytes) -> None:
    (tmp_path / "tokenizer.json").write_bytes(damage)
    assert refusal(tmp_path).startswith(f"the tokenizer in {tmp_path} cannot be read: ")


@pytest.mark.parametrize(
    ("file", "damage"),
    [("vocab.json", "{"), ("vocab.json", "[]"), ("merges.txt", "one two three\n"), ("merges.txt", "x y\n")],
)
def test_damaged_old_files_are_refused_by_their_folder(tmp_path: Path, file: str, damage: str) -> None:
    write_old_files(DEMO, tmp_path)
    (tmp_path / file).write_text(damage)
    assert refusal(tmp_path).startswith(f"the tokenizer in {tmp_path} cannot be read: ")


def save(tokenizer: tokenizers.Tokenizer, folder: Path) -> Path:
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder


def test_a_bpe_on_characters_is_refused(tmp_path: Path) -> None:
    characters = tokenizers.Tokenizer(models.BPE({"▁": 0, "a": 1}, []))
    characters.decoder = decoders.Metaspace()
    assert refusal(save(characters, tmp_path)) == (
        f"the tokenizer in {tmp_path} is not a byte-level BPE: it has no ByteLevel decoder. {OWN}"
    )


def test_a_table_of_words_is_refused_even_if_all_its_letters_are_ascii(tmp_path: Path) -> None:
    """Once taken for byte-level: its words were joined without spaces."""
    words = tokenizers.Tokenizer(models.WordLevel({"the": 0, "fox": 1}, unk_token="the"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    assert "is not a byte-level BPE" in refusal(save(words, tmp_path))


def test_a_token_that_is_not_made_of_bytes_is_refused(tmp_path: Path) -> None:
    mixed = tokenizers.Tokenizer(models.BPE({"a": 0, "▁": 1}, []))
    mixed.decoder = decoders.ByteLevel()
    assert refusal(save(mixed, tmp_path)) == (
        f"the tokenizer in {tmp_path} is not a byte-level BPE: token '▁' is not made of bytes. {OWN}"
    )
