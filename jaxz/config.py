"""Every field of a run's configuration, with its default and what it means; and how one is read."""

import importlib
import json
import pkgutil
import runpy
import sys
import traceback
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import ml_collections
from absl import flags
from ml_collections import config_flags

from jaxz.data.transport import place
from jaxz.errors import InputError, suggest


def default() -> ml_collections.ConfigDict:
    """The fields that a config file starts from. Optional text is "" where unset."""
    return ml_collections.ConfigDict(
        dict(
            seed=0,
            data=dict(
                path="",  # dataset directory, or URL: s3://, https://, pipe:COMMAND {} ...
                cache="",  # directory for what is fetched of a URL; "": $JAXZ_CACHE, or ~/.cache/jaxz
                cache_gib=0.0,  # its limit; 0: none
                overlays=(),  # names of data.path's overlays/NAME.parquet: columns that are added or replaced
                layers=(),  # names of layers/NAME of data.path and of each source: their arrays reach the objectives
                where="",  # rows to train on, such as "z_kind == 'spec'"; split == 'train' is always added ...
                transductive=False,  # ... unless this is set, which is recorded and reported
                bands=(),  # names, in the model's order; () takes all of the dataset
                weights="",  # a column: rows are drawn in proportion to it
                balance="",  # a column whose classes or bins are drawn equally often, such as "z" ...
                balance_bins=20,  # ... in so many equal bins; 0 for classes
                window=0,  # shards shuffled together; 0: all
                sources=(),  # dicts, each with its own name, path, where, weights, balance, balance_bins or window ...
                stages=(),  # ... mixed in dict(ratios=(1, 3), steps=1000), then ...; (): in equal parts
                threads=2,  # readers
                check="size",  # or "crc": verify every payload's checksum too
                on_error="raise",  # or "replace": up to 0.1 % of samples that cannot be read are stood in for
                coalesce_kib=4,  # payloads at most so far apart are read together; network file systems want 1024
                softening=3.0,  # flux that is 1 before the stretch, in units of the sky sigma per pixel
                stretch="asinh",  # or "log", "sqrt": x to sign(x) ln(1 + |x|), sign(x) (sqrt(1 + |x|) - 1)
                deredden=True,  # Galactic reddening, by the columns ebv and a_over_ebv
            ),
            augment=dict(  # on the device, of linear flux, in training only; 0 and () change nothing
                orientation="square",  # its 8 symmetries, "any" angle and mirrored, or "none"
                shift=0,  # moves by up to so many whole pixels along each axis ...
                subpixel=False,  # ... and by a part of a pixel
                noise=(),  # (1.0, 2.0): white noise up to a sky sigma so many times each band's own
                psf_fwhm=(),  # (0.8, 1.2): each band, if sharper, blurred to a FWHM between these, arcsec
                ebv=0.0,  # Galactic reddening by up to so much E(B-V) more, mag; only without data.deredden
                band_dropout=0.0,  # chance of a band to be masked; one always stays
                hole=0,  # side of a square masked in all bands, pixels
            ),
            model=dict(name="vit"),  # and the settings of jaxz/models/<name>.py
            # objectives by name, each with a group of settings, and their weights: a number, or pairs (step, weight),
            # such as ((0, 1.0), (5000, 0.1)), with straight lines between
            losses=dict(redshift=1.0),
            # a run to start from (item "ema": its averaged weights); of the model "published", also a file of weights
            init=dict(path="", item="params"),
            train=dict(
                steps=1000,
                batch_size=128,
                log_every=10,
                accumulate=1,  # slices of a batch whose gradients are averaged, one after another: needs less memory
                members=1,  # models trained at once on the same batches, with the seeds seed, seed + 1, ...
                ema_decay=0.0,  # of the averaged parameters, a teacher's too; 0: no average is kept
                ema_final=0.0,  # what it rises to, on half a cosine; 0: it stays
                profile=(),  # (10, 15): a trace of these steps goes to RUN/profile
            ),
            optim=dict(
                name="adamw",  # or another of jaxz.optim.DIRECTIONS: "lamb", "lion", "muon", "sgd"
                lr=1e-3,
                schedule="cosine",  # or "wsd": constant, to zero in the last fifth; "step": a fifth in the second half
                warmup_steps=100,
                weight_decay=0.05,
                b2=0.999,  # of the running second moment, and of lion's momentum; sgd has none
                clip_norm=1.0,
                # (regex of parameter paths, factor of the rate); the first that matches counts, all must be covered
                lr_rules=((".", 1.0),),
                decay_rules=(("(kernel|basis)$", 1.0), (".", 0.0)),
                frozen="",  # regex, short for a first of lr_rules with factor 0, such as "^encoder/" for a probe
                layer_decay=1.0,  # factor of the rate from each block of the encoder to the one below
                lora_rank=0,  # of the factors that alone are trained of the encoder (LoRA); 0: train its parameters
                lora_kernels="blocks/.*kernel$",  # regex of the encoder's kernels that have such factors
            ),
            mesh=dict(data=-1, fsdp=1),  # devices; data -1: all that are left
            checkpoint=dict(every=500, keep=2),
        )
    )


