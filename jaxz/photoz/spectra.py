"""Galaxy spectra from physics, for template fits: stars as black bodies with the main absorption edges, a main sequence
and giants under Salpeter's mass function, star formation histories, nebular lines, dust and intergalactic hydrogen.

Rough beside fitted libraries (EAZY, BC03), and independent of any survey: give those to `jaxz.photometry --templates`.
"""

import functools

import numpy as np

STEP = 0.004  # of ln(wavelength): redshifting is a shift by whole samples
WAVELENGTH = np.exp(np.arange(np.log(300.0), np.log(1.2e5), STEP))  # angstrom, rest frame
HC_K = 1.438777e8  # angstrom K: h c / k
SUN = 5777.0  # K
MASS = np.geomspace(0.2, 100, 80)  # of stars
LYMAN_EDGE, BALMER_EDGE, METAL_EDGE = 912.0, 3646.0, 4000.0  # angstrom

# age in Gyr of constant star formation (from, to), and E(B-V) of the dust before it
HISTORIES = (
    (9.0, 11.0, 0.0),
    (3.0, 5.0, 0.0),
    (1.0, 2.0, 0.0),
    (0.3, 0.6, 0.0),
    (0.0, 10.0, 0.0),
    (0.0, 10.0, 0.3),
    (0.0, 1.0, 0.0),
    (0.0, 1.0, 0.4),
    (0.0, 0.1, 0.1),
    (0.0, 0.01, 0.0),
)
SPAN = (0, 2, 5, 7, 9)  # of them: one of each kind
# Wavelength (angstrom) and strength relative to H beta, case B at 1e4 K (Osterbrock & Ferland 2006), usual [O]
LINES = ((3728.0, 2.5), (4861.0, 1.0), (4959.0, 0.7), (5007.0, 2.1), (6563.0, 2.86))
ESCAPE = 0.02  # of the ionising light
PHOTONS_PER_H_BETA = 8.5  # ionising ones (Osterbrock & Ferland 2006, case B)
LYMAN_SERIES = ((1215.67, 0.0036), (1025.72, 0.0017), (972.54, 0.0012), (949.74, 0.00093))


def templates() -> np.ndarray:
    """F_lambda [T,W] of HISTORIES at WAVELENGTH, each 1 in the mean from 4000 to 6000 angstrom."""
    spectra = np.array([history(old, young) * dust(ebv) for old, young, ebv in HISTORIES])
    visible = (WAVELENGTH > 4000) & (WAVELENGTH < 6000)
    return spectra / spectra[:, visible].mean(axis=1, keepdims=True)


def history(youngest: float, oldest: float) -> np.ndarray:
    """F_lambda [W] of stars born at a constant rate from `oldest` to `youngest` Gyr ago, and of their gas."""
    ages = np.geomspace(max(youngest, 0.001), oldest, 30)
    stars = np.trapezoid([population(age) for age in ages], ages, axis=0)
    if not youngest:
        stars += ages[0] * population(ages[0])
    ionising = WAVELENGTH < LYMAN_EDGE
    photons = (stars * WAVELENGTH**2)[ionising].sum() * STEP  # times hc
    stars = np.where(ionising, ESCAPE * stars, stars)  # the gas takes the rest
    sigma = 1.5 * STEP
    for line, strength in LINES:
        profile = np.exp(-0.5 * (np.log(WAVELENGTH / line) / sigma) ** 2) / (np.sqrt(2 * np.pi) * sigma * line)
        stars += strength * photons / PHOTONS_PER_H_BETA / 4861.0 * profile
    return stars


@functools.cache
def main_sequence() -> np.ndarray:
    """F_lambda [M,W] of stars of MASS, of unit light: T = 5777 K M^0.55, 50,000 K at most."""
    return np.array([star(min(SUN * mass**0.55, 50_000)) for mass in MASS])


def population(age: float) -> np.ndarray:
    """F_lambda [W] of stars of one age (Gyr) per mass born, in solar units: L = M^3.5, above 20 only by M^2; lives of
    10 Gyr M^-2.5 + 3 Myr; numbers M^-2.35 (Salpeter 1955); and giants of 4300 K, most of old light."""
    turn_off, step = (10 / max(age - 0.003, 1e-6)) ** 0.4, np.log(MASS[1] / MASS[0])
    alive = np.clip(np.log(turn_off / MASS) / step + 0.5, 0, 1)
    weight = alive * MASS**-2.35 * MASS**2 * np.minimum(MASS, 20) ** 1.5 * MASS * step  # light of a step
    light, total = weight @ main_sequence(), weight.sum()
    giants = np.interp(np.log10(age), [-2.5, -1, 0, 1], [0.05, 0.2, 0.5, 0.65])  # of all light
    return light + total * giants / (1 - giants) * star(4300.0)


def star(temperature: float) -> np.ndarray:
    """F_lambda [W] of unit bolometric light: a black body, with the Lyman and Balmer edges of hot stars and the metal
    lines of cool ones below 4000 angstrom."""
    planck = WAVELENGTH**-5.0 / np.expm1(np.minimum(HC_K / (WAVELENGTH * temperature), 500))
    spectrum = planck / np.trapezoid(planck, WAVELENGTH)
    balmer = 0.6 * np.exp(-((np.log(temperature / 9500) / 0.4) ** 2))
    metals = np.clip((7500 - temperature) / 3000, 0, 1)
    spectrum = np.where(WAVELENGTH < BALMER_EDGE, spectrum * (1 - balmer), spectrum)
    blanket = np.where(WAVELENGTH < METAL_EDGE, 0.6 + 1.2 * np.maximum(0, np.log(METAL_EDGE / WAVELENGTH)), 0.0)
    lyman = np.where(WAVELENGTH < LYMAN_EDGE, 0.3 if temperature > 25000 else 0.01, 1.0)
    return spectrum * np.exp(-metals * blanket) * lyman


def dust(ebv: float) -> np.ndarray:
    """Transmission [W] of dust of E(B-V) magnitudes in the galaxy."""
    return 10 ** (-0.4 * ebv * calzetti(WAVELENGTH))


def calzetti(wavelength: np.ndarray) -> np.ndarray:
    """k(lambda) = A(lambda) / E(B-V) of Calzetti et al. 2000, eq. 4; constant below 0.12 micron, not negative."""
    um = np.maximum(wavelength / 1e4, 0.12)
    blue = -2.156 + 1.509 / um - 0.198 / um**2 + 0.011 / um**3
    red = -1.857 + 1.040 / um
    return np.maximum(2.659 * np.where(um < 0.63, blue, red) + 4.05, 0.0)


def igm_transmission(wavelength: np.ndarray, z: float) -> np.ndarray:
    """Mean transmission at observed wavelengths (angstrom) of the light of a source at redshift z.

    Madau 1995: eq. 15 (Lyman series), footnote 3 (an approximation of the photoelectric optical depth of eq. 16).
    """
    depth = np.zeros_like(wavelength)
    for line, strength in LYMAN_SERIES:
        depth += np.where(wavelength < line * (1 + z), strength * (wavelength / line) ** 3.46, 0.0)
    c, e = wavelength / 912.0, 1 + z
    continuum = (
        0.25 * c**3 * (e**0.46 - c**0.46)
        + 9.4 * c**1.5 * (e**0.18 - c**0.18)
        - 0.7 * c**3 * (c**-1.32 - e**-1.32)
        - 0.023 * (e**1.68 - c**1.68)
    )
    return np.exp(-depth - np.where(c < e, np.maximum(continuum, 0.0), 0.0))
