"""The demo's ViT pretrained by BYOL on every image of the train split.

    python -m jaxz.train --config=configs/pretrain_byol.py --workdir=RUN --config.data.path=DATASET

Hardware: 2 CPU cores for a try, one GPU for work. Time: about 7 minutes on 2 cores, by its share of operations.
Expect: the loss falls below 0.05 in 100 steps, monitor/feature_std stays above 0.3; after 600 steps the ridge of
jaxz.probe --truth --item ema has an R^2 of 0.83, untrained 0.79; with the stem `fused` 0.45 and 0.22
(benchmarks/RESULTS.md).
"""

from configs import demo_direct


def get_config():
    config = demo_direct.get_config()
    config.data.where = ""
    config.losses = dict(byol=1.0)
    config.train.update(dict(steps=1000, ema_decay=0.99, ema_final=1.0))
    config.optim.update(dict(lr=1e-3, warmup_steps=100))
    return config
