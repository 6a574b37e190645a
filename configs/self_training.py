"""Self-training: unlabelled objects with labelled neighbours learn the averaged network's redshift, where it is sure.

    python -m jaxz.shift runs/demo/dataset --name shift --train "split == 'train' and z_kind == 'spec'" \\
        --target "split == 'train'" --features flux
    python -m jaxz.train --config=configs/self_training.py --workdir=runs/demo/self_training

Hardware: 2 CPU cores for a try on the demo's dataset, one GPU for a survey. Time: twice demo_direct's a step of the
same batch, for its two views. Expect: self_training/sure rises from 0; compare with demo_direct over several seeds:
self-training may confirm what is wrong. On the sky of docs/results.md it had twice the scatter of direct training.
"""

from configs import demo_direct


def get_config():
    config = demo_direct.get_config()
    config.data.where = ""
    config.data.overlays = ("shift",)
    config.data.sources = (dict(name="all"), dict(name="labelled", where="z_kind == 'spec'"))
    config.data.stages = (dict(ratios=(1, 1)),)
    config.losses = dict(self_training=1.0)
    config.train.ema_decay = 0.99
    return config
