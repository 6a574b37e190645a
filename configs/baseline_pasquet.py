"""The inception network of Pasquet et al. 2019 on the labelled objects: what an image model must beat.

    python -m jaxz.train --config=configs/baseline_pasquet.py --workdir=RUN --config.data.path=DATASET

Their recipe: reddened images with E(B-V) beside them, sign(x) (sqrt(1 + |x|) - 1) of the flux, 180 classes, Adam at
1e-4 and a fifth of it in the second half, batches of 128, 120,000 steps, the mean of six networks (train.members=6).
Theirs is 0 < z < 0.4: redshift.z_max must lie above the largest redshift hoped for, with bins of a like width.
x is the flux over data.softening of the sky's sigma: about 30 of them make a nanomaggy in SDSS r. Of faint galaxies
take data.softening=1 and a higher optim.lr: at 30 their pixels are numbers near zero, of which it learns slowly.
Hardware: one GPU. Time: hours. Expect: sigma_mad below 0.01 on SDSS galaxies of r < 17.8 from 100,000 labels, as
they report; compare arms on your own data.
"""

from jaxz.config import default


def get_config():
    config = default()
    config.data.where = "z_kind == 'spec'"
    config.data.update(dict(deredden=False, stretch="sqrt", softening=30.0))
    config.model.update(dict(name="pasquet2019"))
    config.losses = dict(redshift=1.0)
    config.redshift = dict(z_max=0.4, bins=180, label_sigma=0.0, views=1, norm=False)
    config.train.update(dict(steps=120_000, batch_size=128, log_every=100))
    config.optim.update(dict(lr=1e-4, schedule="step", warmup_steps=0, weight_decay=0.0, clip_norm=1e9))
    config.checkpoint.every = 2000
    return config
