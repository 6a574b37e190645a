"""Which tile an object on several is cut from: against the pixels themselves."""

from pathlib import Path

import numpy as np
import pytest
from astropy.io import fits

from data_tools.places import Places, good_maps, overlapping
from data_tools.planes import flag_pixels
from data_tools.survey import load_survey
from data_tools.tiles import find_tiles
from tests.data_tools.survey_files import SURVEY, header, sky_of

SIZE, SHAPE = 32, (200, 220)
FIRST = {"a": (0, 0), "b": (120, 0), "c": (0, 110), "d": (500, 0)}  # pixels x, y of the sky; d overlaps none
BANDS = "grz"


def write_tiles(folder: Path, resample: str) -> tuple:
    """Survey, tiles and {tile: good [C,H,W]}: g of a is NaN on the right, r of b has no weight in a disc, z of c is
    constant."""
    rng, good = np.random.default_rng(0), {}
    y, x = np.indices(SHAPE)
    for tile, (x0, y0) in FIRST.items():
        planes = rng.normal(size=(3, *SHAPE)).astype(np.float32)
        weight = np.ones(SHAPE, np.float32)
        if tile == "a":
            planes[0][:, 180:] = np.nan
        if tile == "b":
            weight[np.hypot(x - 40, y - 120) < 35] = 0
        if tile == "c":
            planes[2] = 1.0
        grid = header(shift=-x0)
        grid["CRPIX2"] -= y0
        for band, plane in zip(BANDS, planes, strict=True):
            fits.writeto(folder / f"{tile}_{band}.fits", plane, grid)
        fits.writeto(folder / f"{tile}_w.fits", weight)
        good[tile] = flag_pixels(planes, np.inf) == 0
        good[tile][1] &= weight > 0
        good[tile][2] &= tile != "c"
    text = SURVEY.replace("tile_{band}", "{tile}_{band}").replace("z_band", "{tile}_z").replace("hdu = 1\n", "")
    text = text.replace('name = "r"', 'name = "r"\nweight_file = "{tile}_w.fits"', 1).replace(
        "cell_arcmin = 0.8", "cell_arcmin = 2"
    )
    (folder / "survey.toml").write_text(text.replace("[[bands]]", f'resample = "{resample}"\n[[bands]]', 1))
    survey = load_survey(folder / "survey.toml")
    return survey, find_tiles(survey, folder), good


def share(good: np.ndarray, x: float, y: float, size: int = SIZE) -> float:
    """Of the pixels of a cutout around x, y, in all bands, those that are good and in it; -1 where x, y is not."""
    if not (0 <= x < good.shape[2] and 0 <= y < good.shape[1]):
        return -1.0
    left, low = int(x) - size // 2, int(y) - size // 2
    return good[:, max(low, 0) : low + size, max(left, 0) : left + size].sum() / (3 * size**2)


@pytest.mark.parametrize("resample", ["no", "native", "reproject"])
def test_objects_go_to_the_tile_with_the_most_good_pixels(resample, tmp_path):
    survey, tiles, good = write_tiles(tmp_path, resample)
    maps = good_maps(survey, tmp_path, tiles, SIZE, "", 2)
    assert sorted(maps) == overlapping(tiles) == [0, 1, 2]
    x, y = np.random.default_rng(1).integers([0, 0], [340, 310], (3000, 2)).T
    ra, dec = sky_of(x, y)
    placed, lost = Places(tiles, survey, SIZE, maps).place({"object_id": np.arange(len(x)), "ra": ra, "dec": dec})
    names, moved, central = list(good), 0, 0
    for n, number in zip(placed["object_id"].tolist(), placed["tile"].tolist(), strict=True):
        at = {name: (x[n] - x0, y[n] - y0) for name, (x0, y0) in FIRST.items()}
        shares = {name: share(good[name], *at[name]) for name in names}
        away = {name: np.hypot(*np.subtract(at[name], [(SHAPE[1] - 1) / 2, (SHAPE[0] - 1) / 2])) for name in names}
        chosen, best = names[number], max(shares.values())
        assert shares[chosen] > best - 0.07, (x[n], y[n], shares)  # of blocks of 8 pixels
        there = [name for name in names if shares[name] >= 0]
        nearest = min(there, key=away.get)
        moved += chosen != nearest
        if len(there) > 1 and all(share(good[name], *at[name], SIZE + 16) == 1 for name in there):
            assert chosen == nearest
            central += 1
    assert moved > 200 and central > 10
    assert len(placed["tile"]) + lost["in no tile"] == len(x) and lost["in no tile"] > 100


def test_where_the_detection_band_has_no_good_pixel_none_counts(tmp_path):
    survey, tiles, _ = write_tiles(tmp_path, "no")
    maps = good_maps(survey, tmp_path, tiles, SIZE, "z", 1)
    assert not maps[2].any() and maps[0].any()
    assert not good_maps(survey, tmp_path, tiles[:1] + tiles[3:], SIZE, "", 1)  # these do not overlap: none is read
