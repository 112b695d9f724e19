import json
import random
import unicodedata
import warnings

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from ldm_numpy.data.captions import caption, full_prompts
from ldm_numpy.text import END, START, Tokenizer, byte_symbols, normalise, split

CAPTIONS = [caption(*prompt, numeral) for prompt in full_prompts() for numeral in (False, True)]
TOKENIZER = Tokenizer.train([*CAPTIONS, "an upright eight"], 1000, 12)


def test_byte_symbols_are_clips():
    symbols = byte_symbols()
    assert sorted(symbols) == list(range(256)) and len(set(symbols.values())) == 256
    assert [symbols[ord(c)] for c in "!~a"] == ["!", "~", "a"]
    assert symbols[0] == "Ā" and symbols[ord(" ")] == "Ġ"  # as in GPT-2's and CLIP's files
    assert "".join(symbols.values()).startswith("!\"#$%&'()*+,-./0123456789:;<=>?@ABC")


@pytest.mark.parametrize(
    "text, pieces",
    [
        ("", []),
        ("  A  Bold\n\tSEVEN ", ["a", "bold", "seven"]),
        ("1998", ["1", "9", "9", "8"]),
        ("it's we'll they've", ["it", "'s", "we", "'ll", "they", "'ve"]),
        ("I'm you're he'd don't", ["i", "'m", "you", "'re", "he", "'d", "don", "'t"]),
        ("''s", ["''", "s"]),
        ("left-leaning!?", ["left", "-", "leaning", "!?"]),
        ("sie­ben", ["sie", "­", "ben"]),  # a soft hyphen is no letter
        ("sept_8½Ⅷ", ["sept", "_", "8", "½", "ⅷ"]),  # fractions and Roman numerals are \p{N}
        ("七つ", ["七つ"]),  # \p{L}, though 七 has a numeric value
        ("e\u0301\u00a0É", ["é", "é"]),  # NFC, lower case, no-break space
        ("🎨🎨 ok", ["🎨🎨", "ok"]),
        ("\ud83c\udfa8 \udcff", ["🎨", "\ufffd"]),  # a pair of surrogates, a lone one
        (END, ["<|", "endoftext", "|>"]),
    ],
)  # fmt: skip
def test_split(text, pieces):
    assert split(text) == pieces


def test_training_finds_the_most_frequent_pair():
    # ab: 3 + 1, bc</w>: 3, b</w> .. : 1
    tokenizer = Tokenizer.train(["abc abc", "abc", "abd"], 516, 8)
    assert tokenizer.merges == [("a", "b"), ("ab", "c</w>")]
    assert tokenizer.vocab_size == 516


def test_ties_go_to_the_alphabetically_first_whatever_the_order():
    words = ["xy", "ab", "qr", "ab", "xy"]
    assert Tokenizer.train(words, 516, 8).merges == [("a", "b</w>"), ("x", "y</w>")]
    texts = CAPTIONS.copy()
    random.Random(0).shuffle(texts)
    assert Tokenizer.train(texts, 560, 8).merges == Tokenizer.train(CAPTIONS, 560, 8).merges


def test_training_stops_when_all_words_are_tokens():
    assert TOKENIZER.vocab_size < 1000
    assert TOKENIZER.vocab_size == 514 + len(TOKENIZER.merges)
    words = {word for text in CAPTIONS for word in text.split()}
    assert all(len(TOKENIZER.encode(word)) == 3 for word in words)
    assert len(Tokenizer.train(CAPTIONS, 514, 8).encode("seven")) == 2 + 5
    with pytest.raises(ValueError, match="must be >= 514"):
        Tokenizer.train(CAPTIONS, 513, 8)


def test_no_token_has_two_ids():
    """Not even where aaa could be a + aa or aa + a."""
    tokenizer = Tokenizer.train(["aaa aab aaaaaaa baaa abaa baab"], 700, 8)
    assert len(tokenizer.merges) == tokenizer.vocab_size - 514 > 5
    assert len({"".join(pair) for pair in tokenizer.merges}) == len(tokenizer.merges)


