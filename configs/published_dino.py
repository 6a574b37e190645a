"""A published encoder pretrained further on every image of the train split by self-distillation: student and teacher
begin with its weights.

    python -m jaxz.train --config=configs/published_dino.py --workdir=RUN --config.data.path=DATASET \\
        --config.init.path=$WORK/pretrained/dinov2_vitb14_pretrain.pth

    --config=configs/published_dino.py:dino_vits16         another one of jaxz.models.published.MODELS

Where the weights are absent it ends with 2. What is to be used is the teacher: init.item "ema". Hardware: 4 GPUs of
80 GB, or --config.model.remat=block. Time: by operations, an hour on 4 H100. Expect: the loss begins near 2 ln(4096) =
17; dino/perplexity_of_mean stays in the thousands. Not measured with real weights.
"""

from configs import pretrain_dino, published_probe


def get_config(name="dinov2_vitb14"):
    config = pretrain_dino.get_config()
    imported = published_probe.get_config(name)
    config.model, config.init, config.data.deredden = imported.model, imported.init, imported.data.deredden
    config.dino = dict(prototypes=4096, hidden_width=2048, bottleneck=256)
    config.train.update(dict(steps=10_000, batch_size=256, ema_decay=0.994))
    config.optim.update(dict(lr=1e-4, warmup_steps=1000, layer_decay=0.9))
    return config
