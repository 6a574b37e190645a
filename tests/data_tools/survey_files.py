"""A small synthetic survey: three aligned noisy tiles with a WCS, point sources on single pixels, a FITS catalogue."""

import math
from pathlib import Path

import numpy as np
from astropy.io import fits
from astropy.table import Table

HEIGHT, WIDTH, SCALE = 300, 340, 0.5  # pixels, pixels, arcsec
RA0, DEC0 = 150.0, 40.0
CRPIX = (120.0, 200.0)  # FITS counts from 1
ZERO_POINTS = {"g": 25.0, "r": 23.9, "z": 30.0}
PEAK = 5000.0  # in units of the sky's sigma
SURVEY = f"""
name = "synthetic"
pixel_scale_arcsec = {SCALE}

[[bands]]
name = "g"
file = "tile_{{band}}.fits"
zero_point_ab = 25.0
wavelength_nm = 480
width_nm = 140
a_over_ebv = 3.2
psf_fwhm_arcsec = 0.8

[[bands]]
name = "r"
file = "tile_{{band}}.fits"
zero_point_ab = 23.9
wavelength_nm = 620
width_nm = 140
a_over_ebv = 2.3
psf_fwhm_arcsec = 0.8

[[bands]]
name = "z"
file = "z_band.fits"
hdu = 1
zero_point_ab = 30
wavelength_nm = 900
width_nm = 100
a_over_ebv = 1.3
psf_fwhm_arcsec = 0.8

[catalog]
object_id = "ID"
ra = "RA"
dec = "DEC"
z_spec = "ZSPEC"
z_quality = "Q"
z_quality_map = {{ "4" = 4, "3" = 3, "14" = 4 }}
ebv = "EBV"

[detection]
band = "r"
filter_fwhm_arcsec = 1.0
threshold_sigma = 8.0
min_pixels = 5

[photometry]
band = "r"
aperture_diameter_arcsec = 3.0
background_box_px = 64

[splits]
cell_arcmin = 0.8
fractions = {{ train = 0.6, test = 0.4 }}
"""


# From ICRS to Galactic axes (ESA 1997, The Hipparcos and Tycho Catalogues, vol. 1, eq. 1.5.11)
GALACTIC = np.array(
    [
        [-0.0548755604, -0.8734370902, -0.4838350155],
        [+0.4941094279, -0.4448296300, +0.7469822445],
        [-0.8676661490, -0.1980763734, +0.4559837762],
    ]
)


