"""The demo's ViT pretrained on every image of the train split to predict some bands from the others.

    python -m jaxz.train --config=configs/pretrain_bands.py --workdir=RUN --config.data.path=DATASET

Hardware: 2 CPU cores for a try, one GPU for work. Time: about 3 minutes on 2 cores, by its share of operations.
Expect: the loss, in units of the sky variance, falls towards 1, the floor that sky noise sets, and stays above it.
"""

from configs import demo_direct


def get_config():
    config = demo_direct.get_config()
    config.data.where = ""
    config.losses = dict(masked_bands=1.0)
    config.train.steps = 1000
    config.optim.update(dict(lr=1e-3, warmup_steps=100))
    return config
