"""Was a cutout mirrored? A baseline, and a detector of what tells left from right.

    python -m jaxz.train --config=configs/pretrain_flip.py --workdir=runs/demo/flip

Hardware: 2 CPU cores for a try on the demo's dataset, one GPU for a survey. Time: that of demo_pretrain. Expect:
flip/accuracy stays at 0.5 where the sky's images do not tell left from right; see docs/objectives.md.
"""

from configs import demo_direct


def get_config():
    config = demo_direct.get_config()
    config.data.where = ""
    config.augment.orientation = "none"  # the objective mirrors the images
    config.losses = dict(flip=1.0)
    config.train.steps = 1000
    return config
