"""Semi-supervised: masked pixels and colours of every cutout, redshifts where labelled, on one encoder.

    python -m jaxz.train --config=configs/semi_supervised.py --workdir=runs/demo/semi_supervised

Hardware: 2 CPU cores for a try on the demo's dataset, one GPU for a survey. Time: twice demo_direct's a step. Expect:
all three losses fall; compare it with demo_direct, and with demo_pretrain and demo_finetune in turn.
"""

from configs import demo_direct


def get_config():
    config = demo_direct.get_config()
    config.data.where = ""
    config.data.sources = (dict(name="all"), dict(name="labelled", where="z_kind == 'spec'"))
    config.data.stages = (dict(ratios=(3, 1)),)  # a quarter of each batch: labels are an eighth of the demo's objects
    config.losses = dict(mae=0.01, fluxes=1.0, redshift=0.3)
    config.mae = dict(mask_ratio=0.5, decoder_width=64, decoder_depth=1, decoder_heads=4)
    config.train.steps = 1500
    return config