# Names of the objectives, without importing jax.
OBJECTIVES = tuple(module.name for module in pkgutil.iter_modules([str(Path(__file__).parent / "objectives")]))
BACKBONES = tuple(module.name for module in pkgutil.iter_modules([str(Path(__file__).parent / "models")]))


USUAL = {"losses": "dict(NAME=1.0)", "model": 'dict(name="vit")'}
SOURCE = ("name", "path", "overlays", "where", "weights", "balance", "balance_bins", "window")  # fields of data.sources


def sources_of(data: ml_collections.ConfigDict) -> list[dict]:
    """The fields SOURCE of each of data.sources, or of the one that the other fields of `data` describe. data.overlays
    are of the dataset at data.path alone."""
    shared = {name: data[name] for name in SOURCE if name != "name"} | {"name": "data"}
    settings = []
    for n, own in enumerate(map(dict, data.sources)):
        elsewhere = place(own.get("path", data.path)) != place(data.path)
        settings.append(shared | ({"overlays": ()} if elsewhere else {}) | {"name": f"source {n}"} | own)
    return settings or [shared]


def modules(config: ml_collections.ConfigDict) -> dict[str, ModuleType]:
    """{group: module} of the backbone and of the objectives of a config, whose settings the group holds. A module may
    have SETTINGS, {name: default}, and CHECKS, {name: (test(settings), what it must be)}."""
    named = {"model": f"models.{config.model.name}"} if config.model.name in BACKBONES else {}
    named |= {name: f"objectives.{name}" for name in config.losses if name in OBJECTIVES}
    return {group: importlib.import_module(f"jaxz.{module}") for group, module in named.items()}


def fill(config: ml_collections.ConfigDict) -> ml_collections.ConfigDict:
    """The config with the default settings of its backbone and objectives where it says nothing else, and without those
    of other objectives."""
    with config.unlocked():
        for name in OBJECTIVES:
            if name in config and name not in config.losses:
                del config[name]
        for group, module in modules(config).items():
            own = config.get(group, {})
            config[group] = {**getattr(module, "SETTINGS", {}), **own}
    return config


