"""The last layer of a fine-tuned run trained anew on a near-balanced subset (Lin et al. 2022, step 2).

    python -m data_tools.relabel DATASET --name balanced --near_balanced 100
    python -m jaxz.train --config=configs/redshift_balanced.py --workdir=RUN --config.data.path=DATASET \\
        --config.init.path=FINE_TUNED_RUN

Takes model and head of configs/redshift_finetune.py: settings of the group redshift must be those of that run.
Hardware: 2 CPU cores for a try, one GPU for work. Time: a third of the fine-tuning's steps.
Expect: less bias at redshifts and magnitudes that few labels have (residual slopes nearer to 0), a little more scatter.
"""

from configs import redshift_finetune


def get_config():
    config = redshift_finetune.get_config()
    config.data.overlays = ("balanced",)
    config.data.where = "near_balanced == 1"
    config.train.steps = 700
    config.optim.update(dict(lr=1e-4, frozen="^(?!redshift/out/)"))
    return config
