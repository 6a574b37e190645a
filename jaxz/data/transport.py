"""The bytes of a remote file: over HTTP, out of an object store, or from a command; fetched whole over broken lines."""

import http.client
import logging
import os
import re
import select
import shlex
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from typing import BinaryIO
from urllib.error import HTTPError
from urllib.parse import quote, urlsplit
from urllib.request import Request, urlopen

from jaxz.errors import InputError

log = logging.getLogger("jaxz")
CHUNK = 1 << 20
BLOCK = 16 << 20  # of one request to an object store
TIMEOUT = 60.0  # seconds without a byte
TRIES, PAUSE, LONGEST_PAUSE = 8, 0.5, 30.0  # without any progress; seconds, each time twice as long
SAFE = "!#$%&'()*+,/:;=?@[]~"  # in a URL as it is
NO_COMMAND = (126, 127)  # what a shell returns where there is none
PASSING = (408, 425, 429)  # HTTP: among the 4xx, those that another try may mend

# read(relative path, start): the file's bytes from `start` to its end. Raises Broken.
Read = Callable[[str, int], Iterator[bytes]]


class Broken(Exception):
    """The bytes stopped coming; the next try may get further."""


class Gone(Broken):
    """The file is not there, not to be read by us, or not what it should be; no further try helps."""


class Missing(Gone):
    """There is no such file."""


def is_remote(path: str | os.PathLike[str]) -> bool:
    """Whether it is a URL or pipe: command, and no path of this machine."""
    return bool(re.match(r"pipe:|(?!file:)[a-z][a-z0-9+.-]*://", str(path)))


def place(path: str | os.PathLike[str]) -> str:
    """Where a dataset is, however its directory or URL is written."""
    text = str(path)
    if is_remote(text):
        return text if text.startswith("pipe:") else text.rstrip("/")
    return os.path.realpath(text.removeprefix("file://"))


def opener(url: str) -> Read:
    """How files below `url` are read. Raises InputError for a URL that cannot be."""
    if url.startswith("pipe:"):
        return command_reader(url.removeprefix("pipe:"))
    if url.startswith(("http://", "https://")):
        return http_reader(url)
    return store_reader(url)


def http_reader(url: str) -> Read:
    """By the standard library: one GET with a Range, whose answer says whether the server minded it."""
    if not re.fullmatch("[!-~]+", url):
        raise InputError(
            f"dataset {url!r}: blanks and letters beyond ASCII are written as %XX in a URL: {quote(url, safe=SAFE)}"
        )
    try:
        parts = urlsplit(url)
        (parts.hostname or "").encode("idna")
        parts.port  # noqa: B018  raises
    except ValueError as error:
        raise InputError(f"dataset {url!r}: {error}; must be http(s)://HOST[:PORT]/PATH") from None
    if not parts.hostname or parts.query or parts.fragment or "@" in parts.netloc:
        raise InputError(
            f"dataset {url!r}: must be http(s)://HOST/PATH without user, '?' or '#'; for a server that wants more, use "
            "pipe:curl -sf ... HOST/PATH/{}"
        )

    def read(relative: str, start: int) -> Iterator[bytes]:
        request = Request(f"{url}/{quote(relative)}", headers={"Range": f"bytes={start}-"} if start else {})
        try:
            with urlopen(request, timeout=TIMEOUT) as response:
                left, skip = response.length, start  # left: None where the server does not say
                if response.status == 206:
                    skip = 0
                    if not response.headers.get("Content-Range", "").startswith(f"bytes {start}-"):
                        raise Broken(f"the server sent {response.headers.get('Content-Range')!r}, not from {start} on")
                while chunk := response.read1(CHUNK):
                    left = None if left is None else left - len(chunk)
                    yield chunk[skip:]
                    skip = max(0, skip - len(chunk))
                if left:
                    raise Broken("the connection was dropped")
        except HTTPError as error:
            if error.code == 416:  # nothing from `start` on
                return
            final = 400 <= error.code < 500 and error.code not in PASSING
            kind = Missing if error.code in (404, 410) else Gone if final else Broken
            raise kind(f"HTTP {error.code} {error.reason}") from None
        except (OSError, http.client.HTTPException, ValueError) as error:  # ValueError: sent on to what is no URL
            raise Broken(str(getattr(error, "reason", error)) or type(error).__name__) from None

    return read


