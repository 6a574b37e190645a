"""VICReg: two views of every cutout agree, with variance and without covariance over the batch.

    python -m jaxz.train --config=configs/pretrain_vicreg.py --workdir=runs/demo/vicreg

Hardware: 2 CPU cores for a try on the demo's dataset, one GPU for a survey. Time: twice demo_pretrain's a step of the
same batch, for its two views. Expect: vicreg/variance falls towards 0: were the embeddings to collapse, it would stay
near 2.
"""

from configs import demo_direct


def get_config():
    config = demo_direct.get_config()
    config.data.where = ""
    config.losses = dict(vicreg=1.0)
    config.vicreg = dict(projector=(256, 256, 256), invariance=25.0, variance=25.0, covariance=1.0)
    config.train.update(dict(steps=1000, batch_size=256))
    return config
