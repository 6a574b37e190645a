"""TensorBoard's event files, without TensorFlow: TFRecords of the protocol buffer `Event` with scalars.

Written by hand since it is 40 lines: fields and numbers are those of tensorboard/compat/proto/event.proto and
summary.proto, the record's framing that of TFRecord.
"""

import os
import struct
import time
from pathlib import Path

import google_crc32c


class Events:
    """An event file in `folder` of scalars from the step after `step` on. TensorBoard drops what older files say of
    later steps."""

    def __init__(self, folder: Path, step: int):
        folder.mkdir(exist_ok=True)
        self.file = open(folder / f"events.out.tfevents.{time.time():017.6f}.{os.getpid()}", "ab")  # noqa: SIM115
        self.record(text(3, "brain.Event:2"))
        self.record(whole(2, step + 1) + text(7, whole(1, 1)))  # a session that starts: SessionLog.START

    def write(self, step: int, values: dict[str, float]) -> None:
        scalars = (text(1, name) + struct.pack("<Bf", 2 << 3 | 5, value) for name, value in values.items())
        self.record(whole(2, step) + text(5, b"".join(text(1, scalar) for scalar in scalars)))

    def record(self, event: bytes) -> None:
        event = struct.pack("<Bd", 1 << 3 | 1, time.time()) + event
        length = struct.pack("<Q", len(event))
        self.file.write(length + masked_crc(length) + event + masked_crc(event))

    def flush(self) -> None:
        self.file.flush()

    def close(self) -> None:
        self.file.close()


def masked_crc(data: bytes) -> bytes:
    """TFRecord's: crc32c, rotated right by 15 bits, plus a constant."""
    crc = google_crc32c.value(data)
    return struct.pack("<I", ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF)


def varint(number: int) -> bytes:
    """Seven bits a byte, the lowest first; all but the last have their highest bit set."""
    rest, low = number >> 7, number & 127
    return bytes([low | 128]) + varint(rest) if rest else bytes([low])


def whole(field: int, number: int) -> bytes:
    """A field of the type int64 or enum, at least 0."""
    return varint(field << 3) + varint(number)


def text(field: int, content: str | bytes) -> bytes:
    """A field that is a string or a message."""
    content = content.encode() if isinstance(content, str) else content
    return varint(field << 3 | 2) + varint(len(content)) + content
