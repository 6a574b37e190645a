"""Redshift probability densities on a grid of bins, and their file format."""

import contextlib
import functools
import io
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np
from numpy.polynomial import polynomial

ODDS_HALF_WIDTH = 0.06  # in units of 1 + z
RISK_WIDTH = 0.15  # of the loss of `risk`, in units of 1 + z
RISK_STEP, RISK_STENCIL = 0.01, np.arange(-4, 5)  # in z, and in steps: the risk is smooth over 0.15 (1 + z)
BLOCK = 50_000  # objects whose CDFs are held at once


@dataclass(frozen=True, eq=False)
class PDF:
    """Histogram densities p(z) of N objects: constant inside each bin, so that the CDF is piecewise linear.

    edges: [n+1] ascending redshifts; probability: [N, n] bin masses, each row summing to 1.
    Raises ValueError where shapes do not fit, edges do not ascend, or a row is no probability.
    """

    edges: np.ndarray
    probability: np.ndarray

    def __post_init__(self):
        object.__setattr__(self, "edges", np.asarray(self.edges, np.float64))
        object.__setattr__(self, "probability", np.asarray(self.probability))
        if self.edges.ndim != 1 or self.probability.ndim != 2 or self.probability.shape[1] != len(self.edges) - 1:
            raise ValueError(
                f"edges {self.edges.shape} and probability {self.probability.shape} are not [n+1] and [N, n]"
            )
        if not np.isfinite(self.edges).all() or not (np.diff(self.edges) > 0).all():
            raise ValueError("edges must be finite and ascend")
        total = self.probability.sum(axis=1, dtype=np.float64)
        wrong = ~(np.abs(total - 1) < 1e-3) | ~(self.probability >= 0).all(axis=1)
        if wrong.any():
            row = int(np.flatnonzero(wrong)[0])
            raise ValueError(
                f"probability: {int(wrong.sum())} rows are no probabilities, e.g. row {row} sums to {total[row]}"
            )

    def __len__(self) -> int:
        return len(self.probability)

    def __getitem__(self, rows: slice | np.ndarray | Sequence[int]) -> "PDF":
        """The densities of some objects: rows is a slice, an index array or a boolean mask."""
        return PDF(self.edges, self.probability[rows])

    def blocks(self) -> Iterator["PDF"]:
        """The densities in pieces of 50,000 objects (at least one piece): a CDF takes twice the room of its p(z)."""
        return (self[start : start + BLOCK] for start in range(0, max(len(self), 1), BLOCK))

    @property
    def widths(self) -> np.ndarray:
        """[n] bin widths."""
        return np.diff(self.edges)

    @property
    def centres(self) -> np.ndarray:
        """[n] bin midpoints."""
        return (self.edges[1:] + self.edges[:-1]) / 2

    @functools.cached_property
    def cumulative(self) -> np.ndarray:
        """float64 [N, n+1]: the CDF at the edges, exactly 0 at the first and 1 at the last."""
        cumulative = np.zeros((len(self), len(self.edges)))
        np.cumsum(self.probability, axis=1, dtype=np.float64, out=cumulative[:, 1:])
        cumulative /= cumulative[:, -1:]
        return cumulative

    def mean(self) -> np.ndarray:
        """[N] expectation of z."""
        return np.diff(self.cumulative, axis=1) @ self.centres

    def median(self) -> np.ndarray:
        """[N] redshift at which the CDF is 1/2."""
        return self.quantile(0.5)

    def mode(self) -> np.ndarray:
        """[N] midpoint of the densest bin (the first of equals)."""
        return self.centres[np.argmax(self.probability / self.widths, axis=1)]

    def quantile(self, q: float) -> np.ndarray:
        """[N] smallest redshift at which the CDF reaches q, linear inside the bin."""
        rows = np.arange(len(self))
        bins = np.minimum((self.cumulative[:, 1:] < q).sum(axis=1), len(self.widths) - 1)
        low, high = self.cumulative[rows, bins], self.cumulative[rows, bins + 1]
        inside = np.divide(q - low, high - low, out=np.zeros(len(self)), where=high > low)
        return self.edges[bins] + np.clip(inside, 0, 1) * self.widths[bins]

    def interval(self, level: float) -> tuple[np.ndarray, np.ndarray]:
        """Two [N]: the central interval that holds `level` of the mass, e.g. 0.68 from quantile 0.16 to 0.84."""
        return self.quantile((1 - level) / 2), self.quantile((1 + level) / 2)

    def cdf(self, z: np.ndarray | float) -> np.ndarray:
        """[N] probability below z (a scalar, or [N]), linear inside the bin; 0 and 1 outside of the grid."""
        bins, inside = self.locate(z)
        rows = np.arange(len(self))
        low, high = self.cumulative[rows, bins], self.cumulative[rows, bins + 1]
        return low + inside * (high - low)

    def density(self, z: np.ndarray | float) -> np.ndarray:
        """[N] p(z) at z (a scalar, or [N]), per unit redshift; 0 outside of the grid."""
        bins, _ = self.locate(z)
        z = np.broadcast_to(z, len(self))
        inside = (z >= self.edges[0]) & (z <= self.edges[-1])
        return np.where(inside, self.probability[np.arange(len(self)), bins] / self.widths[bins], 0.0)

    def odds(self, z: np.ndarray | None = None) -> np.ndarray:
        """[N] mass within +-0.06 (1 + z) of z, by default the median (Benitez 2000, ApJ 536, 571)."""
        z = self.median() if z is None else z
        reach = ODDS_HALF_WIDTH * (1 + z)
        return self.cdf(z + reach) - self.cdf(z - reach)

    def risk(self) -> np.ndarray:
        """[N] the point of least expected loss, argmin over z_p of the integral of p(z) L((z_p - z) / (1 + z)) dz with
        L(x) = 1 - 1 / (1 + (x / 0.15)^2) (Tanaka et al. 2018, PASJ 70, S9, sec. 4.2), exact to 1e-7."""
        reach = RISK_STENCIL[-1]
        count = int(np.ceil(np.ptp(self.edges) / RISK_STEP))
        points = self.edges[0] + RISK_STEP * np.arange(-reach, count + reach + 1)
        gains = (self.probability / self.widths) @ np.diff(_gain(self.edges, points), axis=1).T  # 1 - risk, [N, points]
        peak = reach + np.argmax(gains[:, reach:-reach], axis=1)
        near = np.take_along_axis(gains, peak[:, None] + RISK_STENCIL, axis=1)
        slope = polynomial.polyder(np.linalg.solve(np.vander(RISK_STENCIL, increasing=True), near.T))
        bend, at = polynomial.polyder(slope), np.zeros(len(self))  # at: in steps from the peak
        for _ in range(5):  # Newton's method
            down = polynomial.polyval(at, bend, tensor=False)
            move = polynomial.polyval(at, slope, tensor=False)
            at = np.clip(at - np.divide(move, down, out=np.zeros(len(self)), where=down < 0), -1, 1)
        return np.clip(points[peak] + RISK_STEP * at, self.edges[0], self.edges[-1])

    def credibility(self, z: np.ndarray | float) -> np.ndarray:
        """[N] mass of the smallest region that holds z, from 0 at the mode to 1: z lies in the highest-density region
        of level a where it is at most a. Linear inside the bin, bins of equal density in their order; 1 outside."""
        bins, inside = self.locate(z)
        own = self.probability[np.arange(len(self)), bins][:, None] / self.widths[bins][:, None]
        density, before = self.probability / self.widths, np.arange(len(self.widths)) < bins[:, None]
        mass = np.diff(self.cumulative, axis=1)
        level = np.where((density > own) | ((density == own) & before), mass, 0).sum(axis=1)
        level += inside * mass[np.arange(len(self)), bins]
        return np.where((z >= self.edges[0]) & (z <= self.edges[-1]), level, 1.0)

    def locate(self, z: np.ndarray | float) -> tuple[np.ndarray, np.ndarray]:
        """[N] bin of z, and [N] where in the bin it lies, from 0 to 1."""
        z = np.broadcast_to(np.asarray(z, np.float64), len(self))
        bins = np.clip(np.searchsorted(self.edges, z, side="right") - 1, 0, len(self.widths) - 1)
        return bins, np.clip((z - self.edges[bins]) / self.widths[bins], 0, 1)


