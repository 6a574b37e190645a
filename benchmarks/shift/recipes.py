"""What a scratch directory is of: the sky, its labels, the recipe of every arm. Runs of another are not compared."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from benchmarks.shift.arms import TEMPLATES, Arm
from benchmarks.shift.labels import VERSION, Protocol
from benchmarks.shift.runs import directories, overlay_names, training_arguments
from jaxz.config import complete, difference, parse, resolved
from jaxz.errors import InputError
from jaxz.files import read_json, replace


def claim(scratch: Path, protocol: Protocol, arms: Sequence[Arm], of: Mapping) -> None:
    """Keep in SCRATCH/protocol.json what its runs are of: `of` (the size and the sky), the protocol and the recipes.

    What an older file lacks is taken to be as it is now. Raises InputError where something is another, naming the arm
    whose runs are there.
    """
    path = scratch / "protocol.json"
    told = {**of, **protocol._asdict(), "dataset": str(protocol.dataset), "overlays": VERSION}
    now = json.loads(json.dumps(told)) | {"arms": recipes(scratch, protocol, arms)}
    then = read_json(path, "what this directory is of") if path.exists() else {}
    known = {name: completed(recipe) for name, recipe in then.get("arms", {}).items()}
    if changed := difference({**now, **then, "arms": {}}, {**now, "arms": {}}):
        raise InputError(f"SCRATCH: {str(scratch)!r} holds other runs ({'; '.join(changed)}); give another directory")
    for name, recipe in now["arms"].items():
        runs = directories(scratch, name)
        if runs and (changed := difference(known.get(name, recipe), recipe)):
            raise InputError(
                f"SCRATCH: the runs of the arm {name} are of another recipe ({'; '.join(changed)}); remove "
                f"{', '.join(map(str, runs))}, or give another directory"
            )
    scratch.mkdir(parents=True, exist_ok=True)
    replace(path, json.dumps(now | {"arms": known | now["arms"]}, indent=1).encode())


def recipes(scratch: Path, protocol: Protocol, arms: Sequence[Arm]) -> dict[str, dict]:
    """{arm: {"fields", "overlays", "config", "start", "templates"}}: of a trained arm the whole config of seed 0, the
    recipe of the arm that it begins from, and the options of the templates whose redshifts it learns; of a
    jaxz.photometry one its options, of a jaxz.correct one "correct" and its start."""
    found: dict[str, dict] = {}
    for arm in arms:
        names = overlay_names(protocol, arm, 0)
        found[arm.name] = {"fields": list(arm.fields), "overlays": names}
        if arm.config:
            config = resolved(parse(training_arguments(scratch, protocol, arm, 0, Path(arm.weights))))
            found[arm.name] = {"config": config, "overlays": names, "start": found.get(arm.start, {})}
            if arm.overlay == "templates":
                found[arm.name]["templates"] = list(TEMPLATES.fields)
        elif arm.correct:
            found[arm.name] = {"correct": arm.correct, "start": found[arm.start]}
    return {name: completed(recipe) for name, recipe in found.items()}


def completed(recipe: dict) -> dict:
    """A recipe with the defaults of fields that have come since it was kept, without when checkpoints are saved."""
    own = {}
    if "config" in recipe:
        own["config"] = {name: value for name, value in complete(recipe["config"]).items() if name != "checkpoint"}
    if "start" in recipe:
        own["start"] = completed(recipe["start"])
    return {**recipe, **own}
