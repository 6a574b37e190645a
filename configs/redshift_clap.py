"""CLAP (Lin et al. 2024): a latent of 16 numbers that knows redshifts, whose neighbours give p(z).

    python -m jaxz.train --config=configs/redshift_clap.py --workdir=RUN --config.data.path=DATASET

Afterwards the latents' neighbours: docs/shift.md. Train several seeds for the harmonic ensemble.
Hardware: 2 CPU cores for a try, one GPU for work. Time: three times redshift_finetune's a step: two views, a cycle.
Expect: slower progress than a direct run's: 120 steps of batch 64 (width 64, 20,000 simulated cutouts) bring the loss
from 29 to 21 and sigma_mad on objects like the labelled ones to 0.08, 200 direct ones to 0.06 (one seed). In the paper
the estimator's p(z) end as good as a direct run's, and those of the neighbours are better calibrated.
"""

from configs import redshift_finetune


def get_config():
    config = redshift_finetune.get_config()
    config.losses = dict(clap=1.0)
    config.augment.shift = 2
    config.optim.lr = 3e-4
    return config
