"""Every field of a run's configuration, with its default and what it means; and the check across fields."""

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
                softening=3.0,  # asinh scale, in units of the sky sigma per pixel
                deredden=True,  # Galactic reddening, by the columns ebv and a_over_ebv
                augment=True,  # the 8 symmetries of the square, and moves ...
                shift=0,  # ... by up to so many pixels
            ),
            model=dict(name="vit", width=384, depth=12, heads=6, patch=8, dtype="float32"),
            losses=dict(redshift=1.0),  # objectives by name, with their weights
            mae=dict(mask_ratio=0.75, band_mask=0.2, decoder_width=128, decoder_depth=2, decoder_heads=4),
            fluxes=dict(band_mask=0.2),
            redshift=dict(z_min=0.0, z_max=3.0, bins=150, label_sigma=0.01, band_mask=0.0, views=8),
            init=dict(path="", item="params"),  # a run to start from; item "ema" takes its averaged weights
            train=dict(steps=1000, batch_size=128, log_every=10, ema_decay=0.0),  # ema_decay 0: no average is kept
            optim=dict(
                lr=1e-3,
                warmup_steps=100,
                weight_decay=0.05,
                b2=0.999,
                clip_norm=1.0,
                frozen="",  # regex of parameter paths that stay as they are, such as "^encoder/" for a probe
            ),
            mesh=dict(data=-1, fsdp=1),  # devices; data -1: all that are left
            checkpoint=dict(every=500, keep=2),
        )
    )


# Names of the objectives, without importing jax.
OBJECTIVES = tuple(module.name for module in pkgutil.iter_modules([str(Path(__file__).parent / "objectives")]))

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
    ("data.shift", lambda v: v >= 0, "at least 0"),
    (
        "model.dtype",
        lambda v: v in ("float32", "bfloat16"),
        "float32 or bfloat16; float16 needs loss scaling, which there is not",
    ),
    ("model.width", lambda v: v >= 1, "at least 1"),
    ("model.depth", lambda v: v >= 1, "at least 1"),
    ("model.patch", lambda v: v >= 1, "at least 1"),
    ("model.heads", lambda v: v >= 1, "at least 1"),
    ("mae.mask_ratio", lambda v: 0 < v < 1, "between 0 and 1"),
    ("mae.band_mask", lambda v: 0 <= v < 1, "in [0, 1)"),
    ("mae.decoder_width", lambda v: v >= 1, "at least 1"),
    ("mae.decoder_depth", lambda v: v >= 1, "at least 1"),
    ("mae.decoder_heads", lambda v: v >= 1, "at least 1"),
    ("fluxes.band_mask", lambda v: 0 <= v < 1, "in [0, 1)"),
    ("redshift.band_mask", lambda v: 0 <= v < 1, "in [0, 1)"),
    ("redshift.views", lambda v: v in (1, 8), "1 or 8"),
    ("redshift.bins", lambda v: 2 <= v <= 10_000, "from 2 to 10000"),
    ("redshift.label_sigma", lambda v: v > 0, "above 0"),
    ("init.item", lambda v: v in ("params", "ema"), "'params' or 'ema'"),
    ("train.steps", lambda v: v >= 1, "at least 1"),
    ("train.batch_size", lambda v: 1 <= v <= 1_000_000, "from 1 to 1000000"),
    ("train.log_every", lambda v: v >= 1, "at least 1"),
    ("train.ema_decay", lambda v: 0 <= v < 1, "in [0, 1)"),
    ("optim.lr", lambda v: v > 0, "above 0"),
    ("optim.warmup_steps", lambda v: v >= 0, "at least 0"),
    ("optim.b2", lambda v: 0 < v < 1, "between 0 and 1"),
    ("optim.weight_decay", lambda v: v >= 0, "at least 0"),
    ("optim.clip_norm", lambda v: v > 0, "above 0"),
    ("mesh.data", lambda v: v == -1 or v >= 1, "-1 or at least 1"),
    ("mesh.fsdp", lambda v: v >= 1, "at least 1"),
    ("checkpoint.every", lambda v: v >= 1, "at least 1"),
    ("checkpoint.keep", lambda v: v >= 1, "at least 1"),
)


SOURCE = ("name", "path", "where", "weights", "balance", "balance_bins", "window")  # fields of data.sources


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
    if config.model.heads >= 1 and config.model.width % config.model.heads:
        problems.append(
            f"model.heads: {config.model.heads} does not divide model.width {config.model.width}; choose a divisor"
        )
    if config.mae.decoder_heads >= 1 and config.mae.decoder_width % config.mae.decoder_heads:
        problems.append(
            f"mae.decoder_heads: {config.mae.decoder_heads} does not divide mae.decoder_width "
            f"{config.mae.decoder_width}; choose a divisor"
        )
    if config.redshift.z_max <= config.redshift.z_min:
        problems.append(f"redshift.z_max: {config.redshift.z_max} must be above redshift.z_min {config.redshift.z_min}")
    if config.init.item == "ema" and not config.init.path:
        problems.append("init.item: 'ema' needs init.path, the run to start from")
    if problems:
        raise InputError("; ".join(problems))


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
    check_whole(config, path)
    return config


def check_whole(config: ml_collections.ConfigDict, path: str) -> None:
    """Raises InputError where a config file leaves out a field of default(), changes its type or adds one; it may add
    the group of an objective."""
    expected = {name: value for name, value in fields(default()) if not name.startswith("losses.")}
    found = {name: value for name, value in fields(config) if not name.startswith("losses.")}
    groups = {name.split(".")[0] for name in expected}
    for name, value in found.items():
        group = name.split(".")[0]
        if name not in expected and (group in groups or group not in OBJECTIVES):
            raise InputError(f"--config: {path!r} sets {name}, which is no field.{suggest(name, expected)}")
        if name in expected and not same_kind(value, expected[name]):
            kind = type(expected[name]).__name__
            raise InputError(f"--config: {path!r} sets {name} to {value!r}, which is no {kind}; see jaxz/config.py")
    if missing := sorted(expected.keys() - found.keys()):
        others = f" and {len(missing) - 1} other field(s)" if missing[1:] else ""
        raise InputError(f"--config: {path!r} leaves out {missing[0]}{others}; begin with jaxz.config.default()")
    if not isinstance(config.get("losses"), ml_collections.ConfigDict):
        raise InputError(f"--config: {path!r} has no objectives in losses; set config.losses = dict(NAME=1.0)")


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
    """A resolved config as it was once written, with the defaults of the fields that have come since."""
    whole = dict(config)
    for name, value in resolved(default()).items():
        if isinstance(value, dict) and isinstance(config.get(name), dict) and name != "losses":
            value = {**value, **config[name]}
        elif name in config:
            value = config[name]
        whole[name] = value
    return whole


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
