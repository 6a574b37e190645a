"""The arms of shift-v1: a table, each row a run for every seed."""

from collections.abc import Iterable
from typing import NamedTuple

VIT = ("model.width=128", "model.depth=4", "model.heads=4", "model.patch=8", "model.stem=apertures")
FRACTIONS = (0.01, 0.03, 0.1, 0.3)  # of the labels, beside all of them
VOLUMES = (0, 0.01, 0.1)  # of the unlabelled images; all is the arm itself
RATES = (0.5, 1.0, 2.0)  # times the learning rate, of which the first seed chooses
CORRECTIONS = ("pit", "label_shift", "cells", "lin_z_phot")  # of what `matched` predicts, by jaxz.correct
WEIGHTED = ("matched", "mae", "semi")  # arms that are also trained by weights
IMBALANCE = {
    "lds": "redshift.balance=lds",
    "class_balanced": "redshift.balance=class_balanced",
    "focal": "redshift.focal=2.0",
    "logit_adjust": "redshift.logit_adjust=1.0",
    "balanced_draws": "data.balance=z",
}
NEAR_BALANCED = (  # the last layer anew, as configs/redshift_balanced.py
    "train.steps=700", "optim.lr=1e-4", "optim.frozen=^(?!redshift/out/)", "data.where=near_balanced == 1",
)  # fmt: skip
SPEC = "z_kind == 'spec'"
LABELLED = (f"data.where={SPEC}", "data.deredden=True")  # of configs made for any dataset
TEACHER = ("init.item=ema",)  # what is used ...
TAUGHT = ("dino", "byol")  # ... of those that have one


class Arm(NamedTuple):
    """name: of the table and of the run directories. config: of configs/, with its argument; "" for jaxz.photometry.
    fields: over those of the config, or the options of jaxz.photometry. start: the arm that it begins from; once
    the rate of that is chosen, its `run`. correct: the --method of jaxz.correct by which it is made of that arm, in
    place of a training. labels: "survey", as it selects them, or "oracle". fraction: of these labels. overlay:
    "weights" where weight and coverage (jaxz.shift) are there, "templates" where the redshifts are that the arm
    `templates` gives to unlabelled objects, "catalog" where those are that a many-band catalogue has (z_phot),
    "near_balanced" (data_tools.relabel). scored: whether it predicts redshifts, by which head. weights: the published
    ones that it begins from; without the file it is not run. rate: times the learning rate of the config, chosen where
    several are tried."""

    name: str
    config: str = ""
    fields: tuple[str, ...] = ()
    start: str = ""
    correct: str = ""
    labels: str = "survey"
    fraction: float = 1.0
    overlay: str = ""
    scored: bool = True
    head: str = "redshift"
    weights: str = ""
    rate: float = 1.0

    @property
    def run(self) -> str:
        """What its run directories are named by: runs of another rate, or that begin from one, are others."""
        rate = "" if self.rate == 1 else f"_lr{self.rate:g}"
        return self.name + rate + (f"_of_{self.start}" if "_lr" in self.start else "")


PHOTOMETRY = Arm("photometry", "baseline_photometry", ("train.members=1", "train.log_every=10"))
TABLES = tuple(Arm(name, fields=("--model", name)) for name in ("knn", "gbt"))  # on catalogue fluxes
TEMPLATES_AS_THEY_ARE = Arm("template", fields=("--model", "template"))
TEMPLATES = Arm("templates", fields=("--model", "template", "--repair"), overlay="templates")
HALVES = "data.stages=({'ratios':(1,1)},)"  # of each batch, of two sources


class Size(NamedTuple):
    """A simulated sky (`ideal`, or `survey` with stars, nuclei, blends and uneven depth: docs/simulation.md) of so many
    objects of so many pixels a side, the arms that are compared on it, and how many times its config's learning rate an
    arm that is trained and scored may have."""

    sky: str
    samples: int
    pixels: int
    arms: tuple[Arm, ...]
    rates: tuple[float, ...] = (1.0,)


def sources(weights: str = "", where: str = "") -> str:
    """Of images that pass `where`, and labelled ones, drawn in proportion to the column `weights`."""
    seen = {"name": "all"} | ({"where": where} if where else {})
    return f"data.sources={(seen, {'name': 'labelled', 'where': SPEC} | ({'weights': weights} if weights else {}))!r}"


