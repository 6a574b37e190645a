"""The demo's ViT pretrained by self-distillation on every image of the train split: DINO with masked patches and KoLeo.

    python -m jaxz.train --config=configs/pretrain_dino.py --workdir=RUN --config.data.path=DATASET

For 20,000 to 40,000 cutouts of 32 x 32 and a small ViT; millions of objects bear more prototypes (65536), a wider head
(hidden_width 2048, bottleneck 256) and a slower teacher (ema_decay 0.994). What is to be used is the teacher: init.item
"ema". Hardware: 2 CPU cores for a try, one GPU for work. Time: about 10 minutes on 2 cores, by its share of operations.
Expect: the loss begins at 2 ln(1024) = 14 and falls by a few percent in 100 steps, then further; dino/perplexity falls
below 500, dino/perplexity_of_mean stays near the number of prototypes. After 600 steps the ridge of jaxz.probe --truth
--item ema has an R^2 of 0.82, untrained 0.79; with the stem `fused` 0.55 and 0.26 (benchmarks/RESULTS.md).
"""

from configs import demo_direct


def get_config():
    config = demo_direct.get_config()
    config.data.where = ""
    config.losses = dict(dino=1.0)
    config.train.update(dict(steps=1000, ema_decay=0.99, ema_final=1.0))
    config.optim.update(dict(lr=1e-3, warmup_steps=100))
    return config
