"""CLIP's tokenizer (Radford et al. 2021): byte pair encoding (Sennrich et al. 2016, alg. 1) of lower-case text's bytes.

The vocabulary is a list of merges, bpe_simple_vocab_16e6.txt.gz as OpenAI published it, which open_clip_torch holds, or
merges.txt in a directory of Hugging Face. Text is taken as it is: what ftfy would mend first (mojibake, curly quotes)
is for the caller to mend.
"""

import functools
import gzip
import html
import importlib.util
import re
import unicodedata
import zlib
from pathlib import Path

import numpy as np

from jaxz.errors import InputError

FILE = "bpe_simple_vocab_16e6.txt.gz"
MERGES = 49152 - 256 - 2  # those that CLIP uses of the file's
START, END = "<|startoftext|>", "<|endoftext|>"
FIXED = re.compile(r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d", re.IGNORECASE)
LAST = "</w>"  # marks the end of a word


def byte_letters() -> dict[int, str]:
    """A printable character for each byte: itself, where it is one, or one from U+0100 on."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    rest = [byte for byte in range(256) if byte not in printable]
    return {byte: chr(byte) for byte in printable} | {byte: chr(256 + n) for n, byte in enumerate(rest)}


LETTERS = byte_letters()


def vocabulary_file() -> Path:
    """That of an installed open_clip_torch, which is not imported (it needs torch)."""
    spec = importlib.util.find_spec("open_clip")
    path = Path(spec.origin).with_name(FILE) if spec and spec.origin else None
    if path is None or not path.is_file():
        raise InputError(f"vocabulary: open_clip_torch is not installed; give the path of {FILE} or of a merges.txt")
    return path


class Tokenizer:
    """ids = Tokenizer()(["a galaxy", ...])  ->  int32 [T, context]."""

    def __init__(self, path: Path | str | None = None):
        """path: of the list of merges; None for that of an installed open_clip_torch.

        Raises InputError where it cannot be found or is no list of merges.
        """
        path = Path(path) if path else vocabulary_file()
        try:
            content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
            lines = content.decode().split("\n")[1 : MERGES + 1]  # the first line says the version
            merges = [tuple(line.split()) for line in lines if line]
        except (OSError, EOFError, UnicodeDecodeError, zlib.error) as error:
            raise InputError(f"vocabulary: {str(path)!r} cannot be read ({error}); give the path of {FILE}") from None
        if not merges or any(len(pair) != 2 for pair in merges):
            raise InputError(f"vocabulary: {str(path)!r} is no list of merges; give the path of {FILE}")
        # CLIP's vocabulary begins with the printable bytes, then the others
        first = list(LETTERS.values())
        tokens = [*first, *(letter + LAST for letter in first), *("".join(pair) for pair in merges), START, END]
        self.ids = {token: n for n, token in enumerate(tokens)}
        self.rank = {pair: n for n, pair in enumerate(merges)}
        self.word = functools.lru_cache(maxsize=1 << 16)(self.merge)

    def __call__(self, texts: list[str], context: int = 77) -> np.ndarray:
        """Start, the text, end, then zeros; of a text that is too long the end stands for what is cut off."""
        rows = np.zeros((len(texts), context), np.int32)
        for row, text in zip(rows, texts, strict=True):
            ids = [self.ids[START], *self.encode(text), self.ids[END]][:context]
            row[: len(ids)] = ids
            if len(ids) == context:
                row[-1] = self.ids[END]
        return rows

    def encode(self, text: str) -> list[int]:
        """The ids of a text, without start and end."""
        text = " ".join(html.unescape(html.unescape(text)).split()).lower()
        return [n for word in words(text) for n in self.word(word)]

    def merge(self, word: str) -> tuple[int, ...]:
        """The ids of one word: of all pairs of neighbours that may be merged the first in the list is, until none is
        left."""
        if word in (START, END):
            return (self.ids[word],)
        parts = [LETTERS[byte] for byte in word.encode()]
        parts[-1] += LAST
        while len(parts) > 1:
            best = min(zip(parts, parts[1:], strict=False), key=lambda pair: self.rank.get(pair, len(self.rank)))
            if best not in self.rank:
                break
            merged: list[str] = []
            for part in parts:
                if merged and (merged[-1], part) == best:
                    merged[-1] += part
                else:
                    merged.append(part)
            parts = merged
        return tuple(self.ids[part] for part in parts)


def words(text: str) -> list[str]:
    """A text in the pieces that are never merged: special tokens, English endings, runs of letters, single numerals,
    runs of all else."""
    found, at = [], 0
    while at < len(text):
        if match := FIXED.match(text, at):
            found.append(match.group())
            at = match.end()
            continue
        kind, end = kind_of(text[at]), at + 1
        while end < len(text) and kind in "L*" and kind_of(text[end]) == kind:
            end += 1
        if kind != " ":
            found.append(text[at:end])
        at = end
    return found


def kind_of(letter: str) -> str:
    """L: letter, N: numeral, " ": space, *: all else."""
    category = unicodedata.category(letter)[0]
    return " " if letter.isspace() else category if category in "LN" else "*"
