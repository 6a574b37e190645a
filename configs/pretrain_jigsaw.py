"""In which order do the quarters of a cutout lie? A baseline.

    python -m jaxz.train --config=configs/pretrain_jigsaw.py --workdir=runs/demo/jigsaw

Hardware: 2 CPU cores for a try on the demo's dataset, one GPU for a survey. Time: that of demo_pretrain. Expect:
jigsaw/accuracy rises from 1/24: an object in the middle tells which corner a quarter was.
"""

from configs import demo_direct


def get_config():
    config = demo_direct.get_config()
    config.data.where = ""
    config.losses = dict(jigsaw=1.0)
    config.jigsaw = dict(pieces=2, orders=24)
    config.train.steps = 1000
    return config
