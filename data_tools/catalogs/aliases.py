"""Names under which catalogues hold the dataset's columns, as data. Compared without regard to case, but for those of
one letter: z is a magnitude, Z a redshift."""

from collections.abc import Iterable

ALIASES = {
    "object_id": (
        "object_id", "objid", "ID", "IDENT", "NUMBER", "ID_COSMOS2020", "SeqNr", "source_id", "galaxy_id", "specobjid",
        "coadd_object_id",
    ),
    "ra": ("ra", "alpha", "ALPHA_J2000", "RAJ2000", "RA_ICRS", "RA_J2000", "right_ascension", "i_ra", "ra_deg"),
    "dec": (
        "dec", "delta", "DELTA_J2000", "DEJ2000", "DECJ2000", "DE_ICRS", "DEC_J2000", "declination", "i_dec", "dec_deg",
    ),
    "z_spec": ("z_spec", "zspec", "specz", "spec_z", "specz_redshift", "zbest", "z_best", "redshift", "Z"),
    "z_spec_err": ("z_spec_err", "zspec_err", "specz_err", "specz_redshift_err", "zerr", "z_err"),
    "z_quality": (
        "z_quality", "zflag", "z_flag", "zspec_flag", "specz_flag", "zq", "z_qual", "zquality", "Q", "flag", "zwarn",
        "zwarning", "specz_flag_homogeneous",
    ),
    "z_source": ("z_source", "zsource", "zspec_source", "specz_source"),
    "z_phot": (
        "z_phot", "zphot", "photoz", "photo_z", "photoz_best", "lp_zBEST", "lp_zPDF", "ez_z_phot", "zp_best", "Z_B",
        "z_phot_mean", "z_phot_median", "phz_median",
    ),
    "z_phot_l68": ("z_phot_l68", "lp_zPDF_l68", "z_phot_l", "photoz_err68_min", "zphot_l68"),
    "z_phot_u68": ("z_phot_u68", "lp_zPDF_u68", "z_phot_u", "photoz_err68_max", "zphot_u68"),
    "ebv": ("ebv", "EBV_MW", "EBV_SFD", "E_BV", "EB_V", "ebv_gal", "gal_ebv"),
}  # fmt: skip


def matching(name: str, columns: Iterable[str]) -> list[str]:
    """The columns that an alias of `name` fits, in the file's order."""
    aliases = ALIASES.get(name, ())
    exact, folded = {a for a in aliases if len(a) == 1}, {a.lower() for a in aliases if len(a) > 1}
    return [column for column in columns if column in exact or column.lower() in folded]
