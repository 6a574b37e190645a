"""A local HTTP server that fails as real ones do, and counts what it sends; and what its datasets are compared by."""

import collections
import contextlib
import re
import threading
import time
import zlib
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np

SHARDS = 8  # of the dataset that the fixture `origin` makes
STEP = 1 << 14  # bytes sent at once


class Server(ThreadingHTTPServer):
    """Serves the files below `root`. drop, busy, whole: chances that an answer breaks off at a random byte, is a 503,
    or ignores Range; what happens is a function of (seed, path, number of the request for it). pause: seconds between
    pieces. status: {path: HTTP status} of those refused. sent, asked: bytes sent and first bytes asked for, by path."""

    daemon_threads = True

    def __init__(self, root: Path, drop=0.0, busy=0.0, whole=0.0, pause=0.0, seed=0):
        super().__init__(("127.0.0.1", 0), Handler)
        self.root, self.drop, self.busy, self.whole, self.pause, self.seed = root, drop, busy, whole, pause, seed
        self.status: dict[str, int] = {}
        self.sent, self.asked = collections.Counter(), collections.defaultdict(list)
        self.url = f"http://127.0.0.1:{self.server_port}/data"

    def sent_shards(self) -> dict[str, int]:
        return {Path(path).stem: count for path, count in self.sent.items() if path.startswith("shards/")}

    def handle_error(self, request, client_address):
        pass  # the client went away


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self):
        server, path = self.server, self.path.removeprefix("/data/")
        number = len(server.asked[path])
        rng = np.random.default_rng([server.seed, zlib.crc32(path.encode()), number])
        wanted = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        start = int(wanted[1]) if wanted else 0
        server.asked[path].append(start)
        busy, whole, drop, place = rng.random(4)
        file = server.root / path
        if path in server.status or not file.is_file():
            return self.send_error(server.status.get(path, 404))
        if busy < server.busy:
            return self.send_error(503)
        content = file.read_bytes()
        if start and start >= len(content):
            return self.send_error(416)
        if whole < server.whole:
            wanted, start = None, 0
        self.send_response(206 if wanted else 200)
        if wanted:
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        content = content[start:]
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        stop = int(place * len(content)) if drop < server.drop else len(content)
        for at in range(0, stop, STEP):
            piece = content[at : min(stop, at + STEP)]
            server.sent[path] += len(piece)  # first: the client is not to see what is not counted
            self.wfile.write(piece)
            time.sleep(server.pause)
        self.close_connection = True

    def log_message(self, *args):
        pass


@contextlib.contextmanager
def serving(root: Path, **behaviour):
    with Server(root, **behaviour) as server:
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        try:
            yield server
        finally:
            server.shutdown()
