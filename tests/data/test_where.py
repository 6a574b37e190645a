import numpy as np
import pyarrow as pa
import pytest

from jaxz.data import where
from jaxz.data.dataset import open_dataset
from jaxz.data.stream import Source, Stream
from jaxz.errors import InputError

TABLE = pa.table({"z": [0.1, 0.9, float("nan"), 2.0], "kind": ["spec", "none", "spec", None], "bits": [1, 2, 3, 4]})
TABLE = TABLE.append_column("cls", pa.array([1, 2, None, 1], pa.int16()))
TABLE = TABLE.append_column("ebv", pa.array([0.1, 0.2, None, 0.3], pa.float32()))


@pytest.mark.parametrize(
    ("expression", "rows"),
    [
        ("z > 0.5", [1, 3]),
        ("0.05 < z < 1", [0, 1]),
        ("kind == 'spec'", [0, 2]),
        ("kind != 'spec'", [1]),
        ("not kind == 'spec'", [1, 3]),
        ("kind in ('spec', 'grism') and isfinite(z)", [0]),
        ("kind not in ['spec']", [1]),
        ("z != 0.1", [1, 3]),
        ("0.1 != z", [1, 3]),
        ("z != bits", [0, 1, 3]),
        ("z not in [0.1]", [1, 3]),
        ("cls != 1", [1]),
        ("cls not in [1]", [1]),
        ("not cls == 1", [1, 2]),
        ("not (z != 0.1 or cls < 0)", [0, 2]),
        ("z > 0.5 or kind == 'spec'", [0, 1, 2, 3]),
        ("isnull(z)", [2]),
        ("(bits & 2) != 0", [1, 2]),
        ("abs(z - 1) * 2 < 0.3", [1]),
        ("-z < -1.5", [3]),
        ("bits / 2 == 1.5", [2]),  # not cut to 1
        ("2 / bits < 1", [2, 3]),
        ("z > 0.5 and True", [1, 3]),
        ("ebv == 0.1", [0]),
        ("-0.1 == -ebv", [0]),
        ("ebv in [0.1]", [0]),
        ("ebv != 0.1", [1, 3]),
        ("ebv <= 0.1", [0]),
        ("ebv < z", [1, 3]),
    ],
)
def test_filters(expression, rows):
    assert np.flatnonzero(where.evaluate(expression, lambda name: TABLE[name])).tolist() == rows


REFUSED = ["z >", "__import__('os')", "z.real", "z[0]", "z", "kind > 1", "lambda: 1", "z == open('x')"]
REFUSED += [
    "",
    "True",
    "None",
    "1 == 1",
    "1 in (1, 2)",
    "kind in (spec,)",
    "z in (None,)",
    "kind in ('a', 1)",
    "z\0 > 1",
    r"kind == '\ud800'",
]
REFUSED += [f"bits > {10**30}", "bits / 0 > 1", "+".join(["z"] * 3000) + " > 1", "(" * 300 + "z" + ")" * 300 + " > 1"]


@pytest.mark.parametrize("expression", REFUSED)
def test_anything_else_is_refused(expression):
    with pytest.raises(InputError, match="where"):
        where.evaluate(expression, lambda name: TABLE[name])


def test_names():
    assert where.names("isfinite(z) and kind == 'a' and bits > z") == ["bits", "kind", "z"]


@pytest.mark.parametrize(
    ("conditions", "rows"),
    [
        (("", "z > 0.5"), [1, 3]),
        (("bits < 4", "z > 0.5 or kind == 'spec'"), [0, 1, 2]),
        (("z > 0.5 or kind == 'spec'", "bits < 4"), [0, 1, 2]),
        (("bits < 4", "z > 0.5  # far"), [1]),
    ],
)
def test_conditions_of_a_training_filter_all_hold(conditions, rows):
    joined = where.training_filter(*conditions)
    assert np.flatnonzero(where.evaluate(joined, lambda name: TABLE[name])).tolist() == rows


def test_no_condition_is_no_filter():
    assert where.training_filter("", "") is None


@pytest.mark.parametrize(
    ("condition", "message"),
    [
        ("z > 0) or (z <= 0", "is not an expression"),
        ("true_z < 1", "reads 'true_z', the truth"),
        ("z > 0 and abs(true_mag_r) < 9", "reads 'true_mag_r', the truth"),
    ],
)
def test_a_training_filter_neither_escapes_its_brackets_nor_reads_the_truth(condition, message):
    with pytest.raises(InputError, match=message):
        where.training_filter("split == 'train'", condition)


@pytest.mark.parametrize("expression", ["'z' == 'z'", "1 == 2", "False", "0", "'x'", "isnull('z')", "nosuch('z')"])
def test_a_filter_that_names_no_column_is_refused(expression, blob_dataset):
    dataset = open_dataset(blob_dataset)
    with pytest.raises(InputError):
        dataset.select(expression)
    with pytest.raises(InputError):
        Stream(Source(dataset, where=expression), 4)
