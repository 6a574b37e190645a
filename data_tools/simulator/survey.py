"""Observes galaxies: stored cutouts and everything that their index says."""

from typing import NamedTuple

import numpy as np
from astropy import units
from astropy_healpix import HEALPix

from data_tools.simulator import bands, photometry, population, render
from data_tools.simulator.population import Galaxies
from jaxz.data.manifest import ZERO_POINT_UJY, Array, Column

BATCH = 16  # galaxies drawn at once: always as many, so that no result depends on how the work is cut
APERTURE_SIGMA = 0.7  # arcsec: wider than the widest PSF's sigma, narrow enough to leave out empty sky
MAG_REF_RADIUS = 1.5  # arcsec
NAMES = tuple(band.name for band in bands.BANDS)


class Observation(NamedTuple):
    """N galaxies as the survey sees them; absent bands are 0 in `image`, NaN in the fluxes."""

    image: np.ndarray  # [N, C, H, W], in units of the sky's sigma
    observed: np.ndarray  # bool [N, C]
    flux: np.ndarray  # microjansky [N, C], measured
    flux_error: np.ndarray
    mag_ref: np.ndarray  # AB [N], measured; NaN where the flux is not positive
    true_flux: np.ndarray  # microjansky [N, C], total, Galactic extinction included


def observe(
    galaxies: Galaxies, seed: int, first: int, size: int, dtype: str = "float16", noise: bool = True
) -> Observation:
    """Draw galaxies (objects first ... of survey `seed`) on stamps of `size` pixels of `dtype` and measure them there.

    Raises ValueError for a pixel that float16 cannot hold.
    """
    extinction = bands.A_OVER_EBV * galaxies.ebv[:, None]
    true_flux = 10 ** (-0.4 * (galaxies.mag + extinction - ZERO_POINT_UJY))
    images = draw(galaxies, true_flux / bands.ujy_per_unit(), size)
    if noise:
        images = render.add_noise(images, seed, first)
    observed = population.fields(seed).observed[galaxies.field]
    images = np.where(observed[..., None, None], images, np.float32(0))
    if images.max() > np.finfo(np.float16).max:
        raise ValueError(f"a pixel of {images.max():.0f} sky sigmas does not fit float16; raise population.I_BRIGHT")
    stored = images.astype(dtype)

    seen = stored.astype(np.float32)  # fluxes are those of the pixels on disk
    centre = (size - 1) / 2 + galaxies.offset
    flux, error = photometry.matched_fluxes(
        seen, centre, bands.PSF_SIGMA / bands.PIXEL_SCALE, APERTURE_SIGMA / bands.PIXEL_SCALE, np.ones(len(NAMES))
    )
    total = photometry.circular_flux(seen[:, bands.REFERENCE], centre, MAG_REF_RADIUS / bands.PIXEL_SCALE)
    return Observation(
        image=stored,
        observed=observed,
        flux=np.where(observed, flux * bands.ujy_per_unit(), np.nan),
        flux_error=np.where(observed, error * bands.ujy_per_unit(), np.nan),
        mag_ref=bands.zero_points()[bands.REFERENCE] - 2.5 * np.log10(np.where(total > 0, total, np.nan)),
        true_flux=true_flux,
    )


def draw(galaxies: Galaxies, flux: np.ndarray, size: int) -> np.ndarray:
    """Noise-free stamps float32 [N, C, size, size] of galaxies with total fluxes [N, C], in stored units."""
    shapes = render.Shapes(
        flux=flux,
        bulge=galaxies.bulge,
        re_disk=galaxies.re_disk / bands.PIXEL_SCALE,
        re_bulge=galaxies.re_bulge / bands.PIXEL_SCALE,
        q_disk=galaxies.q_disk,
        q_bulge=galaxies.q_bulge,
        angle=galaxies.angle,
        offset=galaxies.offset,
    )
    psf_sigma = tuple((bands.PSF_SIGMA / bands.PIXEL_SCALE).tolist())
    stamps = np.empty((*flux.shape, size, size), np.float32)
    for start in range(0, len(flux), BATCH):
        count = min(BATCH, len(flux) - start)
        batch = render.Shapes(*(np.resize(x[start : start + count], (BATCH, *x.shape[1:])) for x in shapes))
        stamps[start : start + count] = np.asarray(render.render(batch, psf_sigma, size))[:count]
    return stamps


