"""An ensemble of perceptrons on the catalogue's fluxes of the labelled objects: what the images must add to.

    python -m jaxz.train --config=configs/baseline_photometry.py --workdir=RUN --config.data.path=DATASET

Reads flux_<band> and fluxerr_<band>; a catalogue without images is a dataset of one-pixel cutouts, as
benchmarks/photometry.py makes it. redshift.z_max must lie above the largest redshift hoped for.
Hardware: 2 CPU cores. Time: 1 to 2 minutes. Expect: less scatter than gradient boosting on colours, since errors are
read too: sigma_mad 0.017 against 0.020 on BOSS photometry with 18,000 labels (benchmarks/RESULTS.md).
"""

from jaxz.config import default


def get_config():
    config = default()
    config.data.where = "z_kind == 'spec'"
    config.augment.orientation = "none"
    config.model.update(dict(name="photometry"))
    config.losses = dict(redshift=1.0)
    config.redshift = dict(views=1)
    config.train.update(dict(steps=1500, batch_size=256, members=5, log_every=100))
    config.optim.update(dict(lr=3e-3))
    config.checkpoint.every = 500
    return config
