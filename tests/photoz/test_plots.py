import matplotlib
import numpy as np
import pytest
from scipy import stats

from jaxz.photoz import plots
from jaxz.photoz.metrics import main_metrics
from jaxz.photoz.pdf import PDF

DRAW = np.random.default_rng(0)
Z_TRUE = DRAW.uniform(0.2, 1.5, 600)
Z_PHOT = Z_TRUE + 0.03 * (1 + Z_TRUE) * DRAW.normal(size=600)
COLOURS = plots.arm_colours(["a", "b"])


def test_arms_keep_their_colours():
    assert plots.arm_colours(["a", "b"]) == {"a": plots.COLOURS[0], "b": plots.COLOURS[1]}
    assert len(plots.arm_colours([str(i) for i in range(12)])) == 12


def test_density_shows_every_object():
    figure = plots.density({"a": (Z_PHOT, Z_TRUE), "b": (Z_PHOT + 9, Z_TRUE)}, COLOURS)
    above, below = ([ax for ax in figure.axes if ax.get_ylabel() == text][0] for text in
                    ("estimated redshift", r"$e=\Delta z/(1+z)$"))  # fmt: skip
    assert above.collections[0].get_array().sum() == 600
    assert below.collections[0].get_array().sum() == 600  # what lies past the strip is drawn at its edge
    assert {ax.get_title() for ax in figure.axes} >= {"a", "b"}


@pytest.mark.parametrize("count", [1, 3, 5, 9])
def test_every_figure_draws_any_number_of_arms(count):
    """Panels that the last row does not need are taken away, before a colour bar or a legend looks for them."""
    names = [f"arm {i}" for i in range(count)]
    colours, pdf = plots.arm_colours(names), PDF(np.linspace(0, 2, 21), DRAW.dirichlet(np.ones(20), 600))
    figures = (
        plots.density(dict.fromkeys(names, (Z_PHOT, Z_TRUE)), colours),
        plots.redshift_distribution(dict.fromkeys(names, (Z_PHOT, pdf)), dict.fromkeys(names, Z_TRUE), colours),
        plots.loss_curves(dict.fromkeys(names, (np.arange(9), np.arange(1.0, 10))), colours),
    )
    for figure in figures:
        assert plots.png(figure)
        assert {ax.get_title() for ax in figure.axes} >= set(names)
    assert plots.png(plots.pdf_gallery({"a": pdf[: len(names)]}, Z_TRUE[:count], names, COLOURS))


def test_trends_show_the_metrics_of_each_bin():
    arms = {"a": {"z_phot": Z_PHOT, "z_true": Z_TRUE, "m": np.where(Z_TRUE < 1, 20.0, 22.0)}}
    figure = plots.trends(arms, {"m": "magnitude"}, COLOURS, bins=2)
    sigma = [ax for ax in figure.axes if "MAD" in ax.get_ylabel()][0].lines[0].get_ydata()
    expected = [main_metrics(Z_PHOT[rows], Z_TRUE[rows])["sigma_mad"] for rows in (Z_TRUE < 1, Z_TRUE >= 1)]
    assert sigma == pytest.approx(expected)


def test_calibration_names_the_distance():
    pit = DRAW.beta(2, 2, 500)
    figure = plots.calibration({"a": pit}, COLOURS)
    assert figure.axes[1].get_legend().texts[0].get_text() == f"a: KS {stats.kstest(pit, 'uniform').statistic:.3f}"
    assert np.abs(figure.axes[1].lines[0].get_ydata()).max() <= stats.kstest(pit, "uniform").statistic + 1e-12


def test_redshift_distribution_stacks_densities():
    pdf = PDF(np.linspace(0, 2, 21), DRAW.dirichlet(np.ones(20), 600))
    figure = plots.redshift_distribution({"a": (Z_PHOT, pdf)}, {"a": Z_TRUE}, COLOURS)
    stack = [patch for patch in figure.axes[0].patches if patch.get_label() == "mean p(z)"][0].get_data()
    assert (stack.values * np.diff(stack.edges)).sum() == pytest.approx(1)
    assert stack.values == pytest.approx(pdf.probability.mean(axis=0) / 0.1)


def test_absent_and_hidden_pixels_are_told_apart():
    image = DRAW.normal(size=(2, 3, 8, 8))
    hidden, observed = np.zeros((2, 3, 8, 8), bool), np.ones((2, 3), bool)
    hidden[0, 0, :4], observed[1, 2] = True, False
    figure = plots.reconstructions(image, image + 5, hidden, observed, list("gri"))
    pictures = [
        [ax.images[0].get_array() if ax.images else None for ax in figure.axes[3 * r : 3 * r + 3]] for r in range(6)
    ]
    seen, filled, original = (row[0] for row in pictures[:3])
    assert np.array_equal(np.ma.getmaskarray(seen), hidden[0, 0])
    assert filled.data == pytest.approx(np.where(hidden[0, 0], image[0, 0] + 5, image[0, 0]))
    assert original.data == pytest.approx(image[0, 0])
    assert [row[2] is None for row in pictures] == [False, False, False, True, True, True]


def test_galleries_and_curves_render_without_touching_global_settings():
    before = dict(matplotlib.rcParams)
    pdf = PDF(np.linspace(0, 2, 21), DRAW.dirichlet(np.ones(20), 5))
    figures = [
        plots.pdf_gallery({"a": pdf, "b": pdf}, Z_TRUE[:5], list("vwxyz"), COLOURS),
        plots.cutout_gallery(DRAW.normal(size=(2, 3, 8, 8)), np.ones((2, 3), bool), list("gri"), ["x", "y"]),
        plots.loss_curves(
            {"a": (np.arange(100.0), np.geomspace(1000, 1, 100)), "b": (np.arange(3.0), np.full(3, np.nan))}, COLOURS
        ),
    ]
    assert all(plots.png(figure).startswith(b"\x89PNG") for figure in figures)
    assert figures[2].axes[0].get_yscale() == "log"
    assert dict(matplotlib.rcParams) == before
