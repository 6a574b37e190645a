"""Fine-tuning with two views that must agree, each told its redshift bin, on evenly drawn redshifts (ICT-ConvEntion).

    python -m jaxz.train --config=configs/redshift_two_branch.py --workdir=RUN --config.data.path=DATASET \\
        --config.init.path=PRETRAINING_RUN

Takes the model of configs/pretrain_mae.py. Labels in two tiers: a first run on photometric redshifts, with
--config.data.where="z_kind == 'phot'", then one on spectra that starts from it. Hardware: one GPU, or 2 CPU cores for a
try. Time: three times configs/redshift_finetune.py's a step. Expect: in the paper, smaller differences between
redshift bins; on the sky of docs/results.md, at 1.4 times the cost of direct training, larger ones (spread of
sigma_mad 0.082 there, here more by 0.039 +- 0.015; three seeds) and more scatter.
"""

from configs import redshift_finetune


def get_config():
    config = redshift_finetune.get_config("two_branch")
    config.data.balance = "z"
    config.augment.update(dict(shift=2, noise=(1.0, 1.5)))
    config.train.ema_decay = 0.99
    return config
