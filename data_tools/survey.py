"""A survey is data: reads the TOML file that describes one (docs/adding_a_survey.md)."""

import dataclasses
import inspect
import math
import tomllib
import types
import typing
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar

from data_tools.catalogs.spec import CatalogColumns, Match, check_catalog
from jaxz.data.manifest import NAME, Band
from jaxz.errors import InputError, suggest

T = TypeVar("T")


@dataclass(frozen=True)
class BandSource:
    """One filter of the survey and the file that holds it. Wavelengths in nm, PSF FWHM in arcsec.

    m_AB = zero_point_ab - 2.5 log10(value in the file), to which the value of the header's keyword zero_point_header
    is added where one is named. file: a path inside the images folder; "{band}" stands for `name`, "{tile}" for the
    part of the sky, "{image}" (in hdu too) for the object where each has its own image. A plane of weights (inverse
    variance, variance, rms or exposure: a pixel is bad where it is not positive and finite) or of mask bits lies in a
    file of its own, or in an HDU of the image's; mask_bits says which of its bits, by number or by name (MP_NAME in its
    header), are bad, saturated or nodata: without it, every one is bad. saturation: in the units of the file.
    pixel_scale_arcsec: the band's own, 0 where it is the survey's. psf_fwhm_header: keyword with the FWHM of a tile in
    arcsec. uncertain: what is not sure about these numbers, kept in the provenance.
    """

    name: str
    file: str
    zero_point_ab: float
    wavelength_nm: float
    width_nm: float
    a_over_ebv: float
    psf_fwhm_arcsec: float
    hdu: int | str = 0
    weight_file: str = ""
    weight_hdu: int | str = ""
    mask_file: str = ""
    mask_hdu: int | str = ""
    mask_bits: dict = field(default_factory=dict)
    zero_point_header: str = ""
    psf_fwhm_header: str = ""
    pixel_scale_arcsec: float = 0.0
    saturation: float = float("inf")
    uncertain: str = ""


@dataclass(frozen=True)
class Detection:
    """Sources are runs of at least min_pixels pixels above threshold_sigma in `band`, after a Gaussian matched filter
    of filter_fwhm_arcsec; sigma is that of the filtered sky."""

    band: str
    filter_fwhm_arcsec: float
    threshold_sigma: float = 5.0
    min_pixels: int = 9


@dataclass(frozen=True)
class Photometry:
    """Fixed circular apertures. band: the reference band of mag_ref. background_box_px: the mesh of the sky."""

    band: str
    aperture_diameter_arcsec: float
    background_box_px: int = 128


@dataclass(frozen=True)
class Splits:
    """Sky cells of about cell_arcmin go to one split each (data_tools.splits says by which rule)."""

    cell_arcmin: float
    fractions: dict
    seed: int = 0


@dataclass(frozen=True)
class Survey:
    """Everything that data_tools.convert knows of a survey; `text` is the file as it was read.

    resample: "no" where the bands of a tile lie on one pixel grid; "reproject" brings them to the grid of the band that
    has pixel_scale_arcsec (that of photometry first), conserving flux; "native" cuts each band at its own scale.
    """

    name: str
    pixel_scale_arcsec: float
    bands: tuple[BandSource, ...]
    photometry: Photometry
    splits: Splits
    release: str = ""
    notes: str = ""
    subtract_background: bool = False
    resample: str = "no"
    catalog: CatalogColumns | None = None
    match: Match | None = None
    detection: Detection | None = None
    text: str = ""

    @property
    def coarsest_arcsec(self) -> float:
        """The largest pixel scale of the cutouts."""
        return max(self.stored_scale(band) for band in self.bands)

    def band_number(self, name: str) -> int:
        return [band.name for band in self.bands].index(name)

    @property
    def stamped(self) -> bool:
        """Whether there is an image an object instead of tiles."""
        return any("{image}" in f"{band.file} {band.hdu}" for band in self.bands)

    def scale_field(self, band: BandSource) -> tuple[str, float]:
        """Where the pixel scale of a band's file is stated, and which it is."""
        if band.pixel_scale_arcsec:
            return f"bands.{band.name}.pixel_scale_arcsec", band.pixel_scale_arcsec
        return "pixel_scale_arcsec", self.pixel_scale_arcsec

    def stored_scale(self, band: BandSource) -> float:
        """The pixel scale of a band's cutouts, in arcsec."""
        return self.scale_field(band)[1] if self.resample == "native" else self.pixel_scale_arcsec