def store_reader(url: str) -> Read:
    """By fsspec: s3://, gs://, abfs:// and what else it knows, where the package for it is installed."""
    import fsspec

    try:
        files, root = fsspec.core.url_to_fs(url)
    except ImportError as error:
        scheme = url.split(":")[0]
        what = "'jaxz[remote]'" if scheme in ("s3", "s3a") else f"'fsspec[{scheme}]'"
        raise InputError(f"dataset {url!r}: {scheme}:// needs a package ({error}): pip install {what}") from None
    except ValueError as error:
        raise InputError(f"dataset {url!r}: {error}; use s3://, https://, pipe: or a directory") from None

    def read(relative: str, start: int) -> Iterator[bytes]:
        path = f"{root}/{relative}"
        try:
            files.invalidate_cache()
            size = files.size(path)
            while start < size:
                chunk = files.cat_file(path, start=start, end=min(start + BLOCK, size))
                if not chunk:
                    raise OSError("no bytes came")
                start += len(chunk)
                yield chunk
        except (FileNotFoundError, PermissionError) as error:
            kind = Missing if isinstance(error, FileNotFoundError) else Gone
            raise kind(f"{type(error).__name__}: {error}") from None
        except Exception as error:  # each store's library has errors of its own
            raise Broken(f"{type(error).__name__}: {error}") from None

    return read


def command_reader(command: str) -> Read:
    """By a shell command, in which {} stands for the file; it writes the file to its standard output."""
    if "{}" not in command:
        raise InputError(
            f"dataset 'pipe:{command}': has no {{}}, where the file's name goes: pipe:ssh HOST cat DIR/{{}}"
        )

    def read(relative: str, start: int) -> Iterator[bytes]:
        line = command.replace("{}", shlex.quote(relative))
        with tempfile.TemporaryFile() as said:
            process = subprocess.Popen(
                line,
                shell=True,
                bufsize=0,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=said,
                start_new_session=True,
            )
            output, skip = process.stdout, start
            assert output is not None  # a PIPE
            try:
                while select.select([output], [], [], TIMEOUT)[0]:
                    if not (chunk := output.read(CHUNK)):
                        break
                    yield chunk[skip:]
                    skip = max(0, skip - len(chunk))
                else:
                    raise Broken(f"{line!r} wrote nothing for {TIMEOUT:g} s")
                if process.wait(TIMEOUT):
                    if process.returncode in NO_COMMAND:
                        raise Gone(f"{line!r} cannot be run{tail(said)}")
                    raise Broken(f"{line!r} ended with {process.returncode}{tail(said)}")
            except subprocess.TimeoutExpired:
                raise Broken(f"{line!r} did not end") from None
            finally:
                if process.poll() is None:
                    os.killpg(process.pid, signal.SIGKILL)
                    process.wait()
                output.close()

    return read


def tail(said: BinaryIO, length: int = 300) -> str:
    """The end of what a command said on standard error, on one line."""
    said.seek(max(0, said.seek(0, os.SEEK_END) - length))
    text = " ".join(said.read().decode(errors="replace").split())
    return f": {text}" if text else ""


def fetch(
    read: Read,
    relative: str,
    file: BinaryIO,
    size: int | None,
    going: Callable[[], bool],
    tries: int = TRIES,
    most: int | None = None,
) -> bool:
    """Append to `file` what it lacks of `size` bytes (None: as many as there are, up to `most`). After a break it goes
    on from there.

    False where `going()` has become false. Raises Broken after `tries` that brought nothing, Gone at once, OSError
    where the file cannot be written.
    """
    failed = 0
    while size is None or file.tell() < size:
        before, reason = file.tell(), "it ends there"
        try:
            for chunk in read(relative, before):
                if size is not None and file.tell() + len(chunk) > size:
                    raise Gone("the file there is longer than its dataset.json says")
                if most is not None and file.tell() + len(chunk) > most:
                    raise Gone(f"it is longer than {most / (1 << 20):g} MiB, which no such file is")
                file.write(chunk)
                file.flush()
                if not going():
                    return False
            if size is None:
                return True
        except Gone:
            raise
        except Broken as error:
            reason = str(error)
        failed = 0 if file.tell() > before else failed + 1
        if failed == tries:
            raise Broken(f"{reason}; {tries} tries" if tries > 1 else reason)
        if failed == 2:
            log.warning("%s: %s; trying again", relative, reason)
        if file.tell() != size:
            time.sleep(min(LONGEST_PAUSE, PAUSE * 2 ** max(0, failed - 1)))
    return True
