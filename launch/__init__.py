"""Runs on a Slurm cluster: `python -m launch.slurm`. docs/slurm.md, docs/jean_zay.md."""
