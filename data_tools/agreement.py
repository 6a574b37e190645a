"""Whether a catalogue and its images agree on how bright objects are: a wrong zero point or unit shows here."""

from collections.abc import Iterator

import numpy as np

from jaxz.data.dataset import Dataset

FACTOR = 3.0  # total fluxes of galaxies and those in an aperture differ by less, in the median
BRIGHT = 10.0  # times the error in the aperture
FEWEST = 10  # objects, below which a median says nothing
SHARDS = 20  # that are looked at


def flux_ratios(dataset: Dataset) -> dict[str, float]:
    """{band: median of the catalogue's flux over that in the aperture}, of bright objects of the first shards, for
    bands that have both and enough of them."""
    names = lambda band: [f"flux_{band}", f"flux_aper_{band}", f"fluxerr_aper_{band}"]
    manifest = dataset.manifest
    both = [band.name for band in manifest.bands if manifest.columns.keys() >= set(names(band.name))]
    wanted = [name for band in both for name in names(band)]
    tables = [dataset.shard_table(n, wanted) for n in range(min(len(manifest.shards), SHARDS) if both else 0)]
    found = {}
    for band in both:
        flux, aperture, error = (np.concatenate([table[name].to_numpy() for table in tables]) for name in names(band))
        bright = (aperture > BRIGHT * error) & np.isfinite(flux)
        if np.count_nonzero(bright) >= FEWEST:
            found[band] = float(np.median(flux[bright] / aperture[bright]))
    return found


def disagreements(ratios: dict[str, float]) -> Iterator[str]:
    """A sentence for each band whose ratio is not near 1."""
    for band, ratio in ratios.items():
        if not 1 / FACTOR < ratio < FACTOR:
            yield (
                f"bands.{band}: the catalogue's fluxes are {ratio:.3g} times those in the images; check zero_point_ab "
                "or the unit of both"
            )
