"""Where the files of a dataset are: in its directory, or, where it is remote, in a cache that is filled as it is read.

    CACHE/HASH OF URL/url, dataset.json
                      index/NAME-SHA.parquet        all fetched when the dataset is opened, never deleted
                      shards/NAME-SHA.tar           fetched when opened or shortly before; deleted for others

Names carry the shard's sha256 as dataset.json has it, so that a changed shard is another file.
"""

import contextlib
import dataclasses
import hashlib
import io
import logging
import math
import os
import queue
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import BinaryIO

import pyarrow as pa

from jaxz.data import transport
from jaxz.data.cache import GIB, PATIENCE, Cache, Going, Spared, always, nothing
from jaxz.data.index import index_problem, index_types
from jaxz.data.manifest import NAME, Manifest, Shard
from jaxz.data.quarantine import Damage, Quarantine
from jaxz.errors import DataError, InputError
from jaxz.files import replace
from jaxz.progress import in_threads

log = logging.getLogger("jaxz")
INDEX_THREADS = 8
# Bytes: more than any such file has, so that an answer without an end fills neither memory nor disk.
LIST_MOST, INDEX_MOST, OVERLAY_MOST = 64 << 20, 1 << 30, 4 << 30
ADVICE = 1 << 17  # bytes: of a longer stretch Linux reads ahead only the beginning
PROBES = 32
FAILED_FOR = 60.0  # seconds for which a shard that could not be had is not asked for again
REPORT_EVERY = 60.0  # seconds


def open_store(path: Path | str, cache: Path | str = "", cache_gib: float = 0) -> "Folder | Remote":
    """The files of the dataset at `path`, a directory or a URL. cache: "" is $JAXZ_CACHE, or ~/.cache/jaxz; cache_gib:
    its limit, 0: none. Raises InputError for a URL that cannot be read."""
    if not transport.is_remote(path):
        return Folder(str(path).removeprefix("file://"))
    root = Path(cache or os.environ.get("JAXZ_CACHE") or "~/.cache/jaxz").expanduser()
    return Remote(str(path), Cache(root, int(cache_gib * GIB)))


class Folder:
    """A dataset in a directory: nothing is copied."""

    threads = 1  # that stage

    def __init__(self, path: Path | str):
        self.path = Path(path)

    def manifest(self) -> Manifest:
        return Manifest.load(self.path)

    def quarantine(self, manifest: Manifest) -> Quarantine:
        return Quarantine.load(self.path, manifest)

    def shard_path(self, shard: Shard) -> Path:
        return self.path / "shards" / f"{shard.name}.tar"

    def index_path(self, shard: Shard) -> Path:
        return self.path / "index" / f"{shard.name}.parquet"

    def overlay_path(self, name: str) -> Path:
        return self.path / place_of("overlays", name)

    def layer_path(self, name: str) -> Path:
        """Raises InputError where there is none."""
        path = self.path / place_of("layers", name)
        if not (path / "dataset.json").exists():
            raise InputError(f"layers: {path} has no dataset.json; write it with `python -m data_tools.add_layer`")
        return path

    def open(self, shard: Shard) -> int:
        """A file descriptor of the tar. Raises OSError."""
        return os.open(self.shard_path(shard), os.O_RDONLY)

    def stage(self, shard: Shard, wanted: Callable[[], set[Path]]) -> None:
        """Ask the system to read the shard into its memory, as long as it is wanted."""
        path = self.shard_path(shard)
        with contextlib.suppress(OSError), open(path, "rb") as tar:
            if is_in_memory(tar.fileno(), shard.bytes):  # asking for all of it would cost what reading a tenth does
                return
            for start in range(0, shard.bytes, ADVICE):
                if path not in wanted():
                    return
                os.posix_fadvise(tar.fileno(), start, ADVICE, os.POSIX_FADV_WILLNEED)


