"""The demo's ViT pretrained on every image of the train split, labelled or not: masked pixels and catalog fluxes.

    python -m jaxz.train --config=configs/demo_pretrain.py --workdir=runs/demo/pretrain

Hardware: 2 CPU cores. Time: 4 minutes. Expect: both losses fall; the fluxes teach the colours of the faint and distant
objects that have no label. Masked pixels alone did not help the redshifts in earlier trials.
"""

from configs import demo_direct


def get_config():
    config = demo_direct.get_config()
    config.data.where = ""
    config.losses = dict(mae=0.01, fluxes=1.0)
    config.mae = dict(mask_ratio=0.5, decoder_width=64, decoder_depth=1, decoder_heads=4)
    config.train.steps = 1000
    return config
