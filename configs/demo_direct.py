"""The demo's ViT trained directly on the labelled tenth.

python -m jaxz.train --config=configs/demo_direct.py --workdir=runs/demo/direct
"""

from jaxz.config import default


def get_config():
    config = default()
    config.data.path = "runs/demo/dataset"
    config.data.where = "z_kind == 'spec'"
    config.model.update(dict(width=128, depth=4, heads=4, patch=8))
    config.mae.update(dict(mask_ratio=0.5, decoder_width=64, decoder_depth=1, decoder_heads=4))
    config.losses = dict(redshift=1.0)
    config.train.update(dict(steps=800, batch_size=128, log_every=10))
    config.optim.update(dict(lr=1e-3, warmup_steps=50))
    config.checkpoint.every = 200
    return config
