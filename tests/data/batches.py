"""Batches of a stream, kept and compared."""

import itertools

import numpy as np

from jaxz.data.stream import Source, Stream


def take(stream, count):
    """The next `count` batches, copied: a stream uses its buffers again."""
    return [{name: value.copy() for name, value in batch.items()} for batch in itertools.islice(stream, count)]


def batches(dataset, count, **settings):
    """At most `count` batches of 16 with the column z, seed 3; `settings` of the source and of the stream."""
    source = {name: settings.pop(name) for name in ("window", "where", "weights") if name in settings}
    stream = Stream(Source(dataset, columns=("z",), **source), settings.pop("size", 16), seed=3, **settings)
    found = take(stream, count)
    stream.close()
    return found


def assert_same(a, b):
    """Of two batches, or two lists of batches."""
    if isinstance(a, dict):
        assert a.keys() == b.keys()
        for name in a:
            np.testing.assert_array_equal(a[name], b[name])
        return
    assert len(a) == len(b)
    for one, other in zip(a, b, strict=True):
        assert_same(one, other)
