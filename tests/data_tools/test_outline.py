"""What is said of a conversion before anything is cut."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data_tools.outline import split_problem
from data_tools.plan import Ids
from data_tools.splits import assign_splits, healpix_order
from data_tools.survey import load_survey
from jaxz.errors import InputError
from tests.data_tools.survey_files import SURVEY

SIZE = 64


def dealt(survey) -> dict:
    """20,000 objects in half a square degree."""
    ra, dec = np.random.default_rng(0).uniform((10.0, 0.0), (10.7, 0.7), (20_000, 2)).T
    gap = SIZE * 2**0.5 * survey.coarsest_arcsec
    rule = {"order": healpix_order(survey.splits.cell_arcmin), "fractions": survey.splits.fractions, "seed": 1}
    names, cells = assign_splits(ra, dec, gap_arcsec=gap, **rule)
    counts = {name: int((names == name).sum()) for name in (*survey.splits.fractions, "gap")}
    return {"splits": counts, "cells": len(np.unique(cells))}


def test_of_splits_far_from_what_was_asked_for_it_is_said_what_helps(tmp_path):
    def survey(cell: str):
        text = SURVEY.replace("cell_arcmin = 0.8", f"cell_arcmin = {cell}")
        (tmp_path / "s.toml").write_text(
            text.replace("train = 0.6, test = 0.4", "train = 0.75, val = 0.05, test = 0.2")
        )
        return load_survey(tmp_path / "s.toml")

    few = dealt(survey("50"))
    assert 0 in few["splits"].values()
    said = split_problem(few, survey("50"), SIZE)
    assert said.startswith(f"splits: {few['splits']} in {few['cells']} cells of 50 arcmin, asked for ")
    proposed = said.partition("try splits.cell_arcmin = ")[2].partition(",")[0]
    assert 3.02 <= float(proposed) <= 10  # four diagonals of 64 pixels of 0.5 arcsec
    assert split_problem(dealt(survey(proposed)), survey(proposed), SIZE) == ""
    assert "try fewer splits" in split_problem(few, survey("3.5"), SIZE)
    assert split_problem({"splits": few["splits"], "labelled": 0}, survey("50"), SIZE) == ""  # without positions


def test_an_id_of_text_that_stands_twice_is_named_whichever_chunks_hold_it(tmp_path):
    ids = Ids()
    for n, some in enumerate((["a", "bé"], ["c", "bé"], ["d"])):
        ids.add(np.array(some))
        pq.write_table(pa.table({"object_id": some}), tmp_path / f"{n}.parquet")
    with pytest.raises(InputError, match="catalog.object_id: holds 'bé' more than once"):
        ids.check(sorted(tmp_path.glob("*.parquet")))
