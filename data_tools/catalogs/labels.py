"""Redshifts: one scale of quality, spectra apart from grisms, and the label."""

from collections.abc import Mapping

import numpy as np

from data_tools.catalogs.columns import VALID, mapped, number_text
from data_tools.catalogs.spec import QUALITIES, CatalogColumns
from jaxz.errors import InputError

# What belongs to a measured redshift, with the value that stands for "none"
MEASURED = {
    "z_spec": np.nan, "z_spec_err": np.nan, "z_grism": np.nan, "z_quality": 0, "z_flag_orig": "", "z_source": "",
}  # fmt: skip


REDSHIFTS = ("z", "z_spec", "z_grism", "z_phot")


def not_redshifts(name: str, number: int) -> str:
    """What is said of numbers of a column of REDSHIFTS that are none, such as -99, or velocities."""
    low, high = VALID[name]
    return (
        f"{name}: {number} numbers are no redshifts, {low:g} to {high:g}, and count as missing; "
        "a velocity is to be divided by the speed of light"
    )


def quality(flags: np.ndarray, mapping: Mapping[str, int], where: str) -> np.ndarray:
    """int32 [N], 0..4: the homogenised quality of the original flags (text), 0 for what `mapping` lacks.

    Without a mapping the flags are taken as they are. Raises InputError where these are not 0 to 4.
    """
    if mapping:
        return mapped(flags, mapping, 0).astype(np.int32)
    known = {"": 0, **{str(q): q for q in QUALITIES}}
    unknown = sorted({flag for flag in np.unique(flags).tolist() if number_text(flag) not in known})
    if unknown:
        raise InputError(f"{where}.z_quality: the flags {unknown[:8]} are not 0 to 4; add {where}.z_quality_map")
    return mapped(flags, known, 0).astype(np.int32)


def sort_kinds(columns: dict[str, np.ndarray], kinds: np.ndarray | None, spec: CatalogColumns) -> dict[str, np.ndarray]:
    """`columns` with redshifts of a grism moved from z_spec to z_grism, and photometric ones taken out.

    kinds: text [N] that z_kind_map maps to spec, grism or phot; what it lacks is spec.
    """
    if kinds is None or "z_spec" not in columns:
        return columns
    kind = mapped(kinds, spec.z_kind_map, "spec")
    z = columns["z_spec"]
    grism = np.where(kind == "grism", z, columns.get("z_grism", np.full(len(z), np.nan)))
    return {**columns, "z_spec": np.where(kind == "spec", z, np.nan), "z_grism": grism}


def rank(columns: dict[str, np.ndarray]) -> np.ndarray:
    """How good a redshift is [N]: its quality for a grism's, 10 + its quality for a spectrum's, -1 where there is none.

    columns: all of MEASURED.
    """
    grism = np.where(np.isfinite(columns["z_grism"]), columns["z_quality"], -1)
    return np.where(np.isfinite(columns["z_spec"]), 10 + columns["z_quality"], grism)


def label(columns: dict[str, np.ndarray], label_from: list[str]) -> dict[str, np.ndarray]:
    """z, z_err and z_kind [N]: the first of `label_from` that there is; "none" and NaN where there is none of them.

    The error of a photometric redshift is half of the width of its 68 % interval.
    """
    number = len(next(iter(columns.values())))
    none = np.full(number, np.nan)
    get = lambda name: columns.get(name, none)
    half_width = (get("z_phot_u68") - get("z_phot_l68")) / 2
    errors = {"spec": get("z_spec_err"), "grism": get("z_spec_err"), "phot": half_width}
    z, z_err, kind = none.copy(), none.copy(), np.full(number, "none", "U5")
    for source in label_from:
        take = np.isnan(z) & np.isfinite(get(f"z_{source}"))
        z[take], z_err[take], kind[take] = get(f"z_{source}")[take], errors[source][take], source
    return {"z": z, "z_err": z_err, "z_kind": kind}
