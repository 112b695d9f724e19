"""The tokenizer: byte-level byte-pair encoding, as in CLIP.

    "a bold seven"  ->  pieces  a | bold | seven  ->  bytes, merged pair by pair  ->  token ids

Text is cut into pieces (words, single digits, runs of other signs). A piece starts as its UTF-8
bytes, the last one carrying the end-of-word mark `</w>`; then the pair of neighbours that was
learned first is merged, and again, until no learned pair is left. Every byte is a token, so any
text has an encoding, and unknown words only take more tokens.

Sources: Sennrich et al. 2016, "Neural machine translation of rare words with subword units";
Radford et al. 2019 (GPT-2: bytes); Radford et al. 2021 (CLIP: `</w>`, lower case).
"""

import json
import re
import reprlib
import unicodedata
import warnings
from collections import Counter
from collections.abc import Iterable, Sequence
from functools import lru_cache
from itertools import pairwise
from pathlib import Path

import numpy as np

from .files import check_intact, checksum, read_file, read_json, write_atomically

START, END = "<|startoftext|>", "<|endoftext|>"
END_OF_WORD = "</w>"
FORMAT = "ldm_numpy tokenizer"
ENTRIES = {"format", "version", "context_length", "merges", "sha256"}  # of a tokenizer's file
VERSION = 1
MAX_CONTEXT = 1024  # tokens of a prompt; CLIP has 77. A file that asks for more is refused

# What follows an apostrophe in English is a piece of its own: it's -> it | 's
_CONTRACTION = re.compile(r"'s|'t|'re|'ve|'m|'ll|'d", re.IGNORECASE)


def byte_symbols() -> dict[int, str]:
    """A printable character for each byte, in the order of CLIP's vocabulary: byte -> character.

    Printable Latin-1 characters stand for themselves; the other 68 bytes (controls, blanks) get the
    characters from U+0100 on.
    """
    printable = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {byte: chr(byte) for byte in printable} | {
        byte: chr(256 + i) for i, byte in enumerate(others)
    }


_SYMBOLS = byte_symbols()


def split(text: str) -> list[str]:
    r"""Cut text into pieces: contractions, runs of letters, single digits, runs of other signs.

    The text is first put into Unicode's composed form (NFC) and lower case; a lone surrogate, which
    no UTF-8 can carry, becomes U+FFFD. White space separates and is dropped. This is CLIP's pattern
    `'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+`, whose \p{..} Python's re lacks.
    """
    text = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    text = unicodedata.normalize("NFC", text).lower()
    kinds = [" " if c.isspace() else unicodedata.category(c)[0] for c in text]
    kinds = ["other" if kind not in "LN " else kind for kind in kinds]
    pieces, i = [], 0
    while i < len(text):
        contraction = _CONTRACTION.match(text, i)
        if contraction:
            end = contraction.end()
        else:
            end = i + 1
            while end < len(text) and kinds[end] == kinds[i] != "N":
                end += 1
        if kinds[i] != " ":
            pieces.append(text[i:end])
        i = end
    return pieces


def normalise(text: str) -> str:
    """The text as the tokens carry it: its pieces (see `split`) with one blank between them."""
    return " ".join(split(text))


