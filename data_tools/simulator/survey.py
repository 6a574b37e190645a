"""Observes galaxies: stored cutouts and everything that their index says."""

from typing import NamedTuple

import numpy as np
from astropy import units
from astropy_healpix import HEALPix

from data_tools.simulator import bands, photometry, population, render, sources, spectroscopy
from data_tools.simulator.population import STAR, Galaxies
from data_tools.simulator.sky import Sky
from data_tools.simulator.spectroscopy import Spectra
from jaxz.data.manifest import ZERO_POINT_UJY, Array, Column

BATCH = 16  # galaxies drawn at once: always as many, so that no result depends on how the work is cut
APERTURE_SIGMA = 0.7  # arcsec: wider than the widest PSF's sigma, narrow enough to leave out empty sky
MAG_REF_RADIUS = 1.5  # arcsec
BLENDED = 0.05  # of the object's own light in that aperture, from neighbours
NAMES = tuple(band.name for band in bands.BANDS)


class Observation(NamedTuple):
    """N galaxies as the survey sees them; absent bands are 0 in `image`, NaN in the fluxes."""

    image: np.ndarray  # [N, C, H, W], in units of the sky's sigma
    observed: np.ndarray  # bool [N, C]
    flux: np.ndarray  # microjansky [N, C], measured
    flux_error: np.ndarray
    mag_ref: np.ndarray  # AB [N], measured; NaN where the flux is not positive
    true_flux: np.ndarray  # microjansky [N, C], total, Galactic extinction included
    blended: np.ndarray  # bool [N]


def observe(
    galaxies: Galaxies,
    seed: int,
    first: int,
    size: int,
    dtype: str = "float16",
    noise: bool = True,
    sky: Sky | None = None,
) -> Observation:
    """Draw galaxies (objects first ... of survey `seed`) on stamps of `size` pixels of `dtype` and measure them there.

    sky: None is white noise of sigma 1 and the PSFs of bands.BANDS. Raises ValueError for a pixel that float16 cannot
    hold.
    """
    psf, sigma, correlation = bands.PSF_SIGMA / bands.PIXEL_SCALE, np.ones(len(NAMES)), 0.0
    if sky is not None:
        psf, sigma = sky.seen.psf_fwhm / bands.FWHM_PER_SIGMA / bands.PIXEL_SCALE, sky.seen.sky_sigma
        correlation = render.CORRELATION * sky.correlated
    true_flux = total_flux(galaxies)
    images, blended = scene(galaxies, size, psf, sky)
    if noise:
        unit = render.sky_noise(images.shape, seed, first, correlation > 0)
        images = images + sigma[..., None, None].astype(np.float32) * unit
    observed = population.fields(seed).observed[galaxies.field]
    images = np.where(observed[..., None, None], images, np.float32(0))
    if images.max() > np.finfo(np.float16).max:
        raise ValueError(f"a pixel of {images.max():.0f} sky sigmas does not fit float16; raise population.I_BRIGHT")
    stored = images.astype(dtype)

    seen = stored.astype(np.float32)  # fluxes are those of the pixels on disk
    centre = (size - 1) / 2 + galaxies.offset
    flux, error = photometry.matched_fluxes(seen, centre, psf, APERTURE_SIGMA / bands.PIXEL_SCALE, sigma, correlation)
    total = reference_flux(seen, galaxies.offset)
    return Observation(
        image=stored,
        observed=observed,
        flux=np.where(observed, flux * bands.ujy_per_unit(), np.nan),
        flux_error=np.where(observed, error * bands.ujy_per_unit(), np.nan),
        mag_ref=bands.zero_points()[bands.REFERENCE] - 2.5 * np.log10(np.where(total > 0, total, np.nan)),
        true_flux=true_flux,
        blended=blended,
    )


def total_flux(galaxies: Galaxies) -> np.ndarray:
    """Microjansky [N, C], Galactic extinction included."""
    extinction = bands.A_OVER_EBV * galaxies.ebv[:, None]
    return 10 ** (-0.4 * (galaxies.mag + extinction - ZERO_POINT_UJY))


