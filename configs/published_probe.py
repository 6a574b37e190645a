"""A redshift head on a frozen published encoder, DINOv2 unless said otherwise: what natural images teach of galaxies.

    python -m jaxz.train --config=configs/published_probe.py --workdir=RUN --config.data.path=DATASET \\
        --config.init.path=$WORK/pretrained/dinov2_vitb14_pretrain.pth

    --config=configs/published_probe.py:clip_vitb16        another one of jaxz.models.published.MODELS

Where the weights are absent it ends with 2. The bands are seen as red, green, blue, red ...; three of them alone with
--config.model.band_init=rgb_map --config.model.rgb="('i','r','g')". Hardware: one GPU; CPU cores for a try.
Time: by operations, minutes on a GPU, half a second a cutout on a core. Expect: not measured with real weights; a
sigma_mad well above that of fine-tuning.
"""

from configs import redshift_finetune
from jaxz.models import published


def get_config(name="dinov2_vitb14"):
    config = redshift_finetune.get_config()
    patch = published.model(name)["patch"]
    config.model = published.model(name) | dict(image_size=16 * patch, normalisation="asinh", dtype="bfloat16")
    config.init.path = f"{name}_pretrain.pth"
    config.optim.update(dict(lr=3e-3, frozen="^encoder/"))
    return config
