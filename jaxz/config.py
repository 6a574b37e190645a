"""Every field of a run's configuration, with its default and what it means; and the check across fields."""

import json
import sys
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
                path="",  # dataset directory
                where="",  # rows to train on, such as "z_kind == 'spec'"; split == 'train' is always added ...
                transductive=False,  # ... unless this is set, which is recorded and reported
                bands=(),  # names, in the model's order; () takes all of the dataset
                window=0,  # shards shuffled together; 0: all
                threads=2,  # readers
                check="size",  # or "crc": verify every payload's checksum too
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


# (field, test, what it must be)
CHECKS = (
    ("data.check", lambda v: v in ("size", "crc"), "'size' or 'crc'"),
    ("data.window", lambda v: v >= 0, "at least 0"),
    ("data.threads", lambda v: v >= 1, "at least 1"),
    ("data.softening", lambda v: v > 0, "above 0"),
    ("data.shift", lambda v: v >= 0, "at least 0"),
    ("model.dtype", lambda v: v in ("float32", "bfloat16", "float16"), "float32, bfloat16 or float16"),
    ("model.width", lambda v: v >= 1, "at least 1"),
    ("model.depth", lambda v: v >= 1, "at least 1"),
    ("model.patch", lambda v: v >= 1, "at least 1"),
    ("model.heads", lambda v: v >= 1, "at least 1"),
    ("mae.mask_ratio", lambda v: 0 < v < 1, "between 0 and 1"),
    ("mae.band_mask", lambda v: 0 <= v < 1, "in [0, 1)"),
    ("mae.decoder_heads", lambda v: v >= 1, "at least 1"),
    ("fluxes.band_mask", lambda v: 0 <= v < 1, "in [0, 1)"),
    ("redshift.band_mask", lambda v: 0 <= v < 1, "in [0, 1)"),
    ("redshift.views", lambda v: v in (1, 8), "1 or 8"),
    ("redshift.bins", lambda v: v >= 2, "at least 2"),
    ("redshift.label_sigma", lambda v: v > 0, "above 0"),
    ("init.item", lambda v: v in ("params", "ema"), "'params' or 'ema'"),
    ("train.steps", lambda v: v >= 1, "at least 1"),
    ("train.batch_size", lambda v: v >= 1, "at least 1"),
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


def validate(config: ml_collections.ConfigDict) -> None:
    """Raises InputError naming every field that is wrong, before any device starts."""
    problems = [
        f"{field}: {value!r} must be {rule}"
        for field, test, rule in CHECKS
        if not test(
            value := config.get_ref(field).get()
            if "." not in field
            else config[field.split(".")[0]][field.split(".")[1]]
        )
    ]
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


def parse(argv: list[str]) -> ml_collections.ConfigDict:
    """The config of `--config=FILE[:ARGUMENT] --config.group.field=value ...`, locked.

    Raises InputError for an unreadable file, an unknown field (with a suggestion) or a value of another type.
    """
    argv = sorted(argv, key=lambda a: not a.startswith("--config="))  # overrides need the file first
    files = [a.split("=", 1)[1] for a in argv if a.startswith("--config=")]
    unknown = next((a for a in argv if not a.startswith(("--config=", "--config."))), None)
    if unknown is not None:
        known = ["--config=FILE", "--config.FIELD=VALUE", "--workdir=RUN", "--dry_run", "--allow_config_change"]
        raise InputError(f"argument {unknown!r} is not known.{suggest(unknown, known)}")
    if not files:
        raise InputError("--config: is missing; name a config file with --config=configs/NAME.py")
    path = files[-1].split(":")[0]
    if not Path(path).is_file():
        nearby = [str(p) for p in Path(path).parent.glob("*.py")] if Path(path).parent.is_dir() else []
        raise InputError(f"--config: {path!r} is not a file.{suggest(path, nearby)}")
    values = flags.FlagValues()
    arguments = [sys.argv[0] or "jaxz", *argv]
    config_flags.DEFINE_config_file("config", flag_values=values, sys_argv=arguments)
    try:
        values(arguments)
        return values.config
    except (flags.Error, AttributeError, KeyError, TypeError, ValueError, SyntaxError) as error:
        raise InputError(f"--config: {' '.join(str(error).split())}; see jaxz/config.py for the fields") from None


def difference(old: dict, new: dict, prefix: str = "") -> list[str]:
    """Lines "field: old -> new" for two resolved configs."""
    lines = []
    for name in sorted({*old, *new}):
        a, b = old.get(name), new.get(name)
        if isinstance(a, dict) and isinstance(b, dict):
            lines += difference(a, b, f"{prefix}{name}.")
        elif a != b:
            lines.append(f"{prefix}{name}: {a!r} -> {b!r}")
    return lines


def resolved(config: ml_collections.ConfigDict) -> dict:
    """The config as plain JSON."""
    return json.loads(json.dumps(config.to_dict()))
