"""Every field of a run's configuration, with its default and what it means; and the check across fields."""

import importlib
import json
import math
import pkgutil
import runpy
import sys
import traceback
from pathlib import Path

import ml_collections
from absl import flags
from ml_collections import config_flags

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
            losses=dict(redshift=1.0),  # objectives by name, with their weights; each has a group of settings
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
                name="adamw",  # or "lamb", "muon"
                lr=1e-3,
                schedule="cosine",  # or "wsd": constant, to zero in the last fifth; "step": a fifth in the second half
                warmup_steps=100,
                weight_decay=0.05,
                b2=0.999,
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


def is_range(values) -> bool:
    """Whether it is empty, or two finite numbers in order."""
    numbers = all(isinstance(v, int | float) and math.isfinite(v) for v in values)
    return not values or (numbers and len(values) == 2 and values[0] <= values[1])


# Names of the objectives, without importing jax.
OBJECTIVES = tuple(module.name for module in pkgutil.iter_modules([str(Path(__file__).parent / "objectives")]))
BACKBONES = tuple(module.name for module in pkgutil.iter_modules([str(Path(__file__).parent / "models")]))


def are_rules(rules) -> bool:
    """Whether they are one or more pairs (regex, factor)."""
    number = lambda v: isinstance(v, int | float) and not isinstance(v, bool) and math.isfinite(v) and v >= 0
    pair = lambda rule: isinstance(rule, tuple | list) and len(rule) == 2
    return len(rules) > 0 and all(pair(rule) and isinstance(rule[0], str) and number(rule[1]) for rule in rules)


# (field, test, what it must be)
CHECKS = (
    ("seed", lambda v: -(2**63) <= v < 2**63, "of 64 bits"),
    ("data.check", lambda v: v in ("size", "crc"), "'size' or 'crc'"),
    ("data.cache_gib", lambda v: v >= 0, "at least 0"),
    ("data.on_error", lambda v: v in ("raise", "replace"), "'raise' or 'replace'"),
    ("data.coalesce_kib", lambda v: 0 <= v <= 2**20, "in 0..1048576"),
    ("data.balance_bins", lambda v: 0 <= v <= 10_000, "in 0..10000"),
    ("data.window", lambda v: v >= 0, "at least 0"),
    ("data.threads", lambda v: v >= 1, "at least 1"),
    ("data.softening", lambda v: v > 0, "above 0"),
    ("data.stretch", lambda v: v in ("asinh", "log", "sqrt"), "'asinh', 'log' or 'sqrt'"),
    ("augment.orientation", lambda v: v in ("square", "any", "none"), "'square', 'any' or 'none'"),
    ("augment.shift", lambda v: v >= 0, "at least 0"),
    ("augment.noise", lambda v: is_range(v) and (not v or v[0] >= 1), "() or (low, high) of at least 1"),
    ("augment.psf_fwhm", lambda v: is_range(v) and (not v or v[0] > 0), "() or (low, high) in arcsec"),
    ("augment.ebv", lambda v: 0 <= v <= 10, "in 0..10"),
    ("augment.band_dropout", lambda v: 0 <= v < 1, "in [0, 1)"),
    ("augment.hole", lambda v: v >= 0, "at least 0"),
    ("init.item", lambda v: v in ("params", "ema"), "'params' or 'ema'"),
    ("train.steps", lambda v: v >= 1, "at least 1"),
    ("train.batch_size", lambda v: 1 <= v <= 1_000_000, "from 1 to 1000000"),
    ("train.log_every", lambda v: v >= 1, "at least 1"),
    ("train.accumulate", lambda v: v >= 1, "at least 1"),
    ("train.members", lambda v: 1 <= v <= 1000, "from 1 to 1000"),
    ("train.profile", lambda v: is_range(v) and all(type(n) is int and n >= 1 for n in v), "() or (first, last) step"),
    ("train.ema_decay", lambda v: 0 <= v < 1, "in [0, 1)"),
    ("train.ema_final", lambda v: 0 <= v <= 1, "in [0, 1]"),
    ("optim.name", lambda v: v in ("adamw", "lamb", "muon"), "'adamw', 'lamb' or 'muon'"),
    ("optim.lr", lambda v: v > 0, "above 0"),
    ("optim.schedule", lambda v: v in ("cosine", "wsd", "step"), "'cosine', 'wsd' or 'step'"),
    ("optim.lr_rules", are_rules, "pairs (regex, factor), a factor at least 0"),
    ("optim.decay_rules", are_rules, "pairs (regex, factor), a factor at least 0"),
    ("optim.layer_decay", lambda v: 0 < v <= 1, "above 0, at most 1"),
    ("optim.lora_rank", lambda v: v >= 0, "at least 0"),
    ("optim.warmup_steps", lambda v: v >= 0, "at least 0"),
    ("optim.b2", lambda v: 0 < v < 1, "between 0 and 1"),
    ("optim.weight_decay", lambda v: v >= 0, "at least 0"),
    ("optim.clip_norm", lambda v: v > 0, "above 0"),
    ("mesh.data", lambda v: v == -1 or v >= 1, "-1 or at least 1"),
    ("mesh.fsdp", lambda v: v >= 1, "at least 1"),
    ("checkpoint.every", lambda v: v >= 1, "at least 1"),
    ("checkpoint.keep", lambda v: v >= 1, "at least 1"),
)


