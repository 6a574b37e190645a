import numpy as np
import pyarrow as pa
import pytest

from jaxz.data import where
from jaxz.errors import InputError

TABLE = pa.table({"z": [0.1, 0.9, float("nan"), 2.0], "kind": ["spec", "none", "spec", None], "bits": [1, 2, 3, 4]})


@pytest.mark.parametrize(
    ("expression", "rows"),
    [
        ("z > 0.5", [1, 3]),
        ("0.05 < z < 1", [0, 1]),
        ("kind == 'spec'", [0, 2]),
        ("kind != 'spec'", [1]),
        ("not kind == 'spec'", [1, 3]),
        ("kind in ('spec', 'grism') and isfinite(z)", [0]),
        ("kind not in ['spec']", [1, 3]),
        ("z > 0.5 or kind == 'spec'", [0, 1, 2, 3]),
        ("isnull(z)", [2]),
        ("(bits & 2) != 0", [1, 2]),
        ("abs(z - 1) * 2 < 0.3", [1]),
        ("-z < -1.5", [3]),
    ],
)
def test_filters(expression, rows):
    assert np.flatnonzero(where.evaluate(expression, lambda name: TABLE[name])).tolist() == rows


@pytest.mark.parametrize(
    "expression", ["z >", "__import__('os')", "z.real", "z[0]", "z", "kind > 1", "lambda: 1", "z == open('x')"]
)
def test_anything_else_is_refused(expression):
    with pytest.raises(InputError, match="where"):
        where.evaluate(expression, lambda name: TABLE[name])


def test_names():
    assert where.names("isfinite(z) and kind == 'a' and bits > z") == ["bits", "kind", "z"]