def image_array(size: int, dtype: str = "float16") -> Array:
    """The manifest's entry of the cutouts."""
    return Array(kind="image", dtype=dtype, shape=(len(NAMES), size, size), unit="AB flux, zero points in bands")


def column_specs() -> dict[str, Column]:
    """The manifest's columns."""
    total = Column("float32", "microjansky", "total, Galactic extinction included")
    reference = NAMES[bands.REFERENCE]
    aperture = f"in a Gaussian aperture, sigma {APERTURE_SIGMA} arcsec before the seeing; NaN where the band is absent"
    return {
        "object_id": Column("int64"),
        "ra": Column("float64", "deg", "ICRS"),
        "dec": Column("float64", "deg", "ICRS"),
        "healpix": Column("int64", "", "order 29, nested"),
        "survey": Column("string"),
        "field": Column("string"),
        "split": Column("string", "", "train, val, test by sky cell; gap: too near to another split"),
        "bands_observed": Column("uint32", "", "bit b: band b of the manifest is observed"),
        "z": Column("float32", "", "the label; NaN where there is none"),
        "z_err": Column("float32"),
        "z_kind": Column("string", "", "spec, none"),
        "z_spec": Column("float32"),
        "z_spec_err": Column("float32"),
        "z_quality": Column("int32", "", "4: at least 99 % sure; 0: unknown"),
        "ebv": Column("float32", "mag", "Galactic E(B-V), as applied to the fluxes"),
        "mag_ref": Column(
            "float32",
            "AB mag",
            f"measured, {reference} band, aperture of {2 * MAG_REF_RADIUS} arcsec diameter, not total",
        ),
        **{f"flux_{name}": Column("float32", "microjansky", f"measured {aperture}") for name in NAMES},
        **{f"fluxerr_{name}": Column("float32", "microjansky", "of the sky noise") for name in NAMES},
        "true_z": Column("float32"),
        "true_type": Column("float32", "", "spectral kind from 0 (elliptical) to 4 (starburst)"),
        f"true_mag_{reference}": Column("float32", "AB mag", f"total, {reference} band, before Galactic extinction"),
        "true_re_arcsec": Column("float32", "arcsec", "half-light radius of the disk along the major axis"),
        **{f"true_flux_{name}": total for name in NAMES},
    }


def columns(galaxies: Galaxies, seen: Observation, first: int, split: np.ndarray) -> dict[str, np.ndarray]:
    """All columns of `column_specs`, [N] each, of objects first ... with their splits [N]."""
    n, labelled = len(galaxies.z), galaxies.labelled
    z_spec = np.where(labelled, galaxies.z_spec, np.nan)
    z_spec_err = np.where(labelled, population.SPEC_Z_ERROR * (1 + galaxies.z_spec), np.nan)
    sky = HEALPix(2**29, order="nested")
    return {
        "object_id": np.arange(first, first + n),
        "ra": galaxies.ra,
        "dec": galaxies.dec,
        "healpix": sky.lonlat_to_healpix(galaxies.ra * units.deg, galaxies.dec * units.deg),
        "survey": np.full(n, "simulated"),
        "field": np.array([f"F{field:02d}" for field in galaxies.field]),
        "split": split,
        "bands_observed": (seen.observed << np.arange(len(NAMES))).sum(1).astype(np.uint32),
        "z": z_spec.astype(np.float32),
        "z_err": z_spec_err.astype(np.float32),
        "z_kind": np.where(labelled, "spec", "none"),
        "z_spec": z_spec.astype(np.float32),
        "z_spec_err": z_spec_err.astype(np.float32),
        "z_quality": np.where(labelled, 4, 0).astype(np.int32),
        "ebv": galaxies.ebv.astype(np.float32),
        "mag_ref": seen.mag_ref.astype(np.float32),
        **{f"flux_{name}": seen.flux[:, b].astype(np.float32) for b, name in enumerate(NAMES)},
        **{f"fluxerr_{name}": seen.flux_error[:, b].astype(np.float32) for b, name in enumerate(NAMES)},
        "true_z": galaxies.z.astype(np.float32),
        "true_type": galaxies.kind.astype(np.float32),
        f"true_mag_{NAMES[bands.REFERENCE]}": galaxies.mag[:, bands.REFERENCE].astype(np.float32),
        "true_re_arcsec": galaxies.re_disk.astype(np.float32),
        **{f"true_flux_{name}": seen.true_flux[:, b].astype(np.float32) for b, name in enumerate(NAMES)},
    }