USUAL = {"losses": "dict(NAME=1.0)", "model": 'dict(name="vit")'}
SOURCE = ("name", "path", "overlays", "where", "weights", "balance", "balance_bins", "window")  # fields of data.sources


def source_problems(config: ml_collections.ConfigDict):
    """What is wrong with data.sources and data.stages."""
    kinds = {"name": str, **{name: type(config.data[name]) for name in SOURCE[1:]}}
    checks = {name.removeprefix("data."): (test, rule) for name, test, rule in CHECKS if name.startswith("data.")}
    for n, source in enumerate(config.data.sources):
        if not isinstance(source, dict):
            yield f"data.sources[{n}]: {source!r} must be a dict"
            continue
        for name, value in source.items():
            if name not in SOURCE:
                yield f"data.sources[{n}].{name} is no field of a source.{suggest(name, SOURCE)}"
            elif type(value) is not kinds[name]:
                yield f"data.sources[{n}].{name}: {value!r} must be {kinds[name].__name__}"
            elif name in checks and not checks[name][0](value):
                yield f"data.sources[{n}].{name}: {value!r} must be {checks[name][1]}"
    for n, stage in enumerate(config.data.stages):
        number = lambda v: isinstance(v, int | float) and not isinstance(v, bool)
        ratios = stage.get("ratios") if isinstance(stage, dict) else None
        if not isinstance(ratios, tuple | list) or not all(map(number, ratios)) or stage.keys() - {"ratios", "steps"}:
            yield f"data.stages[{n}]: {stage!r} must be dict(ratios=(1, 3), steps=1000), without steps the last"
        elif not isinstance(stage.get("steps", 1), int):
            yield f"data.stages[{n}].steps: {stage['steps']!r} must be an integer"


def imported_problems(config: ml_collections.ConfigDict):
    """What is wrong with the rest of a config whose model has weights of others."""
    name = config.model.name
    if not config.init.path:
        yield f"init.path: '' is not set, but the model {name!r} begins with trained weights alone; name their file"
    if config.data.stretch != "asinh":
        yield f"data.stretch: {config.data.stretch!r}, but the model {name!r} takes asinh; set it to 'asinh'"


