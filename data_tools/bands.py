"""A list of bands as a TOML file, for data whose own format does not describe them (docs/formats.md)."""

import dataclasses
import json
import tomllib
from collections.abc import Sequence
from pathlib import Path

from jaxz.data.manifest import Band
from jaxz.errors import InputError, suggest


def load_bands(path: Path | str) -> tuple[tuple[Band, ...], tuple[str, ...]]:
    """The bands of a file, in the order of an image's channels, and what each is called in the source (`source`, by
    default the name). A field above the first [[bands]] holds for every band that does not say otherwise.

    Raises InputError for a file that is none, and for fields that are missing, unknown or out of range.
    """
    try:
        values = tomllib.loads(Path(path).read_text())
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise InputError(f"bands: {str(path)!r} cannot be read ({error}); give a TOML file of [[bands]]") from None
    listed = values.pop("bands", [])
    if not isinstance(listed, list) or not listed or not all(isinstance(one, dict) for one in listed):
        raise InputError(f"bands: {str(path)!r} lists none; add a [[bands]] section for each")
    known = [field.name for field in dataclasses.fields(Band)]
    bands, sources = [], []
    for n, one in enumerate(listed):
        one = {**values, **one}
        sources.append(one.pop("source", one.get("name")))
        if unknown := sorted(one.keys() - set(known)):
            raise InputError(f"bands[{n}].{unknown[0]} is not a known field.{suggest(unknown[0], [*known, 'source'])}")
        if missing := [name for name in known if name not in one]:
            raise InputError(f"bands[{n}].{missing[0]}: is missing in {str(path)!r}; add it (see docs/formats.md)")
        try:
            bands.append(Band(**one))
        except InputError as error:
            raise InputError(f"bands[{n}].{error}") from None
    for what, names in (("name", [band.name for band in bands]), ("source", sources)):
        if len(set(map(str, names))) != len(names):
            raise InputError(f"bands: {what}s {names} in {str(path)!r} must be unique; rename one")
    return tuple(bands), tuple(map(str, sources))


def bands_toml(bands: Sequence[Band]) -> str:
    """A file that `load_bands` reads. JSON's text and numbers are TOML's."""
    sections = (dataclasses.asdict(band).items() for band in bands)
    return "\n".join("[[bands]]\n" + "".join(f"{k} = {json.dumps(v)}\n" for k, v in items) for items in sections)
