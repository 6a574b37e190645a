"""Labels of two tiers at once: spectroscopic redshifts, and the templates' for the objects that have none.

    python -m jaxz.photometry --dataset runs/demo/dataset --workdir runs/demo/templates --model template --repair \\
        --label phot
    python -m jaxz.train --config=configs/redshift_tiered.py --workdir=runs/demo/tiered

Half of each batch is spectroscopic, so that few sure labels are not drowned; a template's label is as wide as its
error. Other photometric redshifts, such as those of a many-band catalogue, come in as z, z_err and z_kind 'phot' of an
overlay.
Hardware: 2 CPU cores for a try on the demo's dataset, one GPU for a survey. Time: that of configs/demo_direct.py.
Expect: where spectra are missing half of the outliers of direct training, and no more scatter where they are
(docs/results.md), as far as the templates hold.
"""

from configs import demo_direct


def get_config():
    config = demo_direct.get_config()
    config.data.where = ""
    config.data.overlays = ("phot",)
    config.data.sources = (dict(name="spec", where="z_kind == 'spec'"), dict(name="phot", where="z_kind == 'phot'"))
    config.data.stages = (dict(ratios=(1, 1)),)
    return config
