"""CLAP (Lin et al. 2024): a latent of 16 numbers that knows redshifts, whose neighbours give p(z).

    python -m jaxz.train --config=configs/redshift_clap.py --workdir=RUN --config.data.path=DATASET

Then the latents' neighbours, of one run or of several of other seeds, are what the paper scores; the estimator's p(z),
which jaxz.evaluate scores, is but a part of the training:

    python -m jaxz.correct --workdir RUN [RUN ...] --dataset DATASET --method clap --out NEWRUN

configs/baseline_clap.py has the paper's network. Other than there: AdamW with the schedule of redshift_finetune in
place of Adam at 1e-4, and lambda (clap.reconstruction) 1, which the paper takes for CFHTLS (100 for SDSS and KiDS).
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