def galactic_to_icrs(longitude: np.ndarray, latitude: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """ra, dec (deg) of Galactic coordinates (deg)."""
    l, b = np.radians(longitude), np.radians(latitude)  # noqa: E741
    x, y, z = GALACTIC.T @ np.stack([np.cos(b) * np.cos(l), np.cos(b) * np.sin(l), np.sin(b)])
    return np.degrees(np.arctan2(y, x)) % 360, np.degrees(np.arcsin(z))


def sky_of(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """ra, dec (deg) of 0-based pixels: the inverse gnomonic projection (Calabretta & Greisen 2002, 5.1.3)."""
    step = np.radians(SCALE / 3600)
    xi, eta = -(x + 1 - CRPIX[0]) * step, (y + 1 - CRPIX[1]) * step
    dec0 = np.radians(DEC0)
    ra = np.arctan2(xi, np.cos(dec0) - eta * np.sin(dec0))
    dec = np.arctan2((np.sin(dec0) + eta * np.cos(dec0)) * np.cos(ra), np.cos(dec0) - eta * np.sin(dec0))
    return RA0 + np.degrees(ra), np.degrees(dec)


def header(shift: float = 0.0, axes: tuple[str, str] = ("RA--", "DEC-")) -> fits.Header:
    cards = {
        "CTYPE1": f"{axes[0]}-TAN",
        "CTYPE2": f"{axes[1]}-TAN",
        "CRVAL1": RA0,
        "CRVAL2": DEC0,
        "CUNIT1": "deg",
        "CUNIT2": "deg",
    }
    cards |= {"CRPIX1": CRPIX[0] + shift, "CRPIX2": CRPIX[1], "CDELT1": -SCALE / 3600, "CDELT2": SCALE / 3600}
    return fits.Header(cards)


def grid_positions() -> tuple[np.ndarray, np.ndarray]:
    """int [N]: pixels of the sources, some of them too near to the edge."""
    y, x = np.mgrid[5:HEIGHT:24, 5:WIDTH:24]
    return x.ravel(), y.ravel()


def tiles() -> dict[str, np.ndarray]:
    """{band: float32 [H, W]}: noise of sigma 2, 3 and 0.5, and a lit pixel a source; z lacks a corner."""
    x, y = grid_positions()
    images = {}
    for seed, (band, sigma) in enumerate({"g": 2.0, "r": 3.0, "z": 0.5}.items()):
        image = np.random.default_rng(seed).normal(0, sigma, (HEIGHT, WIDTH))
        image[y, x] += PEAK * sigma
        images[band] = image.astype(np.float32)
    images["z"][:80, :120] = np.nan
    images["g"][100, 100] = np.inf
    images["r"][155, 155] = 3 * 70_000.0  # past float16 once the sky's sigma is 1
    return images


def write_survey(folder: Path, galactic: bool = False) -> Path:
    """survey.toml, catalog.fits and the tiles, in `folder`. galactic: the tiles lie on Galactic coordinates."""
    folder.mkdir(parents=True, exist_ok=True)
    images, grid = tiles(), header(axes=("GLON", "GLAT")) if galactic else header()
    fits.writeto(folder / "tile_g.fits", images["g"], grid)
    fits.writeto(folder / "tile_r.fits", images["r"], grid)
    compressed = fits.CompImageHDU(images["z"], grid, compression_type="GZIP_2", quantize_level=0)
    fits.HDUList([fits.PrimaryHDU(), compressed]).writeto(folder / "z_band.fits")
    x, y = grid_positions()
    rng = np.random.default_rng(9)
    ra, dec = sky_of(x + rng.uniform(-0.4, 0.4, len(x)), y + rng.uniform(-0.4, 0.4, len(x)))
    if galactic:
        ra, dec = galactic_to_icrs(ra, dec)
    ra[3] = np.nan
    n = np.arange(len(x))
    columns = {"ID": 1000 + n, "RA": ra, "DEC": dec, "ZSPEC": np.where(n % 3, -99.0, 0.1 + n / 200)}
    columns |= {"Q": np.array([4, 3, 14, 1])[n % 4], "EBV": np.full(len(x), 0.03)}
    Table(columns).write(folder / "catalog.fits")
    (folder / "survey.toml").write_text(SURVEY)
    return folder


def arguments(folder: Path, out: Path, *more: str, catalog: bool = True) -> list[str]:
    given = ["--catalog", str(folder / "catalog.fits")] if catalog else []
    given += ["--images", str(folder), "--out", str(out), "--workers", "1", *more]
    return ["--survey", str(folder / "survey.toml"), *given]


def overlap(shape: tuple[int, int], x: float, y: float, radius: float, fine: int = 100) -> np.ndarray:
    """[H, W]: the share of each pixel in a circle, counted on fine x fine points a pixel."""
    across, up = ((np.arange(n * fine) + 0.5) / fine - 0.5 for n in shape[::-1])
    inside = np.hypot(across[None, :] - x, up[:, None] - y) < radius
    return inside.reshape(shape[0], fine, shape[1], fine).mean((1, 3))


def independent_noise(radius: float) -> float:
    """Sigma of an aperture's sum over independent pixels of sigma 1, in the mean over its place in the pixel."""
    places = np.random.default_rng(0).uniform(8, 9, (40, 2))
    return math.sqrt(np.mean([(overlap((18, 18), x, y, radius, 40) ** 2).sum() for x, y in places]))
