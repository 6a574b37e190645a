"""The last layer of a fine-tuned run trained anew on a near-balanced subset (Lin et al. 2022, step 2).

    python -m data_tools.relabel DATASET --name balanced --near_balanced 100
    python -m jaxz.train --config=configs/redshift_balanced.py --workdir=RUN --config.data.path=DATASET \\
        --config.init.path=FINE_TUNED_RUN

Takes model and head of configs/redshift_finetune.py: settings of the group redshift must be those of that run. The
last layer of a run of configs/redshift_lin.py: --config=configs/redshift_balanced.py:lin.
Hardware: 2 CPU cores for a try, one GPU for work. Time: a third of the fine-tuning's steps.
Expect: less bias at redshifts and magnitudes that few labels have (residual slopes nearer to 0), a little more scatter.
"""

from configs import redshift_finetune, redshift_lin


def get_config(head: str = "redshift"):
    config = redshift_lin.get_config() if head == "lin" else redshift_finetune.get_config(head)
    config.data.overlays = ("balanced",)
    config.data.where = "near_balanced == 1"
    config.train.steps = 700
    config.optim.update(dict(lr=1e-4, frozen=f"^(?!{head}/out/)"))
    return config