def scene(galaxies: Galaxies, size: int, psf_sigma: np.ndarray, sky: Sky | None) -> tuple[np.ndarray, np.ndarray]:
    """Noise-free stamps [N, C, size, size] with all that they hold, and whether neighbours blend with the object [N].

    psf_sigma [C] or [N, C], pixels.
    """
    flux = total_flux(galaxies) / bands.ujy_per_unit()
    if sky is None:
        return draw(galaxies, flux, size, psf_sigma), np.zeros(len(flux), bool)
    calibration = 10 ** (-0.4 * sky.seen.zero_point_error)
    images = draw(galaxies, flux * calibration, size, psf_sigma)
    own = reference_flux(images, galaxies.offset)
    if sky.neighbours is not None:
        flux = total_flux(sky.neighbours) / bands.ujy_per_unit() * calibration[sky.owner]
        for start in range(0, len(flux), BATCH):
            part = slice(start, start + BATCH)
            owner, some = sky.owner[part], Galaxies(*(x[part] for x in sky.neighbours))
            for k, stamp in zip(owner, draw(some, flux[part], size, psf_sigma[owner]), strict=True):
                images[k] += stamp
    return images, reference_flux(images, galaxies.offset) > (1 + BLENDED) * own


def reference_flux(images: np.ndarray, offset: np.ndarray) -> np.ndarray:
    """[N]: sum within MAG_REF_RADIUS of the objects, in the reference band."""
    centre = (images.shape[-1] - 1) / 2 + offset
    return photometry.circular_flux(images[:, bands.REFERENCE], centre, MAG_REF_RADIUS / bands.PIXEL_SCALE)


def draw(galaxies: Galaxies, flux: np.ndarray, size: int, psf_sigma: np.ndarray) -> np.ndarray:
    """Noise-free stamps float32 [N, C, size, size] of galaxies with total fluxes [N, C], in stored units.

    psf_sigma [C] or [N, C], pixels.
    """
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
    stamps = np.empty((*flux.shape, size, size), np.float32)
    for start in range(0, len(flux), BATCH):
        part = slice(start, min(start + BATCH, len(flux)))
        batch = render.Shapes(*(_filled(x[part]) for x in shapes))
        if psf_sigma.ndim == 1:
            drawn = render.render(batch, tuple(psf_sigma.tolist()), size)
        else:
            drawn = render.render_each(batch, _filled(psf_sigma[part]).astype(np.float32), size)
        stamps[part] = np.asarray(drawn)[: part.stop - start]
    return stamps


def _filled(x: np.ndarray) -> np.ndarray:
    """The rows again and again, up to BATCH."""
    return np.resize(x, (BATCH, *x.shape[1:]))


def image_array(size: int, dtype: str = "float16") -> Array:
    """The manifest's entry of the cutouts."""
    return Array(kind="image", dtype=dtype, shape=(len(NAMES), size, size), unit="AB flux, zero points in bands")


def column_specs(plain: bool = True) -> dict[str, Column]:
    """The manifest's columns; plain: of a sky that is the same everywhere."""
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
        **({} if plain else sky_column_specs()),
    }


def sky_column_specs() -> dict[str, Column]:
    """Columns of a sky that varies."""
    return {
        "z_quality": Column("int32", "", "4: at least 99 % sure; 3: 95 %; 2: 75 %; 0: unknown"),
        "true_z": Column("float32", "", "NaN for stars"),
        "tile": Column("string", "", "a piece of the field, with its own PSFs, depths and zero points"),
        "obj_class": Column("string", "", f"of the spectrum: {', '.join(sources.CLASSES)}; empty without one"),
        **{f"psf_fwhm_{name}": Column("float32", "arcsec", "of the tile") for name in NAMES},
        **{f"sky_sigma_{name}": Column("float32", "stored", "sigma of a pixel of the tile's sky") for name in NAMES},
        "true_class": Column("string", "", ", ".join(sources.CLASSES)),
        "true_blended": Column("bool", "", f"neighbours add over {BLENDED:.0%} to the aperture of mag_ref"),
        "true_neighbours": Column("int32", "", "other sources centred in the stamp"),
        "true_z_wrong": Column("bool", "", "z_spec is off by a confusion of lines"),
    }


