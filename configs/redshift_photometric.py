"""First tier of two: photometric redshifts of a many-band catalogue, and spectroscopic ones, as labels of their errors.

    python -m jaxz.train --config=configs/redshift_photometric.py --workdir=TIER1 --config.data.path=DATASET
    python -m jaxz.train --config=configs/redshift_finetune.py --workdir=TIER2 --config.data.path=DATASET \\
        --config.init.path=TIER1

z_err spreads each label over the bins, so that an uncertain redshift teaches little; --config.data.weights takes a
column besides, such as 1 / z_err^2 of an overlay. The second run learns the sure redshifts alone.
Hardware: 2 CPU cores for a try, one GPU for work. Time: that of configs/redshift_finetune.py, for each tier.
Expect: less bias where spectra are missing, as far as the photometric redshifts are right there.
"""

from configs import redshift_finetune


def get_config():
    config = redshift_finetune.get_config()
    config.data.where = "z_kind == 'phot' or z_kind == 'spec'"
    return config
