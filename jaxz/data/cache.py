"""A directory of files from elsewhere, each fetched once by whichever process of the machine first wants it.

    CACHE/.lock                             held while room is made
    CACHE/DATASET/FOLDER/NAME               complete, and checked
    CACHE/DATASET/FOLDER/NAME.BYTES.part    on its way; BYTES: what it will have

Every claim is a `flock`, which ends with its process: whoever downloads a file holds its .part exclusively, whoever
reads a complete one holds it shared, and what is held is never deleted. So nothing that dies leaves anything that
blocks, and a deleted file's disk is free at once.
"""

import contextlib
import fcntl
import logging
import os
import re
import time
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import BinaryIO

from jaxz.errors import DataError, InputError

log = logging.getLogger("jaxz")
GIB = 1 << 30
LOOK_EVERY = 0.05  # seconds
PATIENCE = 60.0  # seconds to wait for room that others hold, and before it is said that others download
STALLED = 600.0  # seconds without a byte of somebody else's download: eight tries of 60 s would have failed before
PART = re.compile(r"\.(\d+)\.part$")
DELETABLE = "shards"  # the folder whose files make room for others

Fill = Callable[[BinaryIO], bool]  # these are told at Cache.fetch
Problem = Callable[[Path], str]
Going = Callable[[], bool]
Spared = Callable[[], Collection[Path]]


def always() -> bool:
    """That whatever waits may go on waiting."""
    return True


def nothing() -> Collection[Path]:
    """That no file is spared."""
    return ()


