"""The arms of shift-v1: a table, each row a run for every seed."""

from typing import NamedTuple

VIT = ("model.width=128", "model.depth=4", "model.heads=4", "model.patch=8", "model.stem=apertures")
FRACTIONS = (0.01, 0.03, 0.1, 0.3)  # of the labels, beside all of them
VOLUMES = (0.01, 0.1)  # of the unlabelled images; none is `matched`, all is the arm itself
WEIGHTED = ("matched", "mae", "semi")  # arms that are also trained by weights
SPEC = "z_kind == 'spec'"
LABELLED = (f"data.where={SPEC}", "data.deredden=True")  # of configs made for any dataset
TEACHER = ("init.item=ema",)  # what is used of those that have one


class Arm(NamedTuple):
    """name: of the table and of the run directories. config: of configs/, with its argument; "" for jaxz.photometry.
    fields: over those of the config, or the options of jaxz.photometry. start: the arm that it begins from. labels:
    "survey", as it selects them, or "oracle". fraction: of these labels. overlay: "weights" where weight and coverage
    (jaxz.shift) are there, "templates" where the redshifts are that the arm `templates` gives to unlabelled objects.
    scored: whether it predicts redshifts, by which head. weights: the published ones that it begins from; without the
    file it is not run."""

    name: str
    config: str = ""
    fields: tuple[str, ...] = ()
    start: str = ""
    labels: str = "survey"
    fraction: float = 1.0
    overlay: str = ""
    scored: bool = True
    head: str = "redshift"
    weights: str = ""


PHOTOMETRY = Arm("photometry", "baseline_photometry", ("train.members=1", "train.log_every=10"))
TEMPLATES = Arm("templates", fields=("--model", "template", "--repair"), overlay="templates")
HALVES = "data.stages=({'ratios':(1,1)},)"  # of each batch, of two sources


class Size(NamedTuple):
    """A simulated sky (`ideal`, or `survey` with stars, nuclei, blends and uneven depth: docs/simulation.md) of so many
    objects of so many pixels a side, and the arms that are compared on it."""

    sky: str
    samples: int
    pixels: int
    arms: tuple[Arm, ...]


def sources(weights: str = "") -> str:
    """Half of each batch labelled, drawn in proportion to the column `weights`."""
    mixed = ({"name": "all"}, {"name": "labelled", "where": SPEC} | ({"weights": weights} if weights else {}))
    return f"data.sources={mixed!r}"


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


def at_fraction(arm: Arm, fraction: float, suffix: str) -> Arm:
    return arm._replace(name=f"{arm.name}{suffix}", fraction=fraction)


def image_arms(steps: int) -> dict[str, Arm]:
    """The ViT's arms of equal compute, that of 2 x `steps` steps of direct training, by name. In
    matrix multiplications a step of masked autoencoding costs 2/3 of a direct one, a semi-supervised one 8/3."""
    every = lambda n: f"checkpoint.every={max(1, n // 4)}"
    length = lambda n: (f"train.steps={n}", every(n))
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
        Arm("fluxes_tiered", "redshift_tiered", length(steps), start="pretrain_fluxes", overlay="templates"),
    )
    return {arm.name: arm for arm in arms}


def small() -> Size:
    own = image_arms(600)
    weights = tuple(weighted(arm) for arm in (PHOTOMETRY, *(own[name] for name in WEIGHTED)))
    return Size("ideal", 24_000, 32, (PHOTOMETRY, TEMPLATES, *own.values(), *weights))


def full() -> Size:
    """All arms, methods, label fractions and unlabelled volumes, for a GPU."""
    steps = 10_000
    own, mlp = image_arms(steps), PHOTOMETRY
    matched = own["matched"]
    length = (f"train.steps={2 * steps}",)
    tables = tuple(Arm(name, fields=("--model", name)) for name in ("knn", "gbt", "template"))
    tables += (TEMPLATES,)
    networks = tuple(Arm(name, f"baseline_{name}", length) for name in ("pasquet", "treyer", "multimodal"))
    pretrained = tuple(
        arm
        for name, item in (("dino", TEACHER), ("simclr", ()), ("byol", TEACHER), ("vicreg", ()))
        for arm in (
            Arm(f"pretrain_{name}", f"pretrain_{name}", (*VIT, f"train.steps={steps}"), scored=False),
            Arm(name, "demo_direct", (f"train.steps={steps}", *item), start=f"pretrain_{name}"),
        )
    )
    published = tuple(
        Arm(f"{name}_{how}", f"published_{how}:{name}", (*LABELLED, *length), weights=f"{name}_pretrain.pth")
        for name in ("dinov2_vitb14", "clip_vitb16")
        for how in ("probe", "finetune")
    )
    imbalance = (
        varied(matched, "lds", "redshift.balance=lds"),
        varied(matched, "class_balanced", "redshift.balance=class_balanced"),
        varied(matched, "focal", "redshift.focal=2.0"),
        varied(matched, "logit_adjust", "redshift.logit_adjust=1.0"),
        varied(matched, "balanced_draws", "data.balance=z"),
    )
    half = (f"train.steps={steps}",)  # a step of two parts, or two views, costs twice one
    shift = (
        *(Arm(f"matched+{term}", f"redshift_adapted:{term}", half) for term in ("coral", "mmd", "dann")),
        Arm("self_training", "self_training", half, overlay="weights", head="self_training"),
        Arm("two_branch", "redshift_two_branch", (*VIT, *LABELLED, *half), head="two_branch"),
        Arm("lin", "redshift_lin", (*VIT, *LABELLED, *length), head="lin"),
        Arm("clap", "redshift_clap", (*VIT, *LABELLED, *half), head="clap"),
    )
    plain = (*tables, mlp, *networks, *own.values(), *pretrained, *published)
    weights = tuple(weighted(arm) for arm in (mlp, *networks, *(own[name] for name in WEIGHTED)))
    fractions = tuple(
        at_fraction(arm, fraction, f"@{100 * fraction:g}%")
        for fraction in FRACTIONS
        for arm in (
            tables[1],
            mlp,
            TEMPLATES,
            *(own[n] for n in ("matched", "oracle", "mae", "fluxes", "semi", "tiered")),
        )
    )
    volumes = tuple(arm for name in ("mae", "fluxes") for volume in VOLUMES for arm in at_volume(own, name, volume))
    return Size("survey", 200_000, 64, (*plain, *weights, *imbalance, *shift, *fractions, *volumes))


def at_volume(own: dict[str, Arm], name: str, volume: float) -> tuple[Arm, Arm]:
    """Pretraining on a share of the unlabelled images, beside the labelled ones, in as many steps; and what follows."""
    before, suffix = own[f"pretrain_{name}"], f"_volume_{100 * volume:g}%"
    where = f"data.where=draw < {volume} or {SPEC}"
    first = before._replace(name=before.name + suffix, fields=(*before.fields, where))
    return first, own[name]._replace(name=name + suffix, start=first.name)


SIZES = {"small": small, "full": full}
