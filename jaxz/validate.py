"""What a run's configuration is held to, before any device starts: each field by itself, then together."""

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import ml_collections

from jaxz.checks import is_range
from jaxz.config import OBJECTIVES, SOURCE, fields, modules, same_kind
from jaxz.errors import InputError, suggest
from jaxz.optim import DIRECTIONS


def is_profile(steps: Sequence) -> bool:
    """Whether it is empty, or the first and last of some steps."""
    return is_range(steps) and all(type(step) is int and step >= 1 for step in steps)


def are_rules(rules: Sequence) -> bool:
    """Whether they are one or more pairs (regex, factor)."""
    number = lambda v: isinstance(v, int | float) and not isinstance(v, bool) and math.isfinite(v) and v >= 0
    pair = lambda rule: isinstance(rule, tuple | list) and len(rule) == 2
    return len(rules) > 0 and all(pair(rule) and isinstance(rule[0], str) and number(rule[1]) for rule in rules)


def are_names(names: Sequence) -> bool:
    """Whether all of them are text, of which there may be none."""
    return all(isinstance(name, str) for name in names)


def is_weight(weight: object) -> bool:
    """Whether it is a number, or two and more pairs (step, weight) whose steps rise."""
    number = lambda v: isinstance(v, int | float) and math.isfinite(v) and v >= 0
    if not isinstance(weight, tuple | list):
        return number(weight)
    pair = lambda part: isinstance(part, tuple | list) and len(part) == 2 and type(part[0]) is int and part[0] >= 0
    if len(weight) < 2 or not all(pair(part) and number(part[1]) for part in weight):
        return False
    return all(a[0] < b[0] for a, b in zip(weight, weight[1:], strict=False))


