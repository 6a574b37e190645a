"""CLAP (Lin et al. 2024) on the network of Treyer et al. 2024, with the paper's recipe for SDSS: a published baseline.

    python -m jaxz.train --config=configs/baseline_clap.py --workdir=RUN --config.data.path=DATASET
    python -m jaxz.correct --workdir RUN [RUN ...] --dataset DATASET --method clap --out NEWRUN

The second is CLAP's result: neighbours in the 16 numbers, calibrated, learned by a network and averaged over the runs
(ten of other seeds in the paper). Images as in configs/baseline_treyer.py, with E(B-V) in the first layer; Adam at
1e-4, a fifth of it in the second half, batches of 2 x 32, 150,000 steps, lambda (clap.reconstruction) 100; for CFHTLS
clap.reconstruction=1, z_max=4, bins=1000. clap.z_max must lie above the largest redshift hoped for.
Other than the paper: the decoder is one hidden layer a patch (the whole image here) in place of convolutions; the
rate falls at 75,000 steps in place of 60,000; and what jaxz.photoz.clap says of the steps behind the network.
Hardware: one GPU. Time: three times that of configs/baseline_treyer.py a step. Expect: p(z) better calibrated than that
of configs/baseline_treyer.py, at a like sigma_mad; compare them on your own data.
"""

from configs import baseline_treyer


def get_config():
    config = baseline_treyer.get_config()
    config.model.bottleneck = False
    config.losses = dict(clap=1.0)
    config.clap = dict(z_max=0.4, bins=180, label_sigma=0.0, views=1, reconstruction=100.0)
    del config["redshift"]
    config.train.update(dict(steps=150_000, batch_size=64))
    return config