class Cache:
    """limit: bytes of all files; 0: none. Raises InputError for a directory that takes no locks."""

    def __init__(self, root: Path, limit: int = 0):
        self.root, self.limit = root, limit
        try:
            root.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(f"data.cache: {str(root)!r} cannot be made ({error.strerror}); name a directory") from None
        try:
            with self._locked():
                pass
        except OSError as error:
            raise InputError(
                f"data.cache: {str(root)!r} takes no file locks ({error.strerror}); name a directory on a local disk"
            ) from None

    def fetch(
        self,
        target: Path,
        size: int | None,
        fill: Fill,
        problem: Problem,
        going: Going = always,
        spared: Spared = nothing,
        patience: float = PATIENCE,
    ) -> bool:
        """Let `target` be there. fill(file) appends what is missing; problem(path) says what is wrong with a filled
        file, "" for nothing: one that is wrong is thrown away and filled once more. Files that `spared()` names do not
        make room for it. False where `going()` has become false before. Raises DataError where it is wrong again, for
        `patience` seconds there is no room, or somebody else's download of it has stopped; OSError where it cannot be
        written."""
        part = target.with_name(f"{target.name}.{size or 0}.part")
        others = Others(part)
        while not target.exists():
            if not self._reserve(part, size or 0, going, spared, patience):
                return False
            try:
                file = open(part, "r+b")  # noqa: SIM115  of `open` alone the error means that
            except FileNotFoundError:  # it is complete by now, or deleted
                continue
            with file:
                if not locked(file):
                    others.wait(file)
                elif same_file(file, part):
                    if not self._fits(spared):  # left from before the limit was lowered
                        part.unlink()
                        continue
                    try:
                        if not target.exists() and not self._fill(file, part, target, fill, problem):
                            return False
                    finally:
                        if target.exists() or not os.fstat(file.fileno()).st_size:
                            part.unlink(missing_ok=True)
        return True

    def _fill(self, file: BinaryIO, part: Path, target: Path, fill: Fill, problem: Problem) -> bool:
        for _ in range(2):
            file.seek(0, os.SEEK_END)
            if not fill(file):
                return False
            if not (wrong := problem(part)):
                os.fsync(file.fileno())  # a complete name is trusted ever after
                with self._locked():  # files are counted by name
                    os.replace(part, target)
                return True
            file.truncate(0)
        raise DataError(wrong)

    def open(self, target: Path, size: int) -> int | None:
        """A descriptor of a complete file, which is not deleted until it is closed; None where there is none."""
        try:
            fd = os.open(target, os.O_RDONLY)
        except FileNotFoundError:
            return None
        fcntl.flock(fd, fcntl.LOCK_SH)
        found = os.fstat(fd)
        if found.st_nlink and found.st_size == size:
            os.utime(fd)  # the order of deletion
            return fd
        os.close(fd)
        if found.st_nlink:  # cut by something else than this program
            target.unlink(missing_ok=True)
        return None

    def sizes(self) -> tuple[int, list[tuple[float, Path, int]]]:
        """Bytes of what is never deleted, and (last use, path, bytes) of what may be. Looks only into the folders of
        datasets that were fetched."""
        fixed, deletable = 0, []
        for folder in self.root.iterdir():
            if not re.fullmatch("[0-9a-f]{16}", folder.name) or not (folder / "url").is_file():
                continue
            for path in (*folder.glob("*"), *folder.glob("*/*")):
                with contextlib.suppress(FileNotFoundError):  # deleted or renamed meanwhile
                    found = path.stat()
                    if path.is_dir():
                        continue
                    coming = PART.search(path.name)
                    size = max(int(coming[1]) if coming else 0, found.st_size)
                    if path.parent.name == DELETABLE:
                        deletable.append((found.st_mtime, path, size))
                    else:
                        fixed += size
        return fixed, deletable

    def trim(self, size: int = 0, spared: Collection[Path] = ()) -> bool:
        """Delete the files least recently used that nobody holds until `size` more bytes fit; whether they do."""
        if not self.limit:
            return True
        fixed, deletable = self.sizes()
        used = fixed + sum(bytes for _, _, bytes in deletable)
        for _, path, bytes in sorted(deletable):
            if used + size <= self.limit:
                break
            if path.with_name(PART.sub("", path.name)) not in spared and delete_unheld(path):
                used -= bytes
        return used + size <= self.limit

    def _fits(self, spared: Spared) -> bool:
        """Let the limit hold with what is there."""
        with self._locked():
            return self.trim(0, spared())

    def _reserve(self, part: Path, size: int, going: Going, spared: Spared, patience: float) -> bool:
        """Let there be room for `part`, and an empty one that claims it; False where going() has become false."""
        began, pause = time.monotonic(), LOOK_EVERY
        while going():
            with self._locked():
                if part.exists() or self.trim(size, spared()):
                    part.touch()
                    return True
            if time.monotonic() - began > patience:
                raise DataError(
                    f"{part}: {size / GIB:.3g} GiB find no room below the cache's limit of {self.limit / GIB:.3g} GiB: "
                    "the rest is being read; raise data.cache_gib or lower data.window"
                )
            time.sleep(pause)
            pause = min(2.0, 1.5 * pause)
        return False

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        with open(self.root / ".lock", "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield


class Others:
    """Waiting for somebody else's download."""

    def __init__(self, part: Path):
        self.part, self.size, self.told = part, -1, False
        self.began = self.grew = time.monotonic()

    def wait(self, file: BinaryIO) -> None:
        """For a moment. Raises DataError where nothing has come for long, as from a process that was stopped."""
        now, size = time.monotonic(), os.fstat(file.fileno()).st_size
        if size != self.size:
            self.size, self.grew = size, now
        if now - self.grew > STALLED:
            raise DataError(
                f"{self.part}: another process holds it, and no byte has come for {STALLED:g} s; end that process "
                "(`fuser` names it), or set another data.cache"
            )
        if now - self.began > PATIENCE and not self.told:
            self.told = True
            log.warning("%s is being fetched already; waiting for it", self.part)
        time.sleep(LOOK_EVERY)


def same_file(file: BinaryIO, path: Path) -> bool:
    """Whether an open file still stands at `path`."""
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False


def locked(file: BinaryIO) -> bool:
    """Hold the file exclusively, unless somebody else holds it; never waits: a download that ends becomes a file that
    its readers hold."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def delete_unheld(path: Path) -> bool:
    """Delete a file unless some process holds it."""
    try:
        with open(path, "r+b") as file:
            if not locked(file):
                return False
            path.unlink()
    except FileNotFoundError:
        return False
    return True
