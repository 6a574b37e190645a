"""Redshifts by magnitude, the first step of Lin et al. 2022, on an encoder pretrained or not.

    python -m jaxz.train --config=configs/redshift_lin.py --workdir=RUN --config.data.path=DATASET \\
        --config.init.path=PRETRAINING_RUN

lin.magnitude_min and magnitude_max, 17.5 and 25 here whatever the dataset is, are to be the range of its mag_ref, cut
into 2 x heads - 1 rows of half a magnitude: for 16 to 25.5, --config.lin.magnitude_min=16
--config.lin.magnitude_max=25.5 --config.lin.heads=10. What lies beyond belongs to the outermost rows. Steps 2 to 4,
from this run: docs/shift.md.
Hardware: 2 CPU cores for a try, one GPU for work. Time: that of configs/redshift_finetune.py.
Expect: it learns more slowly than one head: 1,200 steps of docs/results.md leave a sigma_mad of 0.030 on objects like
the labelled ones, a direct run 0.024, and residuals that depend more on z_spec (slope -0.081 against -0.014; three
seeds). Train it long, and compare the residual_slope of docs/metrics.md; in the paper the dependence falls.
"""

from configs import redshift_finetune


def get_config():
    config = redshift_finetune.get_config()
    config.losses = dict(lin=1.0)
    config.lin = dict(
        z_min=0.0, z_max=3.0, bins=150, band_mask=0.0, views=8, balance="",
        label_sigma=0.01, heads=8, magnitude_min=17.5, magnitude_max=25.0,
    )  # fmt: skip
    return config