POSITIVE = {
    "pixel_scale_arcsec", "wavelength_nm", "width_nm", "psf_fwhm_arcsec", "saturation", "filter_fwhm_arcsec",
    "threshold_sigma", "min_pixels", "aperture_diameter_arcsec", "background_box_px", "cell_arcmin", "radius_arcsec",
}  # fmt: skip
WIDEST_PX = 500  # diameter of an aperture: more is a unit mistaken
MAY_BE_INFINITE = {"saturation"}  # inf: no pixel is
NOT_NEGATIVE = {"hdu", "weight_hdu", "mask_hdu", "a_over_ebv", "seed"}
RESAMPLE = ("no", "reproject", "native")
MASKS = ("bad", "saturated", "nodata")
KINDS = {
    str: "text", int: "a whole number", float: "a number", bool: "true or false", dict: "a table", list: "a list",
}  # fmt: skip
SURVEYS = Path(__file__).parent / "surveys"


def survey_path(name: Path | str) -> Path:
    """The file of a survey: a path, or the name of one that is built in (data_tools/surveys). Raises InputError."""
    path, built_in = Path(name), SURVEYS / f"{name}.toml"
    if path.is_file() or Path(path.name) != path or path.suffix:
        return path
    if not built_in.is_file():
        names = [p.stem for p in SURVEYS.glob("*.toml")]
        raise InputError(f"survey: {str(name)!r} is neither a file nor a built-in survey.{suggest(str(name), names)}")
    return built_in


def load_survey(name: Path | str) -> Survey:
    """Read and check a survey file, given by path or by the name of a built-in one.

    Raises InputError that names the field, its value and the fix.
    """
    path = survey_path(name)
    try:
        text = path.read_text()
        values = tomllib.loads(text)
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"survey: {str(path)!r} cannot be read ({error}); give a survey TOML file") from None
    except tomllib.TOMLDecodeError as error:
        raise InputError(f"survey: {str(path)!r} is not TOML ({error}); correct the file") from None
    bands = values.get("bands", [])
    if not isinstance(bands, list) or not bands:
        raise InputError("bands: none given; add a [[bands]] section for each filter")
    values["bands"] = tuple(build(BandSource, band, f"bands[{n}]") for n, band in enumerate(bands))
    if "text" in values:
        raise InputError(f"text is not a known field.{suggest('text', set(survey_fields()) - {'text'})}")
    survey = build(Survey, {**values, "text": text}, "")
    check(survey)
    return resolved(survey, path.parent)


def resolved(survey: Survey, folder: Path) -> Survey:
    """The survey with the catalogue's bands filled in, and the path of its match file, relative to `folder`, whole."""
    names = [band.name for band in survey.bands]
    catalog = survey.catalog and survey.catalog.with_bands(names)
    match = survey.match
    if match is not None:
        path = str(folder / match.file) if match.file else ""
        match = dataclasses.replace(match, file=path, catalog=match.catalog.with_bands(names))
    return dataclasses.replace(survey, catalog=catalog, match=match)


def survey_fields() -> list[str]:
    return [f.name for f in dataclasses.fields(Survey)]


def build(kind: type[T], values: object, where: str) -> T:
    """An instance of dataclass `kind` from a TOML table. Raises InputError for unknown, missing or mistyped fields."""
    prefix = f"{where}." if where else ""
    if not isinstance(values, dict):
        raise InputError(f"{where}: {values!r} must be a table; write [{where}]")
    fields = inspect.signature(kind).parameters
    for name in values:
        if name not in fields:
            raise InputError(f"{prefix}{name} is not a known field.{suggest(name, set(fields) - {'text'})}")
    for name, spec in fields.items():
        if spec.default is spec.empty and name not in values:
            raise InputError(f"{prefix}{name} is missing; add it (see docs/adding_a_survey.md)")
    hints = typing.get_type_hints(kind)
    return kind(**{name: checked(value, hints[name], prefix + name) for name, value in values.items()})


def checked(value: Any, kind: type | types.UnionType, where: str) -> Any:
    """`value` if it is of the wanted type and range, whole numbers being numbers too; sections are built."""
    kinds: list[type] = list(typing.get_args(kind)) if isinstance(kind, types.UnionType) else [kind]
    kinds = [k for k in kinds if k is not types.NoneType]
    if dataclasses.is_dataclass(kinds[0]):
        return build(kinds[0], value, where)
    if kinds[0] not in KINDS:  # the bands, built and checked already
        return value
    if float in kinds and type(value) is int:
        value = float(value) if abs(value) < 1e300 else math.inf
    if type(value) not in kinds:
        raise InputError(f"{where}: {value!r} must be {' or '.join(KINDS[k] for k in kinds)}")
    name = where.rpartition(".")[2]
    if type(value) is float and not math.isfinite(value) and name not in MAY_BE_INFINITE:
        raise InputError(f"{where}: {value!r} must be a finite number")
    if name in POSITIVE and not value > 0:
        raise InputError(f"{where}: {value!r} must be greater than 0")
    if name in NOT_NEGATIVE and not isinstance(value, str) and not value >= 0:
        raise InputError(f"{where}: {value!r} must not be negative")
    return value


