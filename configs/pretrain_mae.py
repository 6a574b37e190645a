"""Masked autoencoding of every cutout in a dataset: the tile of the quick start, or a survey.

    python -m jaxz.train --config=configs/pretrain_mae.py --workdir=RUN --config.data.path=DATASET

Hardware: 2 CPU cores for a try, one GPU for work. Time: 200 steps on 64 x 64 x 9 cutouts take 2 minutes on 2 cores.
Expect: on the nine-band tile the loss, in units of the sky variance, falls from above 9 to about 1.3 within 200 steps.
"""

from jaxz.config import default


def get_config():
    config = default()
    config.data.deredden = False  # a tile's catalog need not have E(B-V)
    config.model.update(dict(width=192, depth=4, heads=3, patch=8))
    config.mae = dict(mask_ratio=0.75, band_mask=0.2, decoder_width=96, decoder_depth=1, decoder_heads=3)
    config.losses = dict(mae=1.0)
    config.train.update(dict(steps=200, batch_size=64, log_every=5))
    config.optim.update(dict(lr=1e-3, warmup_steps=20, b2=0.95))
    config.checkpoint.every = 100
    return config