def test_ids_are_in_clips_order():
    tokenizer = Tokenizer([("i", "n"), ("t", "h"), ("a", "n</w>")], 77)
    assert tokenizer.vocab_size == 517
    assert tokenizer.encode("a") == [515, 320, 516]  # CLIP's "a</w>" is 320 as well
    assert tokenizer.encode("!") == [515, 256, 516]
    assert tokenizer.encode("An in") == [515, 514, 72, 256 + 77, 516]  # "in</w>" is no merge
    assert tokenizer.encode("thin") == [515, 513, 72, 256 + 77, 516]
    assert tokenizer.encode("ini") == [515, 512, 256 + 72, 516]
    assert (tokenizer.start_token, tokenizer.end_token) == (515, 516)


def test_merges_apply_in_the_order_learned_not_from_the_left():
    tokenizer = Tokenizer([("b", "c"), ("a", "b")], 8)
    assert tokenizer.encode("abcd")[1:-1] == [64, 512, 256 + 67]  # a | bc | d</w>
    tokenizer = Tokenizer([("a", "a")], 8)
    assert tokenizer.encode("aaaaa")[1:-1] == [
        512,
        512,
        256 + 64,
    ]  # every aa, from the left


def test_empty_prompt_is_start_and_end():
    assert (
        TOKENIZER.encode("")
        == TOKENIZER.encode(" \n")
        == [
            TOKENIZER.start_token,
            TOKENIZER.end_token,
        ]
    )
    assert TOKENIZER.decode(TOKENIZER.encode("")) == ""


@given(st.text())
@example("'S 'ſ K Å İ ΑΣ ß ﬁ </w> Ġ \x00\x1c\x85\u2028 \ufeff")
@example("\ud800 \udcff\ud83c\udfa8")
def test_round_trip_of_any_text(text):
    for tokenizer in (TOKENIZER, Tokenizer([], 8)):
        ids = tokenizer.encode(text)
        assert tokenizer.decode(ids) == normalise(text)
        assert all(0 <= i < tokenizer.vocab_size for i in ids)
        assert ids.count(tokenizer.start_token) == ids.count(tokenizer.end_token) == 1


@given(st.text())
def test_normalise_only_changes_case_composition_and_blanks(text):
    tight = "".join(normalise(text).split())
    assert tight == "".join(unicodedata.normalize("NFC", text).lower().split())


def test_special_tokens_in_a_text_are_text():
    ids = TOKENIZER.encode(f"{START} a seven {END}")
    assert ids.count(TOKENIZER.start_token) == ids.count(TOKENIZER.end_token) == 1
    assert TOKENIZER.decode(ids) == "<| startoftext |> a seven <| endoftext |>"


def test_decode():
    assert TOKENIZER.decode([TOKENIZER.end_token] * 3) == ""
    assert TOKENIZER.decode(TOKENIZER(["An UPRIGHT eight"])[0]) == "an upright eight"
    assert TOKENIZER.decode([Tokenizer([], 8).encode("é")[1]]) == "\ufffd"  # half a character
    for ids in ([TOKENIZER.vocab_size], [-1]):
        with pytest.raises(ValueError, match="token ids must be 0 to"):
            TOKENIZER.decode(ids)


def test_batch_is_padded_with_the_end_token():
    ids = TOKENIZER(["a bold seven", "", "seven"])
    assert ids.shape == (3, 12) and ids.dtype == np.int32
    for row, text in zip(ids, ["a bold seven", "", "seven"]):
        encoded = TOKENIZER.encode(text)
        assert row.tolist() == encoded + [TOKENIZER.end_token] * (12 - len(encoded))
    assert TOKENIZER([]).shape == (0, 12)
    with pytest.raises(ValueError, match="expected a list of texts"):
        TOKENIZER("a seven")


def test_long_prompt_is_cut_with_a_warning():
    text = "a bold seven leaning left upright right thin medium one two three"
    with pytest.warns(UserWarning, match="14 tokens, the model reads 12: cut off 'two three'"):
        ids = TOKENIZER([text])[0]
    assert ids[-1] == TOKENIZER.end_token and ids[0] == TOKENIZER.start_token
    assert TOKENIZER.decode(ids) == "a bold seven leaning left upright right thin medium one"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        exact = TOKENIZER(["a bold seven leaning left upright right thin medium one"])[0]
    np.testing.assert_array_equal(exact, ids)
    with pytest.raises(ValueError, match="context_length must be >= 3"):
        Tokenizer([], 2)


