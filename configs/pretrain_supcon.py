"""Supervised contrast: labelled cutouts of the same redshift bin lie together, others apart.

    python -m jaxz.train --config=configs/pretrain_supcon.py --workdir=runs/demo/supcon

Hardware: 2 CPU cores for a try on the demo's dataset, one GPU for a survey. Time: twice demo_pretrain's a step of the
same batch, for its two views. Expect: the loss falls to the entropy within a bin, not to 0; few labels
are learned by heart in long runs.
"""

from configs import demo_direct


def get_config():
    config = demo_direct.get_config()
    config.data.where = "z_kind == 'spec'"
    config.losses = dict(supcon=1.0)
    config.supcon = dict(projector=(256, 64), temperature=0.1, bin_width=0.05)
    config.train.update(dict(steps=1000, batch_size=256))
    return config