def validate(config: ml_collections.ConfigDict) -> None:
    """Raises InputError naming every field that is wrong, before any device starts."""
    values = dict(fields(config))
    problems = [f"{name}: {value!r} must be finite" for name, value in values.items() if not is_finite(value)]
    problems += [
        f"{name}: {values[name]!r} must be {rule}"
        for name, test, rule in CHECKS
        if is_finite(values[name]) and not test(values[name])
    ]
    problems += source_problems(config)
    for name, weight in config.losses.items():
        if name not in OBJECTIVES:
            problems.append(f"losses: {name!r} is no objective of jaxz/objectives.{suggest(name, OBJECTIVES)}")
        if not isinstance(weight, int | float) or weight < 0:
            problems.append(f"losses.{name}: {weight!r} must be a weight, at least 0")
    if not config.data.path:
        problems.append("data.path: '' is not set; name a dataset with --config.data.path=DATASET")
    if not config.losses:
        problems.append("losses: is empty; name at least one objective")
    for name in sorted({*config.losses} & {*OBJECTIVES} - {*config}):
        problems.append(f"losses: {name!r} has settings that the config was made without; name it in a config file")
    if problems and any(name not in config for name in modules(config)):
        raise InputError("; ".join(problems))  # the rest reads the settings
    for group, module in modules(config).items():
        if lacking := sorted(getattr(module, "SETTINGS", {}).keys() - config[group].keys()):
            problems.append(
                f"model.name: {config.model.name!r} has the settings {lacking}, which the config was made without; "
                "name it in a config file"
            )
            continue
        for name, (test, rule) in getattr(module, "CHECKS", {}).items():
            field = f"{group}.{name}"
            if all(map(is_finite, config[group].values())) and not test(config[group]):
                problems.append(f"{field}: {config[group][name]!r} must be {rule}")
    if config.model.get("stem") == "apertures" and config.data.stretch != "asinh":
        problems.append(f"data.stretch: {config.data.stretch!r} must be 'asinh' for model.stem='apertures'")
    if config.train.batch_size % max(1, config.train.accumulate):
        problems.append(
            f"train.accumulate: {config.train.accumulate} does not divide train.batch_size {config.train.batch_size}; "
            "choose a divisor"
        )
    if config.seed + config.train.members > 2**63:
        problems.append(f"seed: {config.seed} and train.members {config.train.members} pass 64 bits; lower the seed")
    if config.train.ema_decay == 0:
        problems += [
            f"train.ema_decay: 0.0, but {name} needs an averaged teacher; set it to 0.99 or more"
            for name, module in modules(config).items()
            if getattr(getattr(module, "Objective", None), "teacher", False)
        ]
    if config.augment.orientation != "none":
        problems += [
            f"augment.orientation: {config.augment.orientation!r}, but {name} learns an image's turn; set it to 'none'"
            for name, module in modules(config).items()
            if getattr(getattr(module, "Objective", None), "oriented", False)
        ]
    still = {"orientation": "none", "shift": 0, "subpixel": False, "noise": (), "psf_fwhm": (), "ebv": 0.0}
    still |= {"band_dropout": 0.0, "hole": 0}
    if all(config.augment[name] == value for name, value in still.items()):
        problems += [
            f"augment: changes nothing, but {name} compares two views of an object; set augment.orientation='square'"
            for name, module in modules(config).items()
            if getattr(getattr(module, "Objective", None), "views", 1) > 1
        ]
    if not getattr(getattr(modules(config).get("model"), "Backbone", None), "parts", True):
        problems += [
            f"losses: {name} shows the encoder parts of images, but model.name {config.model.name!r} sees whole ones; "
            "use 'vit'"
            for name, module in modules(config).items()
            if getattr(getattr(module, "Objective", None), "parts", False)
        ]
    if config.augment.ebv and config.data.deredden:
        problems.append(
            f"augment.ebv: {config.augment.ebv} reddens images that data.deredden corrects; set it to 0, or "
            "data.deredden=False"
        )
    decay, final = config.train.ema_decay, config.train.ema_final
    if final and not 0 < decay <= final:
        problems.append(
            f"train.ema_final: {final} is what train.ema_decay, {decay}, rises to; set that between 0 and it"
        )
    if config.train.profile and config.train.profile[1] > config.train.steps:
        problems.append(
            f"train.profile: {tuple(config.train.profile)} ends after train.steps {config.train.steps}; end it sooner"
        )
    if getattr(modules(config).get("model"), "IMPORTED", False):
        problems += imported_problems(config)
    if config.init.item == "ema" and not config.init.path:
        problems.append("init.item: 'ema' needs init.path, the run to start from")
    if problems:
        raise InputError("; ".join(problems))