CHECKS: tuple[tuple[str, Callable[[Any], bool], str], ...] = (  # (field, test, what it must be)
    ("seed", lambda v: -(2**63) <= v < 2**63, "of 64 bits"),
    ("data.bands", lambda v: are_names(v) and len(set(v)) == len(v), "names, each once"),
    ("data.overlays", are_names, "names"),
    ("data.layers", are_names, "names"),
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
    ("train.profile", is_profile, "() or (first, last) step"),
    ("train.ema_decay", lambda v: 0 <= v < 1, "in [0, 1)"),
    ("train.ema_final", lambda v: 0 <= v <= 1, "in [0, 1]"),
    ("optim.name", lambda v: v in DIRECTIONS, f"one of {', '.join(DIRECTIONS)}"),
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


def is_finite(value: object) -> bool:
    return not isinstance(value, float) or math.isfinite(value)


def source_problems(config: ml_collections.ConfigDict) -> Iterator[str]:
    """What is wrong with data.sources and data.stages."""
    usual = {"name": "", **{name: config.data[name] for name in SOURCE[1:]}}
    checks = {name.removeprefix("data."): (test, rule) for name, test, rule in CHECKS if name.startswith("data.")}
    for n, source in enumerate(config.data.sources):
        if not isinstance(source, dict):
            yield f"data.sources[{n}]: {source!r} must be a dict"
            continue
        for name, value in source.items():
            if name not in SOURCE:
                yield f"data.sources[{n}].{name} is no field of a source.{suggest(name, SOURCE)}"
            elif not same_kind(value, usual[name]):
                yield f"data.sources[{n}].{name}: {value!r} must be {type(usual[name]).__name__}"
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
    problems = [*value_problems(config), *source_problems(config), *loss_problems(config)]
    if not problems or all(name in config for name in modules(config)):  # the rest reads their settings
        problems += [*setting_problems(config), *training_problems(config), *image_problems(config)]
        problems += model_problems(config)
    if problems:
        raise InputError("; ".join(problems))


def value_problems(config: ml_collections.ConfigDict) -> Iterator[str]:
    """What is wrong with a field by itself."""
    values = dict(fields(config))
    for name, value in values.items():
        if not is_finite(value):
            yield f"{name}: {value!r} must be finite"
    for name, test, rule in CHECKS:
        if is_finite(values[name]) and not test(values[name]):
            yield f"{name}: {values[name]!r} must be {rule}"
    if not config.data.path:
        yield "data.path: '' is not set; name a dataset with --config.data.path=DATASET"


def loss_problems(config: ml_collections.ConfigDict) -> Iterator[str]:
    """What is wrong with the names and weights of the objectives."""
    for name, weight in config.losses.items():
        if name not in OBJECTIVES:
            yield f"losses: {name!r} is no objective of jaxz/objectives.{suggest(name, OBJECTIVES)}"
        if not is_weight(weight):
            rule = "a weight, at least 0, or such weights by rising steps, such as ((0, 1.0), (5000, 0.1))"
            yield f"losses.{name}: {weight!r} must be {rule}"
    if not config.losses:
        yield "losses: is empty; name at least one objective"
    elif not any(config.losses.values()):
        yield f"losses: {config.losses.to_dict()} weighs nothing, so that nothing is learned; give one a weight above 0"
    for name in sorted({*config.losses} & {*OBJECTIVES} - {*config}):
        yield f"losses: {name!r} has settings that the config was made without; name it in a config file"


def setting_problems(config: ml_collections.ConfigDict) -> Iterator[str]:
    """What is wrong with the settings of the backbone and of the objectives."""
    for group, module in modules(config).items():
        if lacking := sorted(getattr(module, "SETTINGS", {}).keys() - config[group].keys()):
            yield (
                f"model.name: {config.model.name!r} has the settings {lacking}, which the config was made without; "
                "name it in a config file"
            )
        elif all(map(is_finite, config[group].values())):
            for name, (test, rule) in getattr(module, "CHECKS", {}).items():
                if not holds(test, config[group]):
                    yield f"{group}.{name}: {config[group][name]!r} must be {rule}"


def holds(test: Callable[[Any], bool], settings: ml_collections.ConfigDict) -> bool:
    """What the test says; False where it cannot compare what a tuple holds, such as text with numbers."""
    try:
        return test(settings)
    except TypeError:
        return False


def training_problems(config: ml_collections.ConfigDict) -> Iterator[str]:
    """What is wrong with fields of training together."""
    train = config.train
    if train.batch_size % max(1, train.accumulate):
        yield (
            f"train.accumulate: {train.accumulate} does not divide train.batch_size {train.batch_size}; "
            "choose a divisor"
        )
    if config.seed + train.members > 2**63:
        yield f"seed: {config.seed} and train.members {train.members} pass 64 bits; lower the seed"
    if train.ema_decay == 0:
        for name in objectives_with(config, "teacher"):
            yield f"train.ema_decay: 0.0, but {name} needs an averaged teacher; set it to 0.99 or more"
    if train.ema_final and not 0 < train.ema_decay <= train.ema_final:
        yield (
            f"train.ema_final: {train.ema_final} is what train.ema_decay, {train.ema_decay}, rises to; set that "
            "between 0 and it"
        )
    if train.profile and is_profile(train.profile) and train.profile[1] > train.steps:
        yield f"train.profile: {tuple(train.profile)} ends after train.steps {train.steps}; end it sooner"
    if config.init.item == "ema" and not config.init.path:
        yield "init.item: 'ema' needs init.path, the run to start from"


def image_problems(config: ml_collections.ConfigDict) -> Iterator[str]:
    """What is wrong with how images are changed, for the objectives that see them."""
    if config.augment.orientation != "none":
        for name in objectives_with(config, "oriented"):
            turned = config.augment.orientation
            yield f"augment.orientation: {turned!r}, but {name} learns an image's turn; set it to 'none'"
    else:
        for name in config.losses:
            if name in config and (views := config[name].get("views", 1)) > 1:
                yield f"{name}.views: {views}, but augment.orientation='none' never shows images turned; set it to 1"
    still = {"orientation": "none", "shift": 0, "subpixel": False, "noise": (), "psf_fwhm": (), "ebv": 0.0}
    still |= {"band_dropout": 0.0, "hole": 0}
    if all(config.augment[name] == value for name, value in still.items()):
        for name, module in modules(config).items():
            if getattr(getattr(module, "Objective", None), "views", 1) > 1:
                yield (
                    f"augment: changes nothing, but {name} compares two views of an object; "
                    "set augment.orientation='square'"
                )
    if config.augment.ebv and config.data.deredden:
        yield (
            f"augment.ebv: {config.augment.ebv} reddens images that data.deredden corrects; set it to 0, or "
            "data.deredden=False"
        )


def model_problems(config: ml_collections.ConfigDict) -> Iterator[str]:
    """What is wrong with a backbone among the other fields."""
    name, module = config.model.name, modules(config).get("model")
    if not getattr(getattr(module, "Backbone", None), "parts", True):
        for objective in objectives_with(config, "parts"):
            yield (
                f"losses: {objective} shows the encoder parts of images, but model.name {name!r} sees whole ones; "
                "use 'vit'"
            )
    if config.model.get("stem") == "apertures" and config.data.stretch != "asinh":
        yield f"data.stretch: {config.data.stretch!r} must be 'asinh' for model.stem='apertures'"
    if getattr(module, "IMPORTED", False):
        if not config.init.path:
            yield f"init.path: '' is not set, but the model {name!r} begins with trained weights alone; name their file"
        if config.data.stretch != "asinh":
            yield f"data.stretch: {config.data.stretch!r}, but the model {name!r} takes asinh; set it to 'asinh'"


def objectives_with(config: ml_collections.ConfigDict, trait: str) -> list[str]:
    """Names of the config's objectives that say `trait` of themselves."""
    return [name for name, module in modules(config).items() if getattr(getattr(module, "Objective", None), trait, 0)]