class Remote:
    """A dataset behind a URL: what a Folder does, by way of a cache."""

    threads = 4

    def __init__(self, url: str, cache: Cache):
        self.path, self.cache = transport.place(url), cache
        self.read = transport.opener(self.path)
        self.folder = cache.root / hashlib.sha256(self.path.encode()).hexdigest()[:16]
        self.failed: dict[Path, tuple[float, str]] = {}
        self.damages: Mapping[str, Damage] = {}
        self.lock, self.fetched = threading.Lock(), 0  # bytes since it began
        self.began: float | None = None
        self.told = 0.0  # when
        for name in ("index", "shards"):
            (self.folder / name).mkdir(parents=True, exist_ok=True)
        put(self.folder / "url", self.path.encode())
        (self.folder / "url").chmod(0o600)  # a command may hold a password

    def address(self, relative: str) -> str:
        return self.path.replace("{}", relative) if self.path.startswith("pipe:") else f"{self.path}/{relative}"

    def manifest(self) -> Manifest:
        """The manifest as it is now; where nothing answers, as it was last seen. Raises InputError where there is
        none."""
        kept = self.folder / "dataset.json"
        tries = 2 if kept.exists() else transport.TRIES  # a node without a network is not to wait for long
        try:
            content = self._get("dataset.json", LIST_MOST, tries)
        except transport.Broken as error:
            if isinstance(error, transport.Gone) or not kept.exists():
                raise InputError(
                    f"dataset {self.path!r} has no readable dataset.json ({error}); check the address"
                ) from None
            log.warning("%s does not answer (%s); going on with the dataset.json of last time", self.path, error)
            content = kept.read_bytes()
        manifest = Manifest.from_json(content, self.address("dataset.json"))
        if not manifest.shards:
            raise InputError(f"dataset {self.path!r} has no shards; convert it again")
        put(kept, content)
        return manifest

    def quarantine(self, manifest: Manifest) -> Quarantine:
        """The list as it is now; where it cannot be read, as it was last seen. None where there is no such file, or
        none was ever seen: a command that fails cannot say which. The index of what is not out as a whole is then in
        the cache. Raises InputError for a malformed list, DataError where the index cannot be had."""
        kept, command = self.folder / "quarantine.json", self.path.startswith("pipe:")
        try:
            put(kept, self._get("quarantine.json", LIST_MOST, 1 if command else 2))
        except transport.Missing:
            kept.unlink(missing_ok=True)
        except transport.Broken as error:
            if kept.exists():
                log.warning(
                    "%s cannot be read (%s); using %s of last time; delete it if there is none any more",
                    self.address("quarantine.json"),
                    error,
                    kept,
                )
            elif not command or isinstance(error, transport.Gone):
                log.warning("%s cannot be read (%s); no sample is left out", self.address("quarantine.json"), error)
        quarantine = Quarantine.load(self.folder, manifest)
        self.damages = quarantine.shards
        wanted = [shard for shard in manifest.shards if not quarantine.whole(shard.name)]
        missing = [shard for shard in wanted if not self.index_path(shard).exists()]
        if missing:
            types = index_types(manifest)
            in_threads(lambda shard: self._fetch_index(shard, types), missing, INDEX_THREADS, "fetching the index")
            self.cache.trim()
        return quarantine

    def shard_path(self, shard: Shard) -> Path:
        """Where the tar is, or will be."""
        return self.folder / "shards" / f"{shard.name}-{self._stored(shard).sha256[:16]}.tar"

    def _stored(self, shard: Shard) -> Shard:
        """The shard with bytes and sha256 of what is stored: those of a damaged tar whose lost samples are listed."""
        damage = self.damages.get(shard.name)
        if damage is None or damage.rows is None or not damage.tar_sha256 or damage.tar_bytes is None:
            return shard
        return dataclasses.replace(shard, bytes=damage.tar_bytes, sha256=damage.tar_sha256)

    def index_path(self, shard: Shard) -> Path:
        return self.folder / "index" / f"{shard.name}-{shard.sha256[:16]}.parquet"

    def overlay_path(self, name: str) -> Path:
        """The overlay as it is now; where nothing answers, as it was last seen. Raises InputError where there is
        none."""
        relative = place_of("overlays", name)
        path, address = self.folder / relative, self.address(relative)
        path.parent.mkdir(exist_ok=True)
        try:
            put(path, self._get(relative, OVERLAY_MOST, 2))
        except transport.Broken as error:
            if isinstance(error, transport.Gone) or not path.exists():
                raise InputError(
                    f"overlays: {address} cannot be read ({error}); check the name and the address"
                ) from None
            log.warning("%s does not come (%s); going on with that of last time", address, error)
        return path

    def layer_path(self, name: str) -> str:
        """The address of the layer, a dataset of its own."""
        return self.address(place_of("layers", name) + ("/{}" if self.path.startswith("pipe:") else ""))

    def open(self, shard: Shard) -> int:
        """A file descriptor of the tar, which is fetched where it is not there; while it is open, the tar is not
        deleted. Raises DataError where it cannot be had."""
        while (fd := self.cache.open(self.shard_path(shard), self._stored(shard).bytes)) is None:
            self._fetch_shard(shard)
        return fd

    def stage(self, shard: Shard, wanted: Callable[[], set[Path]]) -> None:
        """Fetch the shard, as long as it is wanted; no shard that is wanted makes room for it. What goes wrong is told
        by `open`, if it comes to that."""
        path = self.shard_path(shard)
        try:
            self._fetch_shard(shard, lambda: path in wanted(), wanted, math.inf)
            with contextlib.suppress(FileNotFoundError):  # no longer wanted, or deleted by others
                os.utime(path)  # as recently used as those fetched now
        except DataError as error:
            log.warning("staging ahead: %s", error)

    def _get(self, relative: str, most: int, tries: int) -> bytes:
        """A small file, whole. Raises Broken."""
        now = io.BytesIO()
        transport.fetch(self.read, relative, now, None, always, tries, most)
        return now.getvalue()

    def _fetch_shard(
        self,
        shard: Shard,
        going: Going = always,
        spared: Spared = nothing,
        patience: float = PATIENCE,
    ) -> None:
        path, relative, stored = self.shard_path(shard), f"shards/{shard.name}.tar", self._stored(shard)

        def fill(file: BinaryIO) -> bool:
            if message := self._failure(path):
                raise DataError(message)
            self._tell(0)
            before = file.tell()
            done = self._fill(file, relative, stored.bytes, going)
            self._tell(file.tell() - before)
            return done

        def problem(part: Path) -> str:
            with open(part, "rb") as file:
                found = hashlib.file_digest(file, "sha256").hexdigest()
            if found in (stored.sha256, shard.sha256):
                return ""
            source = "dataset.json" if stored is shard else "quarantine.json"
            return (
                f"{self.address(relative)}: sha256 is {found}, {source} says {stored.sha256}: {shard.samples} "
                "samples lost; upload the shard again"
            )

        try:
            with writing(path):
                self.cache.fetch(path, stored.bytes, fill, problem, going, spared, patience)
        except DataError as error:
            if not self._failure(path):
                self.failed[path] = time.monotonic(), str(error)
            raise

    def _failure(self, path: Path) -> str:
        """Why a shard could not be had just now; "" where it may be tried."""
        when, message = self.failed.get(path, (-math.inf, ""))
        return message if time.monotonic() - when < FAILED_FOR else ""

    def _fetch_index(self, shard: Shard, types: dict[str, pa.DataType]) -> None:
        relative = f"index/{shard.name}.parquet"

        def problem(part: Path) -> str:
            wrong = index_problem(part, shard, types)
            return wrong and f"{self.address(relative)} {wrong}; upload the dataset again"

        path = self.index_path(shard)
        with writing(path):
            self.cache.fetch(path, None, lambda file: self._fill(file, relative, None, always), problem)

    def _fill(self, file: BinaryIO, relative: str, size: int | None, going: Going) -> bool:
        try:
            return transport.fetch(self.read, relative, file, size, going, most=INDEX_MOST if size is None else None)
        except transport.Broken as error:
            came = file.tell()
            if size is None and isinstance(error, transport.Gone):
                file.truncate(0)  # what is no index keeps no room: none is ever deleted
            raise DataError(
                f"{self.address(relative)}: {came} of {size or 'unknown'} bytes came, then: {error}; once it is "
                "mended, the same command goes on from there"
            ) from None

    def _tell(self, size: int) -> None:
        """Where shards go, when the first one is fetched; and then once a minute how many bytes came."""
        with self.lock:
            now = time.monotonic()
            if self.began is None:
                self.began = self.told = now
                limit = f"at most {self.cache.limit / GIB:.3g} GiB" if self.cache.limit else "without a limit"
                log.info("%s is staged in %s, %s", self.path, self.folder, limit)
            self.fetched += size
            if now - self.told >= REPORT_EVERY:
                self.told, rate = now, self.fetched / (now - self.began)
                log.info("%s: %.3g GiB staged, %.3g MB/s", self.path, self.fetched / GIB, rate / 1e6)


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """Raises DataError where a file of the cache cannot be written."""
    try:
        yield
    except OSError as error:
        raise DataError(f"{path} cannot be written ({error}); free some disk or set data.cache_gib") from None


