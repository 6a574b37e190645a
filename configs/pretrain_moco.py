"""MoCo: a view of every cutout finds the averaged encoder's key of another view in a queue of keys.

    python -m jaxz.train --config=configs/pretrain_moco.py --workdir=runs/demo/moco

Hardware: 2 CPU cores for a try on the demo's dataset, one GPU for a survey. Time: 1.3 times demo_pretrain's a step.
Expect: the loss falls at first, rises while the queue fills with keys of objects, and falls again; moco/accuracy
rises.
"""

from configs import demo_direct


def get_config():
    config = demo_direct.get_config()
    config.data.where = ""
    config.losses = dict(moco=1.0)
    config.moco = dict(projector=(256, 64), temperature=0.2, queue=2048)
    config.train.update(dict(steps=1000, ema_decay=0.99))
    return config
