"""Which way was a cutout turned? A baseline, and a detector of directions that the instrument leaves.

    python -m jaxz.train --config=configs/pretrain_rotation.py --workdir=runs/demo/rotation

Hardware: 2 CPU cores for a try on the demo's dataset, one GPU for a survey. Time: that of demo_pretrain. Expect:
rotation/accuracy stays at 0.25 where the sky's images have no direction; see docs/objectives.md.
"""

from configs import demo_direct


def get_config():
    config = demo_direct.get_config()
    config.data.where = ""
    config.augment.orientation = "none"  # the objective turns the images
    config.losses = dict(rotation=1.0)
    config.train.steps = 1000
    return config
