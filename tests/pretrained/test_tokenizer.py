"""Byte pair encoding on a small list of merges, worked out by hand, and on CLIP's own where it is installed."""

import importlib.util

import pytest

from jaxz.errors import InputError
from jaxz.pretrained.tokenizer import Tokenizer, words

MERGES = "#version: small\nl o\nlo w</w>\nlo w\ne r</w>\nn e\nne w\nr e\na a\n"
LOW, LOW_END, ER_END = 512 + 2, 512 + 1, 512 + 3  # 256 bytes, 256 that end a word, then the merges
BYTES = [*range(33, 127), *range(161, 173), *range(174, 256)]
BYTES += [byte for byte in range(256) if byte not in BYTES]  # the order in which the vocabulary has them


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    path = tmp_path_factory.mktemp("bpe") / "merges.txt"
    path.write_text(MERGES)
    return Tokenizer(path)


def letter(character: str, last: bool = False) -> int:
    [byte] = character.encode("latin-1")
    return BYTES.index(byte) + 256 * last


def test_merges_follow_their_rank(small):
    assert small.encode("low") == [LOW_END]
    assert small.encode("lower") == [LOW, ER_END]
    assert small.encode("LOWER  lo\n") == [LOW, ER_END, letter("l"), letter("o", True)]  # "lo" ends with another o
    assert small.encode("newer") == [512 + 5, ER_END]
    assert small.encode("aaaa") == [512 + 7, letter("a"), letter("a", True)]  # the last a is marked, so no pair
    assert small.encode("é") == [BYTES.index(0xC3), BYTES.index(0xA9) + 256]  # two bytes of UTF-8


def test_rows_begin_and_end_and_are_padded(small):
    start, end = 512 + 8, 512 + 9
    assert small(["low", ""], 5).tolist() == [[start, LOW_END, end, 0, 0], [start, end, 0, 0, 0]]
    assert small(["low low low low"], 4).tolist() == [[start, LOW_END, LOW_END, end]]
    assert small.encode("<|startoftext|>low") == [start, LOW_END]


def test_text_is_cut_as_clip_does():
    assert words("it's 12 o'clock, they'll") == ["it", "'s", "1", "2", "o", "'", "clock", ",", "they", "'ll"]
    assert words("a²½b !!'s 星系") == ["a", "²", "½", "b", "!!'", "s", "星系"]


def test_a_file_that_is_no_vocabulary_is_refused(tmp_path):
    (tmp_path / "merges.txt").write_text("#version\na b c\n")
    with pytest.raises(InputError, match="no list of merges"):
        Tokenizer(tmp_path / "merges.txt")
    with pytest.raises(InputError, match="cannot be read"):
        Tokenizer(tmp_path / "none.txt")


@pytest.mark.skipif(not importlib.util.find_spec("open_clip"), reason="needs an installed open_clip_torch")
def test_ids_of_clip():
    """The examples of OpenAI's repository."""
    assert Tokenizer()(["hello world!"])[0, :5].tolist() == [49406, 3306, 1002, 256, 49407]
