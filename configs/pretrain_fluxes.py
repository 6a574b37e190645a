"""A ViT pretrained to read every object's catalogue fluxes off its image, labelled or not.

    python -m jaxz.train --config=configs/pretrain_fluxes.py --workdir=runs/demo/pretrain_fluxes

Hardware: 2 CPU cores for a try on the demo's dataset. Time: that of configs/demo_direct.py a step. Expect: the loss
falls; fine-tuned by configs/demo_finetune.py with --config.init.path=runs/demo/pretrain_fluxes, fewer outliers among
the objects that labels do not reach with the stem `fused`, not with that of the demo, `apertures`, at equal cost
(docs/results.md).
"""

from configs import demo_pretrain


def get_config():
    config = demo_pretrain.get_config()
    config.losses = dict(fluxes=1.0)
    return config