def check(survey: Survey) -> None:
    """What one field alone does not tell. Raises InputError."""
    names = [band.name for band in survey.bands]
    for n, band in enumerate(survey.bands):
        if not NAME.fullmatch(band.name):
            raise InputError(f"bands[{n}].name: {band.name!r} may only hold letters, digits, '_' and '-' (at most 32)")
        if names.index(band.name) != n:
            raise InputError(f"bands[{n}].name: {band.name!r} stands twice; band names must be unique")
        try:  # what the manifest refuses is to be said before anything is measured
            Band(
                band.name, band.wavelength_nm, band.width_nm, band.zero_point_ab, survey.stored_scale(band),
                band.a_over_ebv, 1.0, band.psf_fwhm_arcsec,
            )  # fmt: skip
        except InputError as error:
            raise InputError(f"bands[{n}].{error}") from None
        check_files(survey, band, n)
    if survey.resample not in RESAMPLE:
        raise InputError(f"resample: {survey.resample!r} must be one of {', '.join(map(repr, RESAMPLE))}")
    if len(names) > 32:
        raise InputError(f"bands: {len(names)} bands, but bands_observed holds 32 bits; give at most 32")
    for section in ("detection", "photometry"):
        values = getattr(survey, section)
        if values is not None and values.band not in names:
            raise InputError(f"{section}.band: {values.band!r} is not a band.{suggest(values.band, names)}")
    wide, scale = survey.photometry.aperture_diameter_arcsec, min(map(survey.stored_scale, survey.bands))
    if wide > WIDEST_PX * scale:
        raise InputError(
            f"photometry.aperture_diameter_arcsec: {wide:g} is {wide / scale:.0f} pixels of {scale:g} arcsec; use at "
            f"most {WIDEST_PX * scale:g}"
        )
    if survey.catalog is not None:
        check_catalog(survey.catalog.with_bands(names), names)
    if survey.match is not None:
        check_match(survey.match, names)
    if survey.splits.seed >= 2**63:
        raise InputError(f"splits.seed: {survey.splits.seed} must lie in 0 .. 2^63 - 1")
    fractions = survey.splits.fractions
    if not fractions or not all(type(f) in (int, float) and f > 0 for f in fractions.values()):
        raise InputError(f"splits.fractions: {fractions} must name each split with a fraction greater than 0")
    if abs(sum(fractions.values()) - 1) > 1e-6:
        raise InputError(f"splits.fractions: {fractions} sum to {sum(fractions.values()):g}; make them sum to 1")
    if "gap" in fractions:
        raise InputError("splits.fractions: 'gap' is kept for objects between two splits; choose another name")


def check_files(survey: Survey, band: BandSource, n: int) -> None:
    """Raises InputError for paths that leave the folder, patterns that disagree on {tile}, and mask_bits of no use."""
    tiled = "{tile}" in survey.bands[0].file
    if survey.stamped and (tiled or survey.detection is not None or survey.resample == "reproject"):
        raise InputError(f"bands[{n}].file: {band.file!r} with {{image}} takes no {{tile}}, detection or reprojection")
    for name in ("file", "weight_file", "mask_file"):
        pattern = getattr(band, name)
        if not inside(pattern):
            raise InputError(f"bands[{n}].{name}: {pattern!r} leaves the images folder; give a path inside of it")
        if pattern and ("{tile}" in pattern) != tiled:
            does, first = ("holds no", "does") if tiled else ("holds", "does not")
            raise InputError(
                f"bands[{n}].{name}: {pattern!r} {does} {{tile}}, but bands[0].file {first}; make them agree"
            )
    if band.mask_bits and not band.mask_file and band.mask_hdu == "":
        raise InputError(f"bands[{n}].mask_bits: there is no mask; name mask_hdu or mask_file")
    for kind, bits in band.mask_bits.items():
        is_bit = lambda bit: isinstance(bit, str) or (type(bit) is int and 0 <= bit < 63)
        if kind not in MASKS or not isinstance(bits, list) or not all(map(is_bit, bits)):
            raise InputError(
                f"bands[{n}].mask_bits: {kind} = {bits!r} must be bad, saturated or nodata = a list of bits (0 to 62 "
                "or names)"
            )


def check_match(match: Match, bands: list[str]) -> None:
    """Raises InputError."""
    if not inside(match.file):
        raise InputError(
            f"match.file: {match.file!r} leaves the survey file's folder; use --match for a file elsewhere"
        )
    if match.catalog.x or match.catalog.photometry is not None:
        raise InputError("match.catalog: only positions on the sky and redshifts are taken; leave out x, y, photometry")
    check_catalog(match.catalog, bands, "match.catalog")


def inside(path: str) -> bool:
    """Whether a relative path stays below its folder."""
    return not PurePosixPath(path).is_absolute() and ".." not in PurePosixPath(path).parts
