"""Run directories that are sparse, damaged or none."""

import io

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jaxz import report
from jaxz.errors import InputError
from jaxz.photoz.pdf import PDF, write_qp
from jaxz.report_data import read_run
from jaxz.results import write_results
from tests.report_runs import arm, base_run, scores


def test_cost_includes_what_a_run_started_from(tmp_path):
    pretrain = arm(tmp_path, "pretrain", {}, compute={"images": 9000, "seconds": 7000})
    middle = {"init": {"path": str(pretrain.path)}}
    arm(tmp_path, "middle", {}, config=middle, compute={"images": 500, "seconds": 90})
    last = arm(
        tmp_path, "last", {}, config={"init": {"path": str(tmp_path / "middle")}}, compute={"images": 60, "seconds": 8}
    )
    assert [parent.name for parent in last.parents] == ["middle", "pretrain"]
    assert last.total("images") == 9560
    assert last.total("seconds") == 7098


def test_runs_that_start_from_each_other_end(tmp_path):
    arm(tmp_path, "a", {}, config={"init": {"path": str(tmp_path / "b")}}, compute={"images": 1})
    b = arm(tmp_path, "b", {}, config={"init": {"path": str(tmp_path / "a")}}, compute={"images": 2})
    assert b.total("images") == 3


def test_sparse_runs_still_make_a_page(tmp_path):
    undefined = {"spec_like": {"sigma_mad": {"value": None, "error": None}, "objects": {"value": 0, "error": 0}}}
    arm(tmp_path, "bare", {})
    arm(tmp_path, "undefined", undefined)
    arm(tmp_path, "other<set>", scores(0.03, None, "faint & far"))
    out = tmp_path / "r.html"
    report.main([str(tmp_path / name) for name in ("bare", "undefined", "other<set>")] + ["--out", str(out)])
    text = out.read_text()
    assert "faint &amp; far" in text
    assert "other&lt;set&gt;" in text
    report.main([str(tmp_path / "bare"), "--out", str(out)])
    assert "None of these runs has been scored" in out.read_text()


@pytest.mark.parametrize("n", [0, 1, 3])
def test_a_handful_of_objects_makes_a_page(tmp_path, n):
    run = base_run(tmp_path, "tiny", steps=10)
    catalog = pa.table({"key": [f"k{i}" for i in range(n)], "mag_ref": np.full(n, np.nan, np.float32)})
    pdf = PDF(np.linspace(0, 3, 31), np.full((n, 30), 1 / 30))
    write_results(run, "tiny", catalog, pdf, {"full": np.linspace(0.5, 1, n), "spec_like": np.full(n, np.nan)})
    report.main([str(run), "--out", str(tmp_path / "r.html")])
    assert f"{n} objects" in (tmp_path / "r.html").read_text()


def test_pdf_of_other_objects_is_refused(tmp_path):
    run = base_run(tmp_path, "mixed", steps=10)
    pdf = PDF([0.0, 1.0, 2.0], np.full((2, 2), 0.5))
    write_results(run, "mixed", pa.table({"key": ["a", "b"]}), pdf, {})
    write_qp(run / "pdf.hdf5", pdf, {"key": np.array(["b", "a"])})
    with pytest.raises(InputError, match="different objects"):
        read_run(run)


def test_a_line_being_written_is_left_out(tmp_path):
    run = base_run(tmp_path, "mae_pretrain", steps=50)
    with open(run / "metrics.jsonl", "a") as file:
        file.write('{"step": 60, "lo')
    assert read_run(run).steps.tolist() == [10, 20, 30, 40, 50]


@pytest.mark.parametrize("make", [lambda p: None, lambda p: p.mkdir()])
def test_refuses_what_is_no_run(tmp_path, make):
    make(tmp_path / "nothing")
    with pytest.raises(InputError, match="is no run directory"):
        report.main([str(tmp_path / "nothing"), "--out", str(tmp_path / "r.html")])
    assert not list(tmp_path.glob("r.*"))


def npz(**change):
    """The bytes of a reconstructions.npz of two objects in three bands, with other arrays or (None) without."""
    arrays = dict.fromkeys(("image", "reconstruction", "hidden"), np.zeros((2, 3, 4, 4)))
    arrays |= {"observed": np.ones((2, 3), bool), "bands": np.array(["g", "r", "i"])} | change
    sink = io.BytesIO()
    np.savez(sink, **{name: values for name, values in arrays.items() if values is not None})
    return sink.getvalue()


def parquet(**change):
    """The bytes of a predictions.parquet, with other columns or (None) without."""
    columns = {"key": ["a"], "z_best": [0.5], "z_true": [0.5], "test_full": [True]} | change
    sink = io.BytesIO()
    pq.write_table(pa.table({name: values for name, values in columns.items() if values is not None}), sink)
    return sink.getvalue()


DAMAGE = [
    ("predictions.parquet", b"PAR1 and no more", "damaged: its predictions cannot be read"),
    ("predictions.parquet", parquet(z_true=None), "predictions.parquet: column 'z_true' is missing"),
    ("predictions.parquet", parquet(key=None), "predictions.parquet: column 'key' is missing"),
    ("predictions.parquet", parquet(z_best=["x"]), "column 'z_best' is object"),
    ("predictions.parquet", parquet(test_full=[7]), "column 'test_full' is int64"),
    ("reconstructions.npz", npz(hidden=None), "reconstructions.npz cannot be read .*hidden"),
    ("reconstructions.npz", npz(observed=np.ones(5, bool)), "reconstructions.npz cannot be read .*do not fit"),
    ("report.json", b'{"damaged": [1]}', "'damaged' does not hold metrics by test set"),
    ("report.json", b'{"damaged": {"full": {"objects": {"value": NaN}}}}', "'damaged' does not hold metrics"),
    *(
        ("metrics.jsonl", line + b'\n{"step": 1, "loss": 2}\n', "line 1: no object with step")
        for line in (b"null", b"{}", b"[1]")
    ),
    ("compute.json", b"{", "compute.json.* is not JSON"),
    ("compute.json", b'{"images": "many"}', "images is 'many', not a number"),
    ("config.json", b"[1]", "config.json.* is not a JSON object"),
    ("config.json", b'{"data": "x"}', "data is 'x', not a group of fields"),
    ("config.json", b'{"init": 5}', "init is 5, not a group of fields"),
    ("report.json", b'{"damaged": 5}', "'damaged' does not hold metrics by test set"),
    ("report.json", b'{"damaged": {"full": {"rms": {"value": "x"}}}}', "'damaged' does not hold metrics by test set"),
    ("metrics.jsonl", b'\xff\n{"step": 1, "loss": 2}\n', "metrics.jsonl, line 1: no object with step and loss"),
    ("metrics.jsonl", b'{"step": 1, "loss": "x"}\n{"step": 2, "loss": 2}\n', "line 1: no object with step and loss"),
    ("reconstructions.npz", b"PK and no more", "reconstructions.npz cannot be read"),
]


@pytest.mark.parametrize(("name", "content", "message"), DAMAGE)
def test_any_damaged_file_is_one_sentence(tmp_path, name, content, message):
    run = base_run(tmp_path, "damaged", steps=50)
    (run / name).write_bytes(content)
    with pytest.raises(InputError, match=message):
        read_run(run)


def test_a_start_that_is_no_path_is_not_found(tmp_path):
    assert arm(tmp_path, "one", {}, config={"init": {"path": 5}}, compute={"steps": 7}).parents == ()
    report.main([str(tmp_path / "one"), "--out", str(tmp_path / "r.html")])
    assert "5 (not found)" in (tmp_path / "r.html").read_text()