def fields(group: ml_collections.ConfigDict | dict, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """(name, value) of every field, such as ("train.steps", 1000)."""
    for name, value in group.items():
        if isinstance(value, ml_collections.ConfigDict | dict):
            yield from fields(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def listing(argv: list[str]) -> Iterator[str]:
    """The fields of the config that is among the arguments, as they are given on a command line; none without one."""
    if own := [argument for argument in argv if argument.startswith("--config")]:
        for name, value in fields(parse(own)):
            yield f"  --config.{name}={value!r}"


def parse(argv: list[str]) -> ml_collections.ConfigDict:
    """The config of `--config=FILE[:ARGUMENT] --config.group.field=value ...`, locked.

    Raises InputError for a file that cannot be used, an unknown field (with a suggestion) or a value of another type.
    """
    files = [a.split("=", 1)[1] for a in argv if a.startswith("--config=")]
    overrides = [a for a in argv if a.startswith("--config.")]
    unknown = next((a for a in argv if not a.startswith(("--config=", "--config."))), None)
    if unknown is not None:
        known = [
            "--config=FILE",
            "--config.FIELD=VALUE",
            "--workdir=RUN",
            "--dry_run",
            "--allow_config_change",
            "--cluster",
        ]
        raise InputError(f"argument {unknown!r} is not known.{suggest(unknown, known)}")
    if not files:
        raise InputError("--config: is missing; name a config file with --config=configs/NAME.py")
    path, *arguments = files[-1].split(":")
    config = load(path, arguments)
    for override in overrides:
        check_known(config, override.removeprefix("--config.").split("=", 1)[0], path)
    values = flags.FlagValues()
    command = [sys.argv[0] or "jaxz", *overrides]
    config_flags.DEFINE_config_dict("config", config, flag_values=values, sys_argv=command)
    try:
        values(command)
        return values.config
    except (flags.Error, AttributeError, KeyError, TypeError, ValueError, SyntaxError) as error:
        raise InputError(
            f"--config: {' '.join(str(error).split())}; --help after --config=FILE lists the fields"
        ) from None


def load(path: str, arguments: list[str]) -> ml_collections.ConfigDict:
    """What `get_config(*arguments)` of a config file gives. Raises InputError, naming the file, for no whole config."""
    if not Path(path).is_file():
        nearby = [str(p) for p in Path(path).parent.glob("*.py")] if Path(path).parent.is_dir() else []
        raise InputError(f"--config: {path!r} is not a file.{suggest(path, nearby)}")
    try:
        content = runpy.run_path(path)
        if "get_config" not in content:
            raise InputError(f"--config: {path!r} defines no get_config(); write one, as the files in configs/ do")
        config = content["get_config"](*arguments)
    except InputError:
        raise
    except Exception as error:  # the file is somebody's program: anything can come out of it
        lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == path]
        place = f"{path}, line {lines[-1]}" if lines else path
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise InputError(f"--config: {place}: {reason}; mend the file") from None
    if not isinstance(config, ml_collections.ConfigDict):
        raise InputError(f"--config: get_config() of {path!r} gives no ConfigDict; begin with jaxz.config.default()")
    for group in (*OBJECTIVES, "model", "losses"):
        if isinstance(config.get(group), dict):
            config[group] = ml_collections.ConfigDict(config[group])
    if isinstance(config.get("losses"), ml_collections.ConfigDict) and "name" in config.get("model", {}):
        fill(config)
    check_whole(config, path)
    return config


def check_whole(config: ml_collections.ConfigDict, path: str) -> None:
    """Raises InputError where a config file leaves out a field, changes its type or adds one."""
    usual = default()
    for name in ("losses", "model"):
        if not isinstance(config.get(name), ml_collections.ConfigDict):
            raise InputError(f"--config: {path!r} has no {name}; set config.{name} = {USUAL[name]}")
    usual.losses, usual.model.name = config.losses, config.model.get("name", "")
    expected = {name: value for name, value in fields(fill(usual)) if not name.startswith("losses.")}
    found = {name: value for name, value in fields(config) if not name.startswith("losses.")}
    for name, value in found.items():
        if name not in expected:
            raise InputError(f"--config: {path!r} sets {name}, which is no field.{suggest(name, expected)}")
        if not same_kind(value, expected[name]):
            kind = type(expected[name]).__name__
            raise InputError(f"--config: {path!r} sets {name} to {value!r}, which is no {kind}")
    if missing := sorted(expected.keys() - found.keys()):
        others = f" and {len(missing) - 1} other field(s)" if missing[1:] else ""
        raise InputError(f"--config: {path!r} leaves out {missing[0]}{others}; begin with jaxz.config.default()")


def same_kind(value: object, like: object) -> bool:
    """Whether a value can stand where `like` does: an int for a float, a list for a tuple, but no bool for a number."""
    kinds: tuple[type, ...] = {float: (float, int), tuple: (tuple, list)}.get(type(like), (type(like),))
    return isinstance(value, kinds) and isinstance(value, bool) == isinstance(like, bool)


def check_known(config: ml_collections.ConfigDict, field: str, path: str) -> None:
    """Raises InputError for an override of a field that the config does not have."""
    group = config
    for name in field.split("."):
        if not isinstance(group, ml_collections.ConfigDict) or name not in group:
            break
        group = group[name]
    else:
        return
    if field.startswith("losses.") and name in OBJECTIVES:
        raise InputError(f"--config: {field} is not in {path!r}, which names the run's objectives; add it there")
    if field.startswith("losses."):
        raise InputError(f"--config: losses: {name!r} is no objective of jaxz/objectives.{suggest(name, OBJECTIVES)}")
    hint = suggest(name, group) if isinstance(group, ml_collections.ConfigDict) else ""
    raise InputError(f"--config: {field} is no field of {path!r}.{hint}")


def complete(config: dict, source: str = "the config") -> dict:
    """A resolved config as it was once written, with the defaults of the fields that have come since, and under their
    present names those that were called otherwise. Raises InputError, naming the source, where no training wrote it."""
    data, losses, model = (config.get(name) for name in ("data", "losses", "model"))
    if not (isinstance(data, dict) and isinstance(losses, dict) and isinstance(model, dict) and "name" in model):
        raise InputError(f"{source}: was not written by a training; name the directory of another run")
    config = renamed(config)
    wanted = default()
    wanted.losses, wanted.model.name = config["losses"], config["model"]["name"]
    whole = {name: value for name, value in config.items() if name not in OBJECTIVES or name in config["losses"]}
    for name, value in resolved(fill(wanted)).items():
        if isinstance(value, dict) and isinstance(config.get(name), dict) and name != "losses":
            value = {**value, **config[name]}
        elif name in config:
            value = config[name]
        whole[name] = value
    return whole


def renamed(config: dict) -> dict:
    """data.augment (bool) and data.shift became augment.orientation and augment.shift."""
    if "augment" not in config["data"]:
        return config
    data = dict(config["data"])
    augmented, shift = data.pop("augment"), data.pop("shift", 0)
    own = dict(orientation="square" if augmented else "none", shift=shift if augmented else 0)
    return {**config, "data": data, "augment": own}


def difference(old: object, new: object, field: str = "") -> list[str]:
    """Lines "field: old -> new" for two resolved configs, or parts of them."""
    if isinstance(old, dict) and isinstance(new, dict):
        prefix = f"{field}." if field else ""
        names = sorted({*old, *new})
        return [line for name in names for line in difference(old.get(name), new.get(name), f"{prefix}{name}")]
    return [] if old == new else [f"{field or 'config'}: {old!r} -> {new!r}"]


def resolved(config: ml_collections.ConfigDict) -> dict:
    """The config as plain JSON."""
    return json.loads(json.dumps(config.to_dict()))
