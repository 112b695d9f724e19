"""The tokenizer on any text: every str, of which some no UTF-8 can carry, and any merges.

Words and files: test_text.py.
"""

import tempfile
import unicodedata
import warnings
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from ldm_numpy.text import Tokenizer, normalise, split

from .hypothesis_profile import fewer

# Letters whose case and composition depend on their neighbours, blanks of all kinds, joiners.
ODD = "AaΣσςİıßẞſKÅJ\u030c\u0301\u0323'’\u00a0\u2028\x1c\x85\u200d\ufeff1½Ⅷ٣七🎨\ud83c\udfa8\udcff"
every_str = st.text(st.characters(), max_size=30) | st.text(ODD, max_size=30)
encodable = st.text(max_size=30) | st.text([c for c in ODD if not 0xD800 <= ord(c) < 0xE000])
# Few letters, so that pairs come again, in one word too, and are merged.
few_letters = st.text("ab", max_size=12) | st.text("ab é\u0301七'", max_size=12)


@st.composite
def tokenizers(draw):
    """Trained on a few short texts, or on none."""
    captions = draw(st.lists(few_letters, max_size=4))
    return Tokenizer.train(captions, draw(st.integers(514, 530)), draw(st.integers(3, 12)))


@given(tokenizers(), every_str | few_letters)
def test_round_trip_of_any_text_with_any_merges(tokenizer, text):
    ids = tokenizer.encode(text)
    assert ids[0] == tokenizer.start_token and ids[-1] == tokenizer.end_token
    assert all(0 <= i < tokenizer.start_token for i in ids[1:-1])
    assert tokenizer.decode(ids) == normalise(text)


@given(every_str)
def test_normalisation_is_the_documented_one(text):
    """Lone surrogates become U+FFFD; NFC; lower case; no white space but one blank at each cut."""
    found = normalise(text)
    found.encode("utf-8")  # which no surrogate survives
    assert "  " not in found and found == found.strip()
    assert all(c == " " or not c.isspace() for c in found)
    paired = text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    expected = unicodedata.normalize("NFC", paired).lower()
    assert found.replace(" ", "") == "".join(expected.split())


@given(every_str)
def test_pieces_hold_one_kind_of_character(text):
    for piece in split(text):
        kinds = {unicodedata.category(c)[0] for c in piece}
        kinds = {kind if kind in "LN" else "other" for kind in kinds}
        if piece[0] != "'" or kinds != {"other", "L"}:  # but for contractions
            assert len(kinds) == 1
        else:
            assert piece[1:] in ("s", "ſ", "t", "re", "ve", "m", "ll", "d")
        assert len(piece) == 1 or "N" not in kinds


@given(tokenizers(), encodable)
def test_composition_and_blanks_do_not_change_the_ids(tokenizer, text):
    ids = tokenizer.encode(text)
    for form in ("NFC", "NFD"):
        assert tokenizer.encode(unicodedata.normalize(form, text)) == ids
    assert tokenizer.encode(f"\u2003{text}\n\t ") == ids


@given(tokenizers(), st.lists(every_str | few_letters, max_size=4))
def test_a_batch_is_each_text_cut_or_filled_up(tokenizer, texts):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        rows = tokenizer(texts)
    assert rows.shape == (len(texts), tokenizer.context_length)
    too_long = 0
    for row, text in zip(rows.tolist(), texts):
        ids = tokenizer.encode(text)
        cut = ids[: tokenizer.context_length - 1]
        too_long += len(ids) > tokenizer.context_length
        assert row == cut + [tokenizer.end_token] * (tokenizer.context_length - len(cut))
    assert len(caught) == too_long


@given(tokenizers(), every_str | few_letters)
def test_words_are_where_their_tokens_are(tokenizer, text):
    ids, end = tokenizer.encode(text), 1
    words = tokenizer.words(text)
    for word, place in words:
        assert place.start == end and place.stop < tokenizer.context_length
        assert tokenizer.decode(ids[place]) == word
        end = place.stop
    assert [word for word, _ in words] == split(text)[: len(words)]
    if len(words) < len(split(text)):  # the next one would not fit
        rest = len(tokenizer.encode(split(text)[len(words)])) - 2
        assert end + rest >= tokenizer.context_length


@fewer(4)
@given(tokenizers(), every_str)
def test_a_saved_tokenizer_is_the_same(tokenizer, text):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "tokenizer.json"
        tokenizer.save(path)
        loaded = Tokenizer.load(path)
    assert loaded.merges == tokenizer.merges
    assert loaded.context_length == tokenizer.context_length
    assert loaded.encode(text) == tokenizer.encode(text)
