"""A redshift head on a frozen pretrained encoder: what its embedding knows.

    python -m jaxz.train --config=configs/redshift_probe.py --workdir=RUN --config.data.path=DATASET \\
        --config.init.path=PRETRAINING_RUN

The model's size must be that of the pretraining run (here the demo's). Hardware: 2 CPU cores. Time: 2 minutes.
Expect: a sigma_mad well above that of fine-tuning, which moves the encoder too.
"""

from configs import demo_direct


def get_config():
    config = demo_direct.get_config()
    config.optim.update(dict(lr=3e-3, frozen="^encoder/"))
    config.train.steps = 500
    return config