def weighted(arm: Arm) -> Arm:
    """The arm with its labelled objects drawn by the domain classifier's weights."""
    if sources() in arm.fields:
        fields = tuple(sources("weight") if field == sources() else field for field in arm.fields)
    else:
        fields = (*arm.fields, "data.weights=weight")
    return arm._replace(name=f"{arm.name}+weights", fields=fields, overlay="weights")


def varied(arm: Arm, method: str, *fields: str) -> Arm:
    """The arm with a method that a few fields switch on."""
    return arm._replace(name=f"{arm.name}+{method}", fields=arm.fields + fields)


def corrected(arm: Arm, *methods: str) -> tuple[Arm, ...]:
    """What the arm predicts, corrected after training by held-out labels."""
    return tuple(Arm(f"{arm.name}+{method}", start=arm.name, correct=method) for method in methods)


def at_fraction(arm: Arm, fraction: float, suffix: str) -> Arm:
    return arm._replace(name=f"{arm.name}{suffix}", fraction=fraction)


def image_arms(steps: int) -> dict[str, Arm]:
    """The ViT's arms of equal compute, that of 2 x `steps` steps of direct training, by name. On cutouts of 32 x 32 a
    step of masked autoencoding costs 0.645 of a direct one in matrix multiplications, a semi-supervised one 2.644."""
    length = lambda n: (f"train.steps={n}",)
    mae = (
        *VIT,
        "data.deredden=True",
        "train.batch_size=128",
        "mae.mask_ratio=0.5",
        "mae.decoder_width=64",
        "mae.decoder_heads=4",
        "augment.shift=2",
        "optim.lr=2e-3",
    )
    arms = (
        Arm("matched", "demo_direct", length(2 * steps)),
        Arm("oracle", "demo_direct", length(2 * steps), labels="oracle"),
        Arm("pretrain_mae", "pretrain_mae", mae + length(round(1.5 * steps)), scored=False),
        Arm("mae", "demo_direct", length(steps), start="pretrain_mae"),
        Arm("pretrain_fluxes", "pretrain_fluxes", length(steps), scored=False),
        Arm("fluxes", "demo_direct", length(steps), start="pretrain_fluxes"),
        Arm("semi", "semi_supervised", (*length(round(0.75 * steps)), sources(), HALVES)),
        Arm("tiered", "redshift_tiered", length(2 * steps), overlay="templates"),
        Arm("tiered_catalog", "redshift_tiered", length(2 * steps), overlay="catalog"),
        Arm("fluxes_tiered", "redshift_tiered", length(steps), start="pretrain_fluxes", overlay="templates"),
    )
    return {arm.name: arm for arm in arms}


def small() -> Size:
    """An arm of every kind that 32 x 32 pixels allow, for 2 CPU cores."""
    own = image_arms(600)
    plain = (*TABLES, PHOTOMETRY, TEMPLATES, *networks(1600, 4e-4, "pasquet"), *own.values())
    first = pretrained(600, "dino", "simclr")
    weights = tuple(weighted(arm) for arm in (PHOTOMETRY, *(own[name] for name in WEIGHTED)))
    after = corrected(own["matched"], *CORRECTIONS)
    volumes = (*at_volumes(own, ("fluxes",), (0, 0.1)), *at_volumes(own, ("tiered",), (0.01, 0.1)))
    arms = (*plain, *first.values(), *weights, *after, *methods(own, 600, "matched"), *volumes)
    return Size("ideal", 24_000, 32, arms)


def full() -> Size:
    """All arms, methods, label fractions and unlabelled volumes, for a GPU."""
    steps = 10_000
    own, mlp = image_arms(steps), PHOTOMETRY
    length = (f"train.steps={2 * steps}",)
    cnns = networks(2 * steps, 1e-4, "pasquet", "treyer", "multimodal")
    first = pretrained(steps, "dino", "simclr", "byol", "vicreg")
    published = tuple(
        Arm(f"{name}_{how}", f"published_{how}:{name}", (*LABELLED, *length), weights=f"{name}_pretrain.pth")
        for name in ("dinov2_vitb14", "clip_vitb16")
        for how in ("probe", "finetune")
    )
    clap = Arm("clap", "baseline_clap", (*LABELLED, *length), head="clap")
    plain = (*TABLES, TEMPLATES_AS_THEY_ARE, TEMPLATES, mlp, *cnns, *own.values(), *first.values(), *published)
    weights = tuple(weighted(arm) for arm in (mlp, *cnns, *(own[name] for name in WEIGHTED)))
    fractions = tuple(
        at_fraction(arm, fraction, f"@{100 * fraction:g}%")
        for fraction in FRACTIONS
        for arm in (
            TABLES[1],
            mlp,
            TEMPLATES,
            *(own[n] for n in ("matched", "oracle", "mae", "fluxes", "semi", "tiered")),
        )
    )
    volumes = (
        *at_volumes(own | first, ("mae", "fluxes", "dino", "semi"), VOLUMES),
        *at_volumes(own, ("tiered",), VOLUMES[1:]),  # without templates' redshifts it is `matched`
    )
    after = (*corrected(own["matched"], *CORRECTIONS), clap, *corrected(clap, "clap"))
    others = methods(own, steps, "matched", "fluxes", "tiered")
    return Size("survey", 200_000, 64, (*plain, *weights, *after, *others, *fractions, *volumes), RATES)


