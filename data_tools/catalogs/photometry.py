"""A catalogue's photometry as fluxes in microjansky: m_AB = 23.9 - 2.5 log10(flux)."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from astropy import units as u

from data_tools.catalogs.columns import check_column, cleaned, parse_unit, to_float
from data_tools.catalogs.opened import Opened, WantedColumns
from data_tools.catalogs.spec import CatalogColumns
from jaxz.data.manifest import ZERO_POINT_UJY, Column
from jaxz.errors import InputError

LN10_OVER_2_5 = np.log(10) / 2.5  # d(flux) / flux = LN10_OVER_2_5 * d(mag)
QUANTITIES = ("flux", "fluxerr", "ivar", "mag", "magerr", "extinction", "psf_fwhm")


@dataclass(frozen=True)
class BandColumns:
    """One band. columns: {quantity: column}. scale, error_scale: microjansky per unit of flux and of fluxerr (1 for
    magnitudes). offset: magnitudes to add."""

    band: str
    columns: dict[str, str]
    scale: float
    error_scale: float
    offset: float


def choose_photometry(table: Opened, spec: CatalogColumns, where: str, say: Callable[[str], None]) -> list[BandColumns]:
    """The columns of each band. Raises InputError for those that are not there or have no unit anywhere."""
    photometry = spec.photometry
    if photometry is None:
        return []
    named = {quantity: photometry.columns(quantity) for quantity in QUANTITIES}
    found = []
    for band in named["flux"] or named["mag"]:
        columns = {quantity: by_band[band] for quantity, by_band in named.items() if band in by_band}
        for quantity, column in columns.items():
            check_column(table, column, "number", f"{where}.photometry.{quantity}.{band}")
        offset, scale, error_scale = float(photometry.offsets.get(band, 0)), 1.0, 1.0
        if "flux" in columns:
            stated = [photometry.unit or table.units.get(columns.get(q, ""), "") for q in ("flux", "fluxerr")]
            place = f"{where}.photometry.flux.{band}"
            own = table.units.get(columns["flux"], "")
            if photometry.unit and own and not same_unit(own, photometry.unit):
                say(f"{place}: {columns['flux']!r} says {own!r}, the survey file {photometry.unit!r}: that is taken")
            scale = ujy_per_unit(stated[0], photometry.zero_point_ab, columns["flux"], place)
            error_scale = ujy_per_unit(stated[1], photometry.zero_point_ab, "", place) if stated[1] else scale
        else:
            check_magnitude(photometry.unit or table.units.get(columns["mag"], ""), f"{where}.photometry.mag.{band}")
        found.append(BandColumns(band, columns, scale, error_scale, offset))
    quantity = "flux" if named["flux"] else "mag"
    unit = (
        photometry.unit or table.units.get(found[0].columns[quantity], "") or "AB magnitudes, as nothing says otherwise"
    )
    say(f"{where}: {photometry.kind} {quantity} of {len(found)} bands, {found[0].columns[quantity]!r} ..., in {unit}")
    return found


def same_unit(one: str, other: str) -> bool:
    """Whether two spellings are of one unit; one that is not known is none."""
    try:
        return parse_unit(one, "") == parse_unit(other, "")
    except InputError:
        return False


def ujy_per_unit(text: str, zero_point_ab: float | None, column: str, where: str) -> float:
    """Microjansky of one unit of flux; counts by their zero point. Spellings of units: UNITS in columns.py. Raises
    InputError."""
    unit = parse_unit(text, where, "photometry.unit") if text else None
    if unit is None or unit == u.ct:
        if zero_point_ab is None:
            problem = f"{column!r} is in counts" if text else f"{column!r} has no unit"
            raise InputError(f"{where}: {problem}; give photometry.unit, such as 'uJy', or photometry.zero_point_ab")
        return 10 ** (0.4 * (ZERO_POINT_UJY - zero_point_ab))
    if zero_point_ab is not None:
        raise InputError(f"{where}: {column!r} is in {text!r}, and photometry.zero_point_ab is given too; give one")
    if unit.is_equivalent(u.mgy):
        return float(unit.to(u.mgy)) * 10 ** (0.4 * ZERO_POINT_UJY)
    if isinstance(unit, u.function.FunctionUnitBase) or not unit.is_equivalent(u.uJy):
        raise InputError(
            f"{where}: {column!r} is in {text!r}, no flux density; name magnitudes as mag, or correct unit"
        )
    return float(unit.to(u.uJy))


def check_magnitude(text: str, where: str) -> None:
    """Raises InputError where a unit is there that is not magnitudes."""
    if text and parse_unit(text, where) != u.mag:
        raise InputError(f"{where}: unit {text!r} is not 'mag'; name fluxes as flux, or correct photometry.unit")


def wanted(bands: list[BandColumns]) -> WantedColumns:
    """The columns to read, by role."""
    return {f"{q}_{b.band}": (column, "number") for b in bands for q, column in b.columns.items()}


def fluxes(
    raw: dict[str, np.ndarray], band: BandColumns, sentinels: Mapping[str, Sequence[float]]
) -> dict[str, np.ndarray]:
    """flux_<band>, fluxerr_<band> where errors are known, and psf_fwhm_<band>, float64 [N]; NaN where not measured.

    raw: the columns of `wanted`. A flux whose error is missing or not positive was not measured.
    """
    get = lambda q, scale=1.0: cleaned(raw[f"{q}_{band.band}"], q, sentinels.get(q, []), scale)
    if "flux" in band.columns:
        flux, error = get("flux", band.scale), None
        if "fluxerr" in band.columns:
            error = get("fluxerr", band.error_scale)
        elif "ivar" in band.columns:
            error = band.scale / np.sqrt(get("ivar"))
    else:
        flux, error = 10 ** (0.4 * (ZERO_POINT_UJY - get("mag"))), None
        if "magerr" in band.columns:
            error = flux * get("magerr") * LN10_OVER_2_5
    change = np.full(len(flux), band.offset)
    if "extinction" in band.columns:
        change += get("extinction")
    factor = 10 ** (-0.4 * change)
    measured = np.isfinite(flux * factor) & (True if error is None else np.isfinite(error))
    found = {f"flux_{band.band}": np.where(measured, flux * factor, np.nan)}
    if error is not None:
        found[f"fluxerr_{band.band}"] = np.where(measured, error * factor, np.nan)
    if "psf_fwhm" in band.columns:
        found[f"psf_fwhm_{band.band}"] = get("psf_fwhm")
    return found


def describe(bands: list[BandColumns], kind: str) -> dict[str, Column]:
    """What each column of `fluxes` is."""
    columns = {}
    for band in bands:
        source = band.columns.get("flux") or band.columns["mag"]
        changes = [f"{band.offset:+g} mag applied"] if band.offset else []
        changes += ["extinction put back"] if "extinction" in band.columns else []
        text = ", ".join([f"{kind} flux of the catalogue ({source})", *changes, "not dereddened"])
        columns[f"flux_{band.band}"] = Column("float32", "uJy", text)
        if any(q in band.columns for q in ("fluxerr", "ivar", "magerr")):
            columns[f"fluxerr_{band.band}"] = Column("float32", "uJy", f"error of flux_{band.band}, the catalogue's")
        if "psf_fwhm" in band.columns:
            columns[f"psf_fwhm_{band.band}"] = Column("float32", "arcsec", "PSF FWHM, the catalogue's")
    return columns


def lost(raw: dict[str, np.ndarray], band: BandColumns, found: dict[str, np.ndarray]) -> int:
    """How many fluxes became missing that were numbers in the catalogue."""
    source = raw[f"{'flux' if 'flux' in band.columns else 'mag'}_{band.band}"]
    return int((np.isnan(found[f"flux_{band.band}"]) & ~np.isnan(to_float(source))).sum())
