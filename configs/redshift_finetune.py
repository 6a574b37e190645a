"""A pretrained encoder fine-tuned for redshift on the labelled objects of any dataset.

    python -m jaxz.train --config=configs/redshift_finetune.py --workdir=RUN --config.data.path=DATASET \\
        --config.init.path=PRETRAINING_RUN

Takes the model of configs/pretrain_mae.py; z_max of the head must lie above the largest redshift hoped for. Another:
--config=configs/redshift_finetune.py:redshift_mixture or :redshift_regression.
Hardware: 2 CPU cores for a try, one GPU for work. Time: minutes to hours, by the number of labels.
Expect: compare it with a run without init.path.
"""

from configs import pretrain_mae


def get_config(head: str = "redshift"):
    config = pretrain_mae.get_config()
    config.data.where = "z_kind == 'spec' and z_quality >= 3"
    config.losses = {head: 1.0}
    config.train.update(dict(steps=2000, batch_size=128, log_every=10))
    config.optim.update(dict(lr=5e-4, warmup_steps=100, b2=0.999))
    return config
