"""How a command line ends, and the files that it reads and writes."""

import errno
import os

import pytest

from jaxz import errors
from jaxz.errors import BESIDES, InputError, Stopped
from jaxz.files import read_json, replace


def ending(main, capsys, **options) -> tuple[int, str]:
    """The exit code and what is printed on standard error."""
    with pytest.raises(SystemExit) as end:
        errors.run(main, [], **options)
    return end.value.code, capsys.readouterr().err


def throw(error):
    def main(argv):
        raise error

    return main


@pytest.mark.parametrize(
    ("error", "resumes", "code", "sentence"),
    [
        (InputError("x: 3 must be 4"), False, 2, "error: x: 3 must be 4\n"),
        (Stopped("at step 3"), False, 75, "stopped: at step 3\n"),
        (KeyboardInterrupt(), True, 75, "stopped: interrupted; run the same command again to go on\n"),
        (KeyboardInterrupt(), False, 130, "stopped: interrupted\n"),
        (MemoryError("Unable to allocate 9 TiB"), False, 1, "failed: not enough memory (Unable to allocate 9 TiB)\n"),
        (MemoryError(), False, 1, "failed: not enough memory\n"),
        (
            InputError("x.csv: row '\x1b[2J\0\n é  ☃' is damaged"),
            False,
            2,
            "error: x.csv: row '\\x1b[2J\\x00  é  ☃' is damaged\n",
        ),
        (InputError(f"a: is 1{BESIDES}b: is 2"), False, 2, "error: a: is 1\n       b: is 2\n"),
        (OSError(errno.ENOSPC, "No space left"), False, 1, "failed: No space left\n"),
        (
            OSError(errno.EIO, "Input/output error", "a"),
            False,
            1,
            "failed: a: cannot be read or written (Input/output error)\n",
        ),
        (
            OSError(errno.EROFS, "Read-only", "a"),
            False,
            2,
            "error: a: cannot be read or written (Read-only); name another\n",
        ),
    ],
)
def test_every_end_has_its_code_and_one_sentence(error, resumes, code, sentence, capsys):
    assert ending(throw(error), capsys, resumes=resumes) == (code, sentence)


def test_no_error_and_the_codes_of_main_itself(capsys):
    assert ending(lambda argv: None, capsys) == (0, "")
    assert ending(lambda argv: 1, capsys) == (1, "")


def test_what_is_no_matter_of_the_user_keeps_its_traceback():
    for error in (ValueError("a bug"), OSError("of a library")):
        with pytest.raises(type(error)):
            errors.run(throw(error), [])


@pytest.mark.parametrize(
    ("place", "sentence"),
    [
        ("none/file", "(No such file or directory); check the path"),
        ("file/below", "(Not a directory); name a path below a directory"),
        ("folder", "(Is a directory); name a file"),
    ],
)
def test_an_output_that_cannot_be_written_is_one_sentence(tmp_path, place, sentence, capsys):
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").touch()
    path = tmp_path / place
    expected = f"error: {path}: cannot be read or written {sentence}\n"
    assert ending(lambda argv: replace(path, b"content"), capsys) == (2, expected)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file", "folder"]


def test_a_full_disk_names_the_file_and_leaves_the_old_one(tmp_path, monkeypatch, capsys):
    path = tmp_path / "file"
    replace(path, b"old")
    monkeypatch.setattr(os, "fsync", lambda _: throw(OSError(errno.ENOSPC, "No space left on device"))(None))
    said = f"failed: {path}: cannot be read or written (No space left on device)\n"
    assert ending(lambda argv: replace(path, b"new"), capsys) == (1, said)
    assert path.read_bytes() == b"old" and list(tmp_path.iterdir()) == [path]


def test_json_that_is_no_object_is_named(tmp_path):
    path = tmp_path / "a.json"
    replace(path, b'{"a": 1}')
    assert read_json(path, "the plan") == {"a": 1}
    for content in (b"{", b"", b"\xff\xfe", b"[" * 100_000):
        replace(path, content)
        with pytest.raises(InputError, match=r"a.json: the plan is not JSON \(.*\); restore"):
            read_json(path, "the plan")
    replace(path, b"[1]")
    with pytest.raises(InputError, match="a.json: the plan is not a JSON object"):
        read_json(path, "the plan")
    with pytest.raises(InputError, match=r"none: the plan cannot be read \(No such file"):
        read_json(tmp_path / "none", "the plan")