class Tokenizer:
    """Text -> token ids and back. Build one with `train`, `load` or `from_clip`.

    Ids, in CLIP's order: 256 bytes, 256 bytes that end a word, one a merge, start, end.
    `decode(encode(text)) == normalise(text)` for every text.
    """

    def __init__(self, merges: Sequence[tuple[str, str]], context_length: int):
        """`merges`: pairs of tokens, most important first; `context_length`: tokens a prompt has
        room for, start and end included. Raises ValueError for merges of unknown tokens.
        """
        if context_length < 3:
            raise ValueError(f"context_length must be >= 3 (start, a token, end): {context_length}")
        self.context_length = context_length
        self.merges = [tuple(pair) for pair in merges]
        # What a token stands for; a word's end stands for a blank.
        meaning = {symbol: bytes([byte]) for byte, symbol in _SYMBOLS.items()}
        meaning |= {s + END_OF_WORD: content + b" " for s, content in meaning.items()}
        for first, second in self.merges:
            problem = ""
            if first not in meaning or second not in meaning or first.endswith(END_OF_WORD):
                problem = "joins what are not tokens before it"
            elif first + second in meaning:
                problem = "makes a token that exists already"
            if problem:
                raise ValueError(f"merge {reprlib.repr(first)} {reprlib.repr(second)} {problem}")
            meaning[first + second] = meaning[first] + meaning[second]
        self._meaning = [*meaning.values(), b"", b""]
        self._ids = {token: i for i, token in enumerate([*meaning, START, END])}
        self._rank = {pair: i for i, pair in enumerate(self.merges)}
        self._piece_ids = lru_cache(maxsize=65_536)(self._encode_piece)  # captions repeat words
        self.start_token, self.end_token = self._ids[START], self._ids[END]
        self.vocab_size = len(self._ids)

    @classmethod
    def train(cls, captions: Iterable[str], vocab_size: int, context_length: int) -> "Tokenizer":
        """Learn merges: join the most frequent pair of neighbours, count again, and so on.

        Among equally frequent pairs the alphabetically first is taken, so the result depends on the
        captions alone, not on their order. Stops at `vocab_size` tokens, or earlier when every word
        is one token; the attribute `vocab_size` tells.
        """
        if vocab_size < 514:
            raise ValueError(f"vocab_size must be >= 514 (512 bytes, start, end): {vocab_size}")
        counts = Counter(piece for text in captions for piece in split(text))
        words = {piece: _symbols(piece) for piece in counts}
        merges: list[tuple[str, str]] = []
        while len(merges) < vocab_size - 514:
            pairs = Counter()
            for piece, word in words.items():
                for pair in pairwise(word):
                    pairs[pair] += counts[piece]
            if not pairs:
                break
            best = min(pairs, key=lambda pair: (-pairs[pair], pair))
            merges.append(best)
            words = {piece: _merge(word, best) for piece, word in words.items()}
        return cls(merges, context_length)

    def encode(self, text: str) -> list[int]:
        """Ids of start, the text's tokens, end. "<|endoftext|>" inside a text is mere text."""
        ids = [i for piece in split(text) for i in self._piece_ids(piece)]
        return [self.start_token, *ids, self.end_token]

    def words(self, text: str) -> list[tuple[str, slice]]:
        """The words of a text and where each has its tokens, as far as the context reaches."""
        found, end = [], 1  # after the start token
        for piece in split(text):
            start, end = end, end + len(self._piece_ids(piece))
            if end < self.context_length:
                found.append((piece, slice(start, end)))
        return found

    def decode(self, ids: Iterable[int]) -> str:
        """The text of ids; start and end stand for nothing, bytes that are no UTF-8 for U+FFFD."""
        ids = [int(i) for i in ids]
        if not all(0 <= i < self.vocab_size for i in ids):
            raise ValueError(f"token ids must be 0 to {self.vocab_size - 1}: {ids}")
        return b"".join(self._meaning[i] for i in ids).decode("utf-8", "replace").strip()

    def __call__(self, texts: Sequence[str]) -> np.ndarray:
        """(N, context_length) int32: each text's ids, filled up with the end token.

        A text too long for the context is cut before its end token; a warning says what was cut.
        """
        if isinstance(texts, str):
            raise ValueError(f"expected a list of texts, not one text: use [{texts!r}]")
        ids = np.full((len(texts), self.context_length), self.end_token, np.int32)  # (N, T)
        for row, text in zip(ids, texts, strict=True):
            tokens = self.encode(text)[:-1]
            room = self.context_length - 1
            if len(tokens) > room:
                warnings.warn(
                    f"the prompt has {len(tokens) + 1} tokens, the model reads "
                    f"{self.context_length}: cut off {self.decode(tokens[room:])!r}",
                    stacklevel=2,
                )
            row[: min(len(tokens), room)] = tokens[:room]
        return ids

    def save(self, path: str | Path) -> None:
        """Write `to_json` to a file. ValueError where that cannot be written."""
        write_atomically(path, self.to_json())

    def to_json(self) -> bytes:
        """JSON: the merges say it all, and a checksum guards them."""
        content = {
            "format": FORMAT,
            "version": VERSION,
            "context_length": self.context_length,
            "merges": self.merges,
        }
        content["sha256"] = checksum(content)
        return (json.dumps(content, indent=1) + "\n").encode()

    @classmethod
    def load(cls, path: str | Path) -> "Tokenizer":
        """Read what `save` wrote. Raises ValueError when it is not that, of another version, or
        altered since. A file that was written before there were checksums has none."""
        content = read_json(path, "the tokenizer")
        if not isinstance(content, dict) or content.get("format") != FORMAT:
            raise ValueError(f"{path} is not a tokenizer of ldm_numpy")
        if content.get("version") != VERSION:
            version = reprlib.repr(content.get("version"))
            raise ValueError(f"{path} has tokenizer version {version}, not {VERSION}")
        if unknown := content.keys() - ENTRIES:
            raise ValueError(f"{path} has an entry {reprlib.repr(min(unknown))}: no tokenizer has")
        merges, context_length = content.get("merges"), content.get("context_length")
        if not isinstance(merges, list) or not all(map(_is_pair, merges)):
            raise ValueError(f"{path}: merges must be a list of pairs of tokens")
        if type(context_length) is not int or context_length > MAX_CONTEXT:
            raise ValueError(
                f"{path}: context_length must be a number, {MAX_CONTEXT} at most, not "
                f"{reprlib.repr(context_length)}"
            )
        try:
            tokenizer = cls(merges, context_length)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from None
        check_intact(path, content)
        return tokenizer

    @classmethod
    def from_clip(
        cls, vocab_json: str | Path, merges_txt: str | Path, context_length: int = 77
    ) -> "Tokenizer":
        """The tokenizer of OpenAI's CLIP from its `vocab.json` and `merges.txt`.

        The merges decide everything; the vocabulary, 49,408 tokens in CLIP, must be the one they
        imply, or the ids would not be those the weights were trained with (ValueError).
        """
        try:
            lines = read_file(merges_txt, "merges from").decode("utf-8").splitlines()
        except UnicodeDecodeError as error:
            raise ValueError(f"{merges_txt} is not UTF-8: {error}") from None
        merges = [line.split(" ") for line in lines if line and not line.startswith("#version")]
        if not all(map(_is_pair, merges)):
            raise ValueError(f"{merges_txt}: each line must be two tokens with a blank between")
        try:
            tokenizer = cls(merges, context_length)
        except ValueError as error:
            raise ValueError(f"{merges_txt}: {error}") from None
        if read_json(vocab_json, "the vocabulary") != tokenizer._ids:
            raise ValueError(
                f"{vocab_json} is not the vocabulary that {merges_txt} implies "
                f"({tokenizer.vocab_size} tokens: bytes, bytes ending a word, merges, start, end)"
            )
        return tokenizer

    def _encode_piece(self, piece: str) -> list[int]:
        """Merge the pair learned first, everywhere in the piece, until none is left."""
        word = _symbols(piece)
        while True:
            known = [pair for pair in pairwise(word) if pair in self._rank]
            if not known:
                return [self._ids[symbol] for symbol in word]
            word = _merge(word, min(known, key=self._rank.__getitem__))


def _symbols(piece: str) -> list[str]:
    """The bytes of a piece as symbols, the last one with the end-of-word mark."""
    symbols = [_SYMBOLS[byte] for byte in piece.encode("utf-8")]
    return [*symbols[:-1], symbols[-1] + END_OF_WORD]


def _merge(word: list[str], pair: tuple[str, str]) -> list[str]:
    """Join every occurrence of `pair` in `word`, from left to right."""
    merged, i = [], 0
    while i < len(word):
        if tuple(word[i : i + 2]) == pair:
            merged.append(word[i] + word[i + 1])
            i += 2
        else:
            merged.append(word[i])
            i += 1
    return merged


def _is_pair(item: object) -> bool:
    return isinstance(item, list) and len(item) == 2 and all(isinstance(x, str) for x in item)
