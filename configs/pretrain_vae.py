"""A beta-VAE: every cutout through 32 numbers and back.

    python -m jaxz.train --config=configs/pretrain_vae.py --workdir=runs/demo/vae

Hardware: 2 CPU cores for a try on the demo's dataset, one GPU for a survey. Time: that of demo_pretrain. Expect:
autoencoder/pixels falls towards 1, the sky's variance, as far as the divergence lets it; a larger beta stops it
earlier.
"""

from configs import demo_direct


def get_config():
    config = demo_direct.get_config()
    config.data.where = ""
    config.losses = dict(autoencoder=1.0)
    config.autoencoder = dict(latent=32, beta=1.0, hidden=128)
    config.train.steps = 1000
    return config
