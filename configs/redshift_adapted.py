"""A directly trained ViT whose embeddings of labelled and unlabelled objects are made alike.

    python -m jaxz.train --config=configs/redshift_adapted.py --workdir=runs/demo/coral

By CORAL; --config=configs/redshift_adapted.py:mmd or :dann is another term. Half of each batch is labelled.
Hardware: 2 CPU cores for a try on the demo's dataset. Time: twice demo_direct's a step of the same batch. Expect: no
gain where n(z) of the two kinds differs (docs/shift.md); compare it with demo_direct over several seeds. 200 steps of
batch 64 (width 64, 20,000 simulated cutouts, one seed) of :dann leave a sigma_mad of 0.063 on objects like the labelled
ones and 0.153 on all, the same without the term 0.060 and 0.154.
"""

from configs import demo_direct


def get_config(term: str = "coral"):
    config = demo_direct.get_config()
    config.data.where = ""
    config.data.sources = (dict(name="all"), dict(name="labelled", where="z_kind == 'spec'"))
    config.data.stages = (dict(ratios=(1, 1)),)
    config.losses = {"redshift": 1.0, term: 0.1}
    return config
