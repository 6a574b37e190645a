"""Alignment of every cutout with its catalog fluxes, as CLIP aligns images with texts.

    python -m jaxz.train --config=configs/pretrain_align.py --workdir=runs/demo/align

Hardware: 2 CPU cores for a try on the demo's dataset, one GPU for a survey. Time: that of demo_pretrain. Expect: the
loss begins at about ln(256) = 5.5 and falls; fluxes tell much of a redshift, and the embedding with them.
"""

from configs import demo_direct


def get_config():
    config = demo_direct.get_config()
    config.data.where = ""
    config.losses = dict(align=1.0)
    config.align = dict(width=64, hidden=128, temperature=0.07, errors=True)
    config.train.update(dict(steps=1000, batch_size=256))
    return config