def test_save_and_load(tmp_path):
    path = tmp_path / "tokenizer.json"
    TOKENIZER.save(path)
    loaded = Tokenizer.load(path)
    assert loaded.merges == TOKENIZER.merges and loaded.context_length == 12
    texts = [*CAPTIONS, "çà 7½"]
    np.testing.assert_array_equal(loaded(texts), TOKENIZER(texts))
    with pytest.raises(ValueError, match="cannot write"):
        TOKENIZER.save(tmp_path / "nowhere" / "tokenizer.json")


@pytest.mark.parametrize(
    "change, message",
    [
        ({"format": "other"}, "is not a tokenizer of ldm_numpy"),
        ({"version": 2}, "has tokenizer version 2, not 1"),
        ({"merges": "ab"}, "merges must be a list of pairs"),
        ({"merges": [["a", "b"], ["a"]]}, "merges must be a list of pairs"),
        ({"merges": [["a", 1]]}, "merges must be a list of pairs"),
        ({"merges": [["ab", "c"]]}, "joins what are not tokens before it"),
        ({"merges": [["a</w>", "b"]]}, "joins what are not tokens before it"),
        ({"merges": [["a", "b"], ["a", "b"]]}, "makes a token that exists already"),
        ({"merges": [[START, "b"]]}, "joins what are not tokens before it"),
        ({"context_length": "77"}, "context_length must be a number"),
        ({"context_length": None}, "context_length must be a number"),
        ({"context_length": 0}, "context_length must be >= 3"),
    ],
)
def test_load_refuses(tmp_path, change, message):
    path = tmp_path / "tokenizer.json"
    TOKENIZER.save(path)
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(ValueError, match=message) as error:
        Tokenizer.load(path)
    assert "tokenizer.json" in str(error.value)


def test_load_refuses_files_that_are_no_json(tmp_path):
    path = tmp_path / "tokenizer.json"
    with pytest.raises(ValueError, match=r"cannot read the tokenizer .*No such file"):
        Tokenizer.load(path)
    TOKENIZER.save(path)
    for content in (path.read_bytes()[:-20], b"", b"\xff\xfe"):
        path.write_bytes(content)
        with pytest.raises(ValueError, match="is not JSON"):
            Tokenizer.load(path)
    path.write_text("[]")
    with pytest.raises(ValueError, match="is not a tokenizer"):
        Tokenizer.load(path)


@pytest.fixture
def clip_files(tmp_path):
    """CLIP's two files in small: its first three merges."""
    merges = ["i n", "t h", "a n"]
    vocab = list(byte_symbols().values())
    vocab += [symbol + "</w>" for symbol in vocab]
    vocab += [merge.replace(" ", "") for merge in merges] + [START, END]
    vocab_json, merges_txt = tmp_path / "vocab.json", tmp_path / "merges.txt"
    vocab_json.write_text(json.dumps({token: i for i, token in enumerate(vocab)}))
    merges_txt.write_text("\n".join(["#version: 0.2", *merges]) + "\n", encoding="utf-8")
    return vocab_json, merges_txt


def test_from_clip(clip_files):
    tokenizer = Tokenizer.from_clip(*clip_files)
    assert tokenizer.context_length == 77 and tokenizer.vocab_size == 517
    assert tokenizer.merges == [("i", "n"), ("t", "h"), ("a", "n")]
    assert tokenizer.encode("A thing") == [515, 320, 513, 512, 256 + 70, 516]
    assert tokenizer(["a"])[0, :4].tolist() == [515, 320, 516, 516]


def test_from_clip_refuses(clip_files):
    vocab_json, merges_txt = clip_files
    vocab, merges = json.loads(vocab_json.read_text()), merges_txt.read_text()
    for change in ({"in": 513, "th": 512}, {"extra": 517}):
        vocab_json.write_text(json.dumps(vocab | change))
        with pytest.raises(ValueError, match=r"is not the vocabulary that .* implies"):
            Tokenizer.from_clip(vocab_json, merges_txt)
    for text, message in [
        (merges + "a b c\n", "two tokens with a blank between"),
        (merges + "xy z\n", "joins what are not tokens"),
    ]:
        merges_txt.write_text(text)
        with pytest.raises(ValueError, match=message):
            Tokenizer.from_clip(vocab_json, merges_txt)
    with pytest.raises(ValueError, match="cannot read merges"):
        Tokenizer.from_clip(vocab_json, merges_txt.with_name("none.txt"))
