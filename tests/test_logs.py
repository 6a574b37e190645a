"""metrics.jsonl: each step once, whatever a crash left; event files as TensorBoard reads them."""

import json
import struct

import pytest
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

from jaxz.errors import InputError
from jaxz.events import masked_crc
from jaxz.logs import Metrics, Record, hold_log, log, start_log


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "metrics.jsonl"
    metrics = Metrics(path, 0)
    for step in range(1, 6):
        metrics.write(step, {"loss": step / 3})
    metrics.close()
    return path


def steps(path) -> list[int]:
    return [json.loads(line)["step"] for line in path.read_text().splitlines()]


@pytest.mark.parametrize("unfinished", ["", '{"step": 6, "lo', "\0\0\0", '{"step": 2, "loss": 1.0}'])
def test_going_on_cuts_later_lines_and_an_unfinished_one(path, unfinished):
    path.write_text(path.read_text() + unfinished)
    metrics = Metrics(path, 3)
    metrics.write(4, {"loss": 0.5})
    assert steps(path) == [1, 2, 3, 4]  # at once, for those who watch
    metrics.close()


@pytest.mark.parametrize("garbage", ["null", "{}", "[1]", '{"step": "a"}', '{"step": true}', "garbage", "", "\xff"])
@pytest.mark.parametrize("line", [1, 5])
def test_a_damaged_line_is_named_and_nothing_is_cut(path, line, garbage):
    lines = path.read_bytes().splitlines()
    lines[line - 1] = garbage.encode("latin-1")
    path.write_bytes(before := b"\n".join(lines) + b"\n")
    with pytest.raises(InputError, match=rf"metrics.jsonl, line {line}: no object with a step"):
        Metrics(path, 3)
    assert path.read_bytes() == before


# Of TensorBoard's event.proto and summary.proto: (message, field, number, type)
FIELDS = [
    ("Event", "wall_time", 1, "double"),
    ("Event", "step", 2, "int64"),
    ("Event", "file_version", 3, "string"),
    ("Event", "summary", 5, "Summary"),
    ("Event", "session_log", 7, "SessionLog"),
    ("SessionLog", "status", 1, "int32"),
    ("Summary", "value", 1, "Value"),
    ("Value", "tag", 1, "string"),
    ("Value", "simple_value", 2, "float"),
]


@pytest.fixture(scope="module")
def event_type():
    """The message Event of the protocol buffers library, which knows nothing of how the files are written."""
    file = descriptor_pb2.FileDescriptorProto(name="event.proto", package="t", syntax="proto3")
    messages = {name: file.message_type.add(name=name) for name in ("Event", "SessionLog", "Summary", "Value")}
    for message, name, number, kind in FIELDS:
        field = messages[message].field.add(name=name, number=number, label=3 if name == "value" else 1)
        field.type = 11 if kind in messages else getattr(field, f"TYPE_{kind.upper()}")
        if kind in messages:
            field.type_name = f".t.{kind}"
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("t.Event"))


def events(path, event_type):
    """Those of all files, older files first."""
    for file in sorted(path.glob("*tfevents*")):
        content = file.read_bytes()
        while content:
            (length,) = struct.unpack("<Q", content[:8])
            data = content[12 : 12 + length]
            assert content[8:12] == masked_crc(content[:8]) and content[12 + length : 16 + length] == masked_crc(data)
            yield event_type.FromString(data)
            content = content[16 + length :]


def test_a_record_is_framed_as_tfrecords_are():
    """0xE3069283 is the crc32c of "123456789" (RFC 3720, its check value); the mask is of the format's description."""
    crc = 0xE3069283
    masked = (((crc >> 15) | (crc << 17)) + 0xA282EAD8) % 2**32
    assert masked_crc(b"123456789") == masked.to_bytes(4, "little")


def test_tensorboard_is_told_every_number_and_which_steps_are_void(tmp_path, event_type):
    record = Record(tmp_path, 0)
    for step in range(1, 6):
        record.write(step, {"loss": 1 / step, "mae/loss": -2.0})
        record.write_perf(step, {"perf/images_per_s": 300.0 * step})
    record.close()
    record = Record(tmp_path, 3)  # after a crash: steps 4 and 5 are done again
    record.write(4, {"loss": float("nan")})
    record.close()
    found = list(events(tmp_path / "tensorboard", event_type))
    assert found[0].file_version == "brain.Event:2" and all(event.wall_time > 1.7e9 for event in found)
    assert [(event.step, event.session_log.status) for event in found if event.session_log.status] == [(1, 1), (4, 1)]
    values = [(event.step, value.tag, value.simple_value) for event in found for value in event.summary.value]
    assert values[0] == (1, "loss", 1.0) and values[1] == (1, "mae/loss", -2.0)
    assert values[2] == (1, "perf/images_per_s", 300.0) and len(values) == 16
    assert values[-1][:2] == (4, "loss") and values[-1][2] != values[-1][2]
    assert steps(tmp_path / "metrics.jsonl") == [1, 2, 3, 4] and steps(tmp_path / "perf.jsonl") == [1, 2, 3]


def test_large_steps_and_long_names_are_written_whole(tmp_path, event_type):
    record = Record(tmp_path, 2**40)
    record.write(2**40 + 1, {"x" * 300: 1.0})
    record.close()
    last = list(events(tmp_path / "tensorboard", event_type))[-1]
    assert last.step == 2**40 + 1 and last.summary.value[0].tag == "x" * 300


def test_what_was_said_before_there_was_a_run_directory_is_in_its_log(tmp_path, capsys):
    hold_log()
    log.warning("10 labels are unused")
    assert capsys.readouterr().err == "10 labels are unused\n"
    start_log(tmp_path)
    log.info("begun")
    assert capsys.readouterr().err == "begun\n"
    lines = (tmp_path / "log.txt").read_text().splitlines()
    assert [line.split(" ", 3)[2:] for line in lines] == [["WARNING", "10 labels are unused"], ["INFO", "begun"]]