def networks(steps: int, rate: float, *names: str) -> tuple[Arm, ...]:
    """Published CNNs, at a learning rate, of pixels in units of the sky's noise: they were made for bright galaxies.
    A step of one costs many of the ViT's."""
    fields = (f"train.steps={steps}", f"optim.lr={rate:g}", "data.softening=1.0")
    return tuple(Arm(name, f"baseline_{name}", fields) for name in names)


def pretrained(steps: int, *names: str) -> dict[str, Arm]:
    """Self-supervised pretraining, and direct training after it, so many steps each, by name."""
    own = {}
    for name in names:
        first = Arm(f"pretrain_{name}", f"pretrain_{name}", (*VIT, f"train.steps={steps}"), scored=False)
        item = TEACHER if name in TAUGHT else ()
        own[first.name] = first
        own[name] = Arm(name, "demo_direct", (f"train.steps={steps}", *item), start=first.name)
    return own


def methods(own: dict[str, Arm], steps: int, *bases: str) -> tuple[Arm, ...]:
    """Other heads, and methods against imbalance (on each of `bases`) and shift, at the cost of 2 x `steps` steps of
    direct training."""
    length = (f"train.steps={2 * steps}",)
    half = (f"train.steps={steps}",)  # a step of two parts, or views, costs twice
    regression = Arm("regression", "demo_direct:redshift_regression", length, head="redshift_regression")
    last_layer = own["matched"]._replace(start="matched", fields=NEAR_BALANCED, overlay="near_balanced")
    return (
        Arm("mixture", "demo_direct:redshift_mixture", length, head="redshift_mixture"),
        regression,
        varied(regression, "balanced_mse", "redshift_regression.loss=balanced_mse"),
        *(varied(own[base], *method) for base in bases for method in IMBALANCE.items()),
        varied(last_layer, "near_balanced"),
        *(Arm(f"matched+{term}", f"redshift_adapted:{term}", half) for term in ("coral", "mmd", "dann")),
        Arm("self_training", "self_training", half, overlay="weights", head="self_training"),
        Arm("two_branch", "redshift_two_branch", (*VIT, *LABELLED, *half), head="two_branch"),
        Arm("lin", "redshift_lin", (*VIT, *LABELLED, *length), head="lin"),
    )


def at_volumes(own: dict[str, Arm], names: Iterable[str], volumes: Iterable[float]) -> tuple[Arm, ...]:
    """Arms that see so much of the unlabelled images, and the pretraining that they begin from."""
    return tuple(arm for name in names for volume in volumes for arm in at_volume(own, name, volume))


def at_volume(own: dict[str, Arm], name: str, volume: float) -> tuple[Arm, ...]:
    """An arm that sees a share of the unlabelled images, beside the labelled ones, in as many steps; before it the
    pretraining that it begins from."""
    suffix, seen = f"_volume_{100 * volume:g}%", f"draw < {volume} or {SPEC}"
    arm = own[name]._replace(name=name + suffix)
    if arm.start:
        first = own[arm.start]._replace(name=arm.start + suffix)
        return first._replace(fields=(*first.fields, f"data.where={seen}")), arm._replace(start=first.name)
    if sources() in arm.fields:
        return (arm._replace(fields=tuple(sources(where=seen) if f == sources() else f for f in arm.fields)),)
    tiers = {"name": "spec", "where": SPEC}, {"name": "phot", "where": f"z_kind == 'phot' and draw < {volume}"}
    return (arm._replace(fields=(*arm.fields, f"data.sources={tiers!r}")),)


SIZES = {"small": small, "full": full}
