"""The demo's pretrained ViT fine-tuned on the labelled eighth.

    python -m jaxz.train --config=configs/demo_finetune.py --workdir=runs/demo/pretrained

Hardware: 2 CPU cores. Time: 2 minutes. Expect: on the full test set far fewer outliers than the directly trained ViT.
"""

from configs import demo_direct


def get_config():
    config = demo_direct.get_config()
    config.init.path = "runs/demo/pretrain"
    return config
