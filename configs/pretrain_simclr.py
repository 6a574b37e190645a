"""SimCLR: two views of every cutout agree, told from the other cutouts of the batch.

    python -m jaxz.train --config=configs/pretrain_simclr.py --workdir=runs/demo/simclr

Hardware: 2 CPU cores for a try on the demo's dataset, one GPU for a survey. Time: twice demo_pretrain's a step of the
same batch, for its two views. Expect: the loss begins at about ln(511) = 6.2, that of chance, and falls within 100
steps; simclr/accuracy rises. After 600 steps the ridge of jaxz.probe --truth has an R^2 of 0.85, untrained 0.79; with
the stem `fused` 0.77 and 0.26 (benchmarks/RESULTS.md).
"""

from configs import demo_direct


def get_config():
    config = demo_direct.get_config()
    config.data.where = ""
    config.losses = dict(simclr=1.0)
    config.simclr = dict(projector=(256, 64), temperature=0.1)
    config.train.update(dict(steps=1000, batch_size=256))
    return config