def _gain(z: np.ndarray, point: np.ndarray) -> np.ndarray:
    """[..., n]: the antiderivative at z [n] of 1 / (1 + ((point - z) / (a (1 + z)))^2), a = 0.15, for each point [...]:
    with u = 1 + z and c = 1 + point it is that of a^2 u^2 / D, D = (1 + a^2) u^2 - 2 c u + c^2."""
    a, u, c = RISK_WIDTH, 1 + z, (1 + point)[..., None]
    scale = 1 + a * a
    logarithm = np.log(scale * u * u - 2 * c * u + c * c)
    return a * a / scale * (u + c / scale * logarithm + c * (2 / scale - 1) / a * np.arctan((scale * u - c) / (c * a)))


def write_qp(path: Path | str, pdf: PDF, ancil: Mapping[str, np.ndarray]) -> None:
    """Write densities and per-object columns (each [N, ...]) as an HDF5 file that `qp.read` reads as qp.hist.

    The file appears complete or not at all, also after a crash of the system. Raises OSError that names `path`.
    """
    path, sink = Path(path), io.BytesIO()  # on a full disk HDF5 itself may crash
    with h5py.File(sink, "w") as file:
        file["meta/pdf_name"] = np.array([b"hist"])
        file["meta/pdf_version"] = np.array([0])
        file["meta/bins"] = pdf.edges[None]
        density = file.create_dataset("data/pdfs", pdf.probability.shape, pdf.probability.dtype)
        for start in range(0, len(pdf), BLOCK):
            density[start : start + BLOCK] = pdf.probability[start : start + BLOCK] / pdf.widths
        for name, values in ancil.items():
            values = np.asarray(values)
            text = values.dtype.kind in "UO"  # qp reads fixed-length bytes
            file[f"ancil/{name}"] = np.char.encode(values.astype(str), "utf-8") if text else values
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            file.write(sink.getbuffer())
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        error.filename, error.filename2 = str(path), None  # not the temporary name
        raise
    finally:
        with contextlib.suppress(OSError):  # renamed, or never made
            temporary.unlink()


def read_qp(path: Path | str) -> tuple[PDF, dict[str, np.ndarray]]:
    """The densities and per-object columns of a qp.hist file. Raises ValueError for a file of another layout."""
    try:
        with h5py.File(path) as file:
            kind = file["meta/pdf_name"][0]
            if kind != b"hist":
                raise ValueError(f"{path} holds qp densities of kind {kind!r}; only 'hist' is read")
            edges, density = np.asarray(file["meta/bins"]).ravel(), np.asarray(file["data/pdfs"])
            ancil = {name: np.asarray(values) for name, values in file.get("ancil", {}).items()}
    except (KeyError, OSError) as error:
        raise ValueError(f"{path} is no qp file of histograms ({error})") from None
    text = {name: np.char.decode(v, "utf-8") for name, v in ancil.items() if v.dtype.kind == "S"}
    return PDF(edges, density * np.diff(edges).astype(density.dtype)), {**ancil, **text}
