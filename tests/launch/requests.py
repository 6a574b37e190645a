"""Requests for the tests, and the golden scripts: `python -m tests.launch.requests` writes those anew."""

import dataclasses
from pathlib import Path

from launch.profile import FOLDER
from launch.render import convert_script, stage_script, train_script
from launch.request import Request, make_request, parser

GOLDEN = Path(__file__).parent / "golden"
PROFILES = sorted(path.stem for path in FOLDER.glob("*.toml"))
TRAIN = ["--config=configs/pretrain_mae.py", "--workdir=/runs/pretrain", "--config.data.path=/data/survey"]
DATA = ["--stage", "/store/tiles", "/scratch/tiles", "--parts", "40"]
DATA += ["--convert", "--survey=survey.toml --images=/scratch/tiles --out=/data/survey"]


def request(profile: str = "jean_zay_h100", *ours: str, train: list[str] = TRAIN) -> Request:
    arguments = ["--profile", profile, "--python", "/venv/bin/python", *ours]
    made = make_request(parser().parse_args(arguments), train)
    return dataclasses.replace(made, folder=Path("/work/jaxz"))


def golden() -> dict[str, str]:
    """{file name: script}: for every profile the usual one; then a sweep, a chain, and what makes data."""
    usual = ("--account", "abc", "--nodes", "4", "--time", "20:00:00")
    made = {name: train_script(request(name, *usual), 1000) for name in PROFILES}
    made["sweep"] = train_script(
        request("jean_zay_a100", *usual, "--array", "seed=0,1", "--array", "optim.lr=1e-3,3e-4", "--limit", "2"), 1000
    )
    made["chain"] = train_script(request("jean_zay_h100", *usual, "--chain", "3"), 1000)
    prepared = request("jean_zay_h100", *usual, *DATA)
    made["stage"], made["convert"] = stage_script(prepared, *prepared.stage), convert_script(prepared, merge=False)
    return {**made, "merge": convert_script(prepared, merge=True)}


if __name__ == "__main__":
    for name, script in golden().items():
        (GOLDEN / f"{name}.sh").write_text(script)
