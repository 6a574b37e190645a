"""A published encoder adapted to redshift by low-rank factors of its kernels, and by how the bands are mixed in front.

    python -m jaxz.train --config=configs/published_lora.py --workdir=RUN --config.data.path=DATASET \\
        --config.init.path=$WORK/pretrained/dinov2_vitb14_pretrain.pth

    --config=configs/published_lora.py:clip_vitl14         another one of jaxz.models.published.MODELS

Where the weights are absent it ends with 2. Hardware: one GPU of 32 GB. Time: as configs/published_finetune.py. Expect:
not measured with real weights; a few percent of the parameters move. Compare it with configs/published_finetune.py.
"""

from configs import published_probe


def get_config(name="dinov2_vitb14"):
    config = published_probe.get_config(name)
    config.model.band_init = "project"
    config.optim.update(dict(lr=1e-3, frozen="", lora_rank=8, lora_kernels="(blocks/.*|stem/projection/)kernel$"))
    return config
