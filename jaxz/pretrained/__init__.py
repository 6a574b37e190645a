"""Published weights as encoders: DINOv2, CLIP and their kin, exact to rounding.

graphdef, params, report = load_pretrained("dinov2_vitb14_pretrain.pth")
encoded = nnx.merge(graphdef, params)(image, mask)             # Encoded(cls [B,D], tokens [B,N,D], observed)

python -m jaxz.pretrained inspect PATH                         # what is in a file, without building anything
"""

import dataclasses
from pathlib import Path

from flax import nnx

from jaxz.errors import InputError, suggest
from jaxz.models.functional import Params
from jaxz.models.published import settings_of
from jaxz.models.resize import VARIANTS
from jaxz.pretrained import adapt, family
from jaxz.pretrained.families import FAMILIES
from jaxz.pretrained.formats import Checkpoint, open_checkpoint
from jaxz.pretrained.layouts import Plan, fill, make_plan
from jaxz.pretrained.tensors import damaged

CHECKED = (
    "nothing in the file was run, and no class is named that running code alone could make",
    "every tensor lies within its storage, every storage within its file, and the file is whole",
    "the files of an index lie beside it and hold what it says",
)


def load_pretrained(
    path: Path | str,
    *,
    family: str = "auto",
    arch: dict | None = None,
    bands: adapt.Bands | None = None,
    band_init: str = "mean",
    image_size: int | tuple[int, int] | None = None,
    pos_interp: str = "family",
    strict: bool = True,
) -> tuple[nnx.GraphDef, Params, dict]:
    """The encoder of a checkpoint: nnx.merge(graphdef, params)(image [B,C,H,W], mask) -> Encoded.

    params: float32, a plain nested dict. report: what was found, used, left out and changed, as JSON has it.
    family: a module of jaxz.pretrained.families. arch: what no tensor says, such as dict(heads=12, act="gelu").
    pos_interp: how positions are resized for other sizes, a name in jaxz.models.resize.VARIANTS; "family": as the code
    that the file is of does it. bands, band_init: see jaxz.pretrained.adapt.with_bands; None: red, green, blue.
    image_size: pixels (one side, or rows and columns) to resize them for once and for all.
    strict: refuse tensors without a place and places without a tensor; otherwise they are left out, or 0.
    Raises InputError for all that is unsafe, damaged, ambiguous or does not fit.
    """
    checkpoint = open_checkpoint(path)
    model, report = describe(checkpoint, family, arch, pos_interp)
    plan = plan_of(checkpoint, model, strict)
    params = fill(plan, checkpoint.tensors)
    report |= summary(plan) | {"resized": {}, "adapted": {}}
    if image_size is not None:
        model, params, report["resized"] = adapt.with_size(model, params, image_size)
    if bands is not None:
        model, params, report["adapted"] = adapt.with_bands(model, params, bands, band_init)
    report["settings"] = dataclasses.asdict(model.settings)
    graphdef, _ = nnx.split(abstract(model))
    return graphdef, params, report


def abstract(model: family.Model) -> nnx.Module:
    """The module of a model with the shapes of its parameters in their place."""
    return nnx.eval_shape(lambda: model.make(model.settings, rngs=nnx.Rngs(0)))


def image_tower(graphdef: nnx.GraphDef, params: Params) -> tuple[nnx.GraphDef, Params]:
    """The encoder of images alone, of CLIP or SigLIP: without texts' parameters and the projections."""
    return nnx.split(nnx.merge(graphdef, params).image)[0], params["image"]


def inspect_checkpoint(path: Path | str, *, family: str = "auto", arch: dict | None = None) -> dict:
    """What load_pretrained would make of a checkpoint; where it would ask or refuse, the sentence. "model": what a
    run's config says of it (jaxz.models.published). Every tensor is read once, so that checksums are compared, and none
    is kept.

    Raises InputError for a file that is damaged or unsafe.
    """
    checkpoint = open_checkpoint(path)
    found = contents(checkpoint)
    try:
        model, report = describe(checkpoint, family, arch, "family")
        found |= {"model": settings_of(adapt.image_of(model.settings))}
        return found | report | summary(plan_of(checkpoint, model, strict=False))
    except InputError as error:
        return found | {"asks": str(error)}


def contents(checkpoint: Checkpoint) -> dict:
    """What a checkpoint holds, as JSON has it. Every tensor is read, so that checksums are compared."""
    dtypes: dict[str, int] = {}
    for tensor in checkpoint.tensors.values():
        tensor.read()
        dtypes[tensor.dtype] = dtypes.get(tensor.dtype, 0) + 1
    return {
        "checked": CHECKED,
        "files": [str(file) for file in checkpoint.files],
        "bytes": checkpoint.nbytes,
        "wrapper": checkpoint.wrapper,
        "tensors": len(checkpoint.tensors),
        "dtypes": dtypes,
    }


def describe(checkpoint: Checkpoint, name: str, arch: dict | None, pos_interp: str) -> tuple[family.Model, dict]:
    """The model that a checkpoint is of, and what is to be reported of it."""
    name = recognised(checkpoint) if name == "auto" else name
    if name not in FAMILIES:
        raise InputError(f"family: {name!r} is no family of jaxz/pretrained/families.{suggest(name, FAMILIES)}")
    with damaged(checkpoint.files[0], f"a model of {name}, by the config beside it and arch"):
        given = family.flat_arch(arch)
        model = FAMILIES[name].describe(checkpoint, given)
    family.check_seen(given, model.seen)
    model = model if pos_interp == "family" else interpolated(model, pos_interp)
    report = {
        "family": name,
        "layout": model.layout,
        "files": [str(file) for file in checkpoint.files],
        "arch": model.arch,
        "settings": dataclasses.asdict(model.settings),
        "published_input": model.published_input,
    }
    return model, report


def recognised(checkpoint: Checkpoint) -> str:
    """The family whose marks the tensors bear. Raises InputError where none or several are."""
    found = [name for name, module in FAMILIES.items() if module.recognises(checkpoint)]
    if len(found) == 1:
        return found[0]
    what = f"are of {' and '.join(found)}" if found else f"are of none of {', '.join(FAMILIES)}"
    raise InputError(f"family: tensors such as {sorted(checkpoint.tensors)[:3]} {what}; say which it is")


def interpolated(model: family.Model, variant: str) -> family.Model:
    """The model with positions resized in another way, a name in VARIANTS. Raises InputError for another."""
    if variant not in VARIANTS:
        raise InputError(f"pos_interp: {variant!r} is no way to resize positions.{suggest(variant, VARIANTS)}")
    return adapt.changed(model, interpolation=variant)


def plan_of(checkpoint: Checkpoint, model: family.Model, strict: bool) -> Plan:
    """What of the checkpoint becomes which parameter. Raises InputError as `make_plan` does."""
    parameters = nnx.to_pure_dict(nnx.state(abstract(model)))
    return make_plan(checkpoint.shapes, model.rows, model.ignored, parameters, strict)


def summary(plan: Plan) -> dict:
    """What a report says of a plan: the tensors used and left out, and the parameters that have none."""
    return {
        "consumed": sorted(plan.fed),
        "ignored": plan.ignored,
        "missing": sorted(plan.missing.values()),
        "unexpected": list(plan.unexpected),
    }
