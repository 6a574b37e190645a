"""A published encoder fine-tuned whole for redshift, the lower a block the slower (layer-wise decay).

    python -m jaxz.train --config=configs/published_finetune.py --workdir=RUN --config.data.path=DATASET \\
        --config.init.path=$WORK/pretrained/dinov2_vitb14_pretrain.pth

    --config=configs/published_finetune.py:dinov3_vits16   another one of jaxz.models.published.MODELS

Where the weights are absent it ends with 2. Hardware: one GPU of 32 GB; --config.model.remat=block for less memory,
--config.model.dtype=float16 on a V100. Time: by operations, minutes on an H100. Expect: not measured with real weights;
compare it with configs/redshift_finetune.py and configs/published_probe.py.
"""

from configs import published_probe


def get_config(name="dinov2_vitb14"):
    config = published_probe.get_config(name)
    config.optim.update(dict(lr=3e-4, frozen="", layer_decay=0.75))
    return config