def modules(config) -> dict:
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


def fields(group, prefix: str = ""):
    """(name, value) of every field, such as ("train.steps", 1000)."""
    for name, value in group.items():
        if isinstance(value, ml_collections.ConfigDict | dict):
            yield from fields(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def is_finite(value) -> bool:
    return not isinstance(value, float) or math.isfinite(value)


def parse(argv: list[str]) -> ml_collections.ConfigDict:
    """The config of `--config=FILE[:ARGUMENT] --config.group.field=value ...`, locked.

    Raises InputError for a file that cannot be used, an unknown field (with a suggestion) or a value of another type.
    """
    files = [a.split("=", 1)[1] for a in argv if a.startswith("--config=")]
    overrides = [a for a in argv if a.startswith("--config.")]
    unknown = next((a for a in argv if not a.startswith(("--config=", "--config."))), None)
    if unknown is not None:
        known = ["--config=FILE", "--config.FIELD=VALUE", "--workdir=RUN", "--dry_run", "--allow_config_change"]
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
        raise InputError(f"--config: {' '.join(str(error).split())}; see jaxz/config.py for the fields") from None


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
    expected = default()
    for name in ("losses", "model"):
        if not isinstance(config.get(name), ml_collections.ConfigDict):
            raise InputError(f"--config: {path!r} has no {name}; set config.{name} = {USUAL[name]}")
    expected.losses, expected.model.name = config.losses, config.model.get("name", "")
    expected = {name: value for name, value in fields(fill(expected)) if not name.startswith("losses.")}
    found = {name: value for name, value in fields(config) if not name.startswith("losses.")}
    for name, value in found.items():
        if name not in expected:
            raise InputError(f"--config: {path!r} sets {name}, which is no field.{suggest(name, expected)}")
        if name in expected and not same_kind(value, expected[name]):
            kind = type(expected[name]).__name__
            raise InputError(f"--config: {path!r} sets {name} to {value!r}, which is no {kind}; see jaxz/config.py")
    if missing := sorted(expected.keys() - found.keys()):
        others = f" and {len(missing) - 1} other field(s)" if missing[1:] else ""
        raise InputError(f"--config: {path!r} leaves out {missing[0]}{others}; begin with jaxz.config.default()")


def same_kind(value, like) -> bool:
    """Whether a value can stand where `like` does: an int for a float, a list for a tuple, but no bool for a number."""
    kinds = {float: (float, int), tuple: (tuple, list)}.get(type(like), (type(like),))
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


def complete(config: dict) -> dict:
    """A resolved config as it was once written, with the defaults of the fields that have come since, and under their
    present names those that were called otherwise."""
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


def difference(old, new, field: str = "") -> list[str]:
    """Lines "field: old -> new" for two resolved configs, or parts of them."""
    if isinstance(old, dict) and isinstance(new, dict):
        prefix = f"{field}." if field else ""
        names = sorted({*old, *new})
        return [line for name in names for line in difference(old.get(name), new.get(name), f"{prefix}{name}")]
    return [] if old == new else [f"{field or 'config'}: {old!r} -> {new!r}"]


def resolved(config: ml_collections.ConfigDict) -> dict:
    """The config as plain JSON."""
    return json.loads(json.dumps(config.to_dict()))
