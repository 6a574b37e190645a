"""The inception network of Treyer et al. 2024 on the labelled objects: a deeper published CNN to beat.

    python -m jaxz.train --config=configs/baseline_treyer.py --workdir=RUN --config.data.path=DATASET

As configs/baseline_pasquet.py, with sign(x) ln(1 + |x|) of the flux and E(B-V) in the first layer; cutouts of at least
57 pixels. They train on a set resampled to be representative (data.weights or data.balance), average several networks
(train.members) and take the median of p(z), which is z_best.
Hardware: one GPU. Time: hours; its operations are 3.9 times those of configs/baseline_pasquet.py. Expect:
compare it with configs/baseline_pasquet.py on your own data; theirs are SDSS galaxies of r < 20.
"""

from configs import baseline_pasquet


def get_config():
    config = baseline_pasquet.get_config()
    config.data.stretch = "log"
    config.model = dict(name="treyer2024")
    config.redshift.update(dict(z_max=0.7))
    return config
