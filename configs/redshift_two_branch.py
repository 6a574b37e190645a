"""Fine-tuning with two views that must agree, each told its redshift bin, on evenly drawn redshifts (ICT-ConvEntion).

    python -m jaxz.train --config=configs/redshift_two_branch.py --workdir=RUN --config.data.path=DATASET \\
        --config.init.path=PRETRAINING_RUN

Takes the model of configs/pretrain_mae.py. Labels in two tiers: a first run on photometric redshifts, with
--config.data.where="z_kind == 'phot'", then one on spectra that starts from it. Hardware: one GPU, or 2 CPU cores for a
try. Time: three times configs/redshift_finetune.py's a step. Expect: smaller differences of scatter and bias between
redshift bins (spread_* of macro_metrics) than that config's.
"""

from configs import redshift_finetune


def get_config():
    config = redshift_finetune.get_config("two_branch")
    config.data.balance = "z"
    config.augment.update(dict(shift=2, noise=(1.0, 1.5)))
    config.train.ema_decay = 0.99
    return config