def place_of(kind: str, name: str) -> str:
    """Where one of the dataset's "overlays" or "layers" is. Raises InputError for a name that could lead out of it."""
    if not NAME.fullmatch(name):
        raise InputError(f"{kind}: {name!r} must be a name of at most 32 letters, digits, '_' and '-', not a path")
    return f"{kind}/{name}.parquet" if kind == "overlays" else f"{kind}/{name}"


def is_in_memory(file: int, size: int) -> bool:
    """Whether the system holds a file in its memory, by a few of its bytes; False where it cannot say."""
    byte = bytearray(1)
    try:
        return all(os.preadv(file, [byte], at, os.RWF_NOWAIT) for at in range(0, size, max(1, size // PROBES)))
    except OSError:  # EAGAIN: it would have to wait
        return False


def put(path: Path, content: bytes) -> None:
    """Write a file, unless it has that content."""
    if not path.exists() or path.read_bytes() != content:
        replace(path, content)


class Ahead:
    """Stages, in the background, the shards that are wanted next. Its threads end with the process, or by `close`."""

    def __init__(self, store: Folder | Remote):
        self.store = store
        self.wanted: set[Path] = set()
        self.waiting: queue.SimpleQueue[Shard | None] = queue.SimpleQueue()
        for _ in range(store.threads):
            threading.Thread(target=self._work, name="jaxz-stage", daemon=True).start()

    def want(self, shards: Sequence[Shard]) -> None:
        """These from now on, soonest first, and no others."""
        before, self.wanted = self.wanted, {self.store.shard_path(shard) for shard in shards}
        for shard in shards:
            if self.store.shard_path(shard) not in before:
                self.waiting.put(shard)

    def close(self) -> None:
        self.wanted = set()
        for _ in range(self.store.threads):
            self.waiting.put(None)

    def _work(self) -> None:
        while (shard := self.waiting.get()) is not None:
            if self.store.shard_path(shard) in self.wanted:
                self.store.stage(shard, lambda: self.wanted)


def check_limit(store: Folder | Remote, sizes: Sequence[int], window: int, rows: int, in_flight: int) -> None:
    """Raises InputError where the cache cannot hold what a stream reads at once: the windows of `window` shards (0:
    all) that `in_flight` of its `rows` may lie in. sizes: bytes of its shards."""
    if isinstance(store, Folder) or not store.cache.limit:
        return
    largest, count, total = sorted(sizes, reverse=True), len(sizes), sum(sizes)

    def need(width: int) -> int:
        windows = 1 + -(-in_flight * count // (rows * width))
        return min(total, windows * sum(largest[:width]))

    width, fixed, limit = min(window, count) or count, store.cache.sizes()[0], store.cache.limit
    if fixed + need(width) <= limit:
        return
    gib = lambda size: f"{size / GIB:.3g}"
    fits = [smaller for smaller in range(1, width) if fixed + need(smaller) <= limit]
    raise InputError(
        f"data.cache_gib: {gib(limit)} GiB do not hold what the stream reads at once with window={window}: "
        f"{gib(need(width))} of {gib(total)} GiB of shards, beside {gib(fixed)} GiB of indices; set "
        f"{f'data.window={max(fits)}, or ' if fits else ''}data.cache_gib={rounded_up(fixed + need(width))}"
    )


def rounded_up(size: int) -> float:
    """GiB, to three decimals."""
    return -(-size * 1000 // GIB) / 1000
