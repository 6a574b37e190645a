"""Treyer's network with first layers for every pair and triple of adjacent bands (Ait Ouahmed et al. 2024).

    python -m jaxz.train --config=configs/baseline_multimodal.py --workdir=RUN --config.data.path=DATASET

All else is that of configs/baseline_treyer.py, so that the two compare; model.name=pasquet2019 takes the other trunk.
Hardware: one GPU. Time: hours; for 5 bands its operations are 1.8 times those of configs/baseline_treyer.py.
Expect: less scatter than the same trunk without subsets, the more so the more bands there are, as they report.
"""

from configs import baseline_treyer


def get_config():
    config = baseline_treyer.get_config()
    config.model.subsets = (2, 3)
    return config