def columns(
    galaxies: Galaxies, seen: Observation, spectra: Spectra, first: int, split: np.ndarray, sky: Sky | None = None
) -> dict[str, np.ndarray]:
    """All columns of `column_specs`, [N] each, of objects first ... with their splits [N]. A star's spectrum gives
    z_spec, and no label z."""
    n, taken = len(galaxies.z), spectra.taken
    labelled = taken & (galaxies.obj_class != STAR)
    z_spec = np.where(taken, spectra.z_spec, np.nan)
    z_spec_err = np.where(taken, spectroscopy.Z_ERROR * (1 + spectra.z_spec), np.nan)
    healpix = HEALPix(2**29, order="nested")
    return {
        "object_id": np.arange(first, first + n),
        "ra": galaxies.ra,
        "dec": galaxies.dec,
        "healpix": healpix.lonlat_to_healpix(galaxies.ra * units.deg, galaxies.dec * units.deg),
        "survey": np.full(n, "simulated"),
        "field": np.array([f"F{field:02d}" for field in galaxies.field]),
        "split": split,
        "bands_observed": (seen.observed << np.arange(len(NAMES))).sum(1).astype(np.uint32),
        "z": np.where(labelled, z_spec, np.nan).astype(np.float32),
        "z_err": np.where(labelled, z_spec_err, np.nan).astype(np.float32),
        "z_kind": np.where(labelled, "spec", "none"),
        "z_spec": z_spec.astype(np.float32),
        "z_spec_err": z_spec_err.astype(np.float32),
        "z_quality": np.where(taken, spectra.z_quality, 0).astype(np.int32),
        "ebv": galaxies.ebv.astype(np.float32),
        "mag_ref": seen.mag_ref.astype(np.float32),
        **{f"flux_{name}": seen.flux[:, b].astype(np.float32) for b, name in enumerate(NAMES)},
        **{f"fluxerr_{name}": seen.flux_error[:, b].astype(np.float32) for b, name in enumerate(NAMES)},
        "true_z": galaxies.z.astype(np.float32),
        "true_type": galaxies.kind.astype(np.float32),
        f"true_mag_{NAMES[bands.REFERENCE]}": galaxies.mag[:, bands.REFERENCE].astype(np.float32),
        "true_re_arcsec": galaxies.re_disk.astype(np.float32),
        **{f"true_flux_{name}": seen.true_flux[:, b].astype(np.float32) for b, name in enumerate(NAMES)},
        **({} if sky is None else sky_columns(galaxies, seen, spectra, sky)),
    }


def sky_columns(galaxies: Galaxies, seen: Observation, spectra: Spectra, sky: Sky) -> dict[str, np.ndarray]:
    """The columns of `sky_column_specs`, [N] each."""
    true_class = np.array(sources.CLASSES)[galaxies.obj_class]
    return {
        "true_z": np.where(galaxies.obj_class == STAR, np.nan, galaxies.z).astype(np.float32),
        "tile": np.array([f"F{field:02d}-{tile % 4}" for field, tile in zip(galaxies.field, sky.tile, strict=True)]),
        "obj_class": np.where(spectra.taken, true_class, ""),
        **{f"psf_fwhm_{name}": sky.seen.psf_fwhm[:, b].astype(np.float32) for b, name in enumerate(NAMES)},
        **{f"sky_sigma_{name}": sky.seen.sky_sigma[:, b].astype(np.float32) for b, name in enumerate(NAMES)},
        "true_class": true_class,
        "true_blended": seen.blended,
        "true_neighbours": np.bincount(sky.owner, minlength=len(true_class)).astype(np.int32),
        "true_z_wrong": spectra.taken & spectra.wrong,
    }
