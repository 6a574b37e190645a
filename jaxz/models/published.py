"""Published encoders in runs of one's own: DINOv2, CLIP and their kin on fluxes of any bands.

The settings say the whole architecture, so that a run's checkpoints are read without the file that its weights came
from, `init.path`, against which they are held. Those of published models are in MODELS:

    config.model = dict(name="published", **MODELS["dinov2_vitb14"], image_size=224, normalisation="asinh")
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from ml_collections import ConfigDict

from jaxz.checks import at_least, one_of
from jaxz.errors import InputError, suggest
from jaxz.models import Band, Encoded, layers
from jaxz.models.inputs import normalise, resize_images
from jaxz.models.resize import VARIANTS
from jaxz.models.tower import ACTIVATIONS, Blocks, Image, ImageTower, run
from jaxz.models.vit import SIZES, shown

IMPORTED = True  # never begins with drawn weights
CORNER = 0.25  # of an enlarged pixel is at least its own patch's: so much in a corner that only hidden ones surround

ARCHITECTURE = dict(  # as in jaxz.models.tower
    width=768,
    depth=12,
    heads=12,
    hidden=3072,
    activation="gelu",
    gated=False,
    eps=1e-6,
    qkv_bias=(True, True, True),
    layer_scale=False,
    patch=14,
    stem_bias=True,
    cls=True,
    registers=0,
    grid=(),  # of the table of positions; (): there is none
    rope=(),
    stem_norm=False,
    summary="cls",
    mask_token=False,
)
SETTINGS = dict(
    **ARCHITECTURE,
    family="auto",  # of the weights: see docs/pretrained.md
    interpolation="bicubic",  # how positions are resized
    image_size=0,  # pixels that cutouts are resized to; 0: as they are
    band_init="repeat",  # what the stem's kernel of a band begins with: see docs/pretrained.md
    rgb=(),  # names of the bands that are red, green and blue, for band_init "rgb_map" and normalisation "lupton"
    normalisation="",  # of fluxes in units of data.softening: "asinh", "affine" or "lupton"; there is no default
    mean=(),  # of each band, or of the colour picture's three, for "affine" and "lupton" ...
    std=(),  # ... (x - mean) / std
    stretch=5.0,  # of "lupton"
    q=8.0,
    dtype="float32",  # of the blocks' computation; parameters and results are float32
    remat="none",  # what the backward pass computes again: "block", or all but matrix products, "dots"
)
BAND_INITS = ("mean", "repeat", "rgb_map", "project", "per_band")
CHECKS = {
    **{name: at_least(name, 1) for name in ("width", "depth", "hidden", "patch")},
    "heads": (lambda s: s.heads >= 1 and s.width % s.heads == 0, "a divisor of model.width"),
    "activation": one_of("activation", *ACTIVATIONS),
    "eps": (lambda s: s.eps > 0, "above 0"),
    "qkv_bias": (lambda s: len(s.qkv_bias) == 3, "three booleans"),
    "registers": at_least("registers", 0),
    "grid": (lambda s: len(s.grid) in (0, 2) and all(n >= 1 for n in s.grid), "(rows, columns), or ()"),
    "rope": (lambda s: all(period > 0 for period in s.rope), "periods above 0, or ()"),
    "summary": one_of("summary", "cls", "mean", "probe"),
    "interpolation": one_of("interpolation", *VARIANTS),
    "image_size": (
        lambda s: s.image_size >= 0 and s.image_size % max(1, s.patch) == 0,
        "a multiple of model.patch, or 0",
    ),
    "band_init": (
        lambda s: s.band_init in BAND_INITS and (s.normalisation != "lupton" or s.band_init == "rgb_map"),
        f"one of {', '.join(BAND_INITS)}; with 'lupton' it is 'rgb_map'",
    ),
    "rgb": (
        lambda s: len(set(s.rgb)) == (3 if s.band_init == "rgb_map" else 0),
        "three names of bands, red first, with 'rgb_map', and () else",
    ),
    "normalisation": (
        lambda s: s.normalisation in ("asinh", "affine", "lupton"),
        "'asinh', 'affine' or 'lupton': how fluxes become a model's input has no default",
    ),
    "mean": (lambda s: bool(s.mean) == (s.normalisation != "asinh"), "given with 'affine' and 'lupton', () else"),
    "std": (
        lambda s: len(s.std) == len(s.mean) and all(x > 0 for x in s.std),
        "as many numbers as model.mean, above 0",
    ),
    "stretch": (lambda s: s.stretch > 0, "above 0"),
    "q": (lambda s: s.q > 0, "above 0"),
    "dtype": one_of("dtype", "float32", "bfloat16", "float16"),
    "remat": one_of("remat", *layers.REMAT),
}


def sized(size: str, **others: Any) -> dict[str, Any]:
    """Settings of a size of Dosovitskiy et al. 2021, table 1, with an MLP four times as wide."""
    s = SIZES[size]
    return dict(width=s["width"], depth=s["depth"], heads=s["heads"], hidden=4 * s["width"]) | others


DINOV2 = dict(patch=14, grid=(37, 37), layer_scale=True, mask_token=True, interpolation="offset0.1")
REGISTERS = dict(registers=4, interpolation="bicubic_antialias")
GIANT = dict(hidden=4096, activation="silu", gated=True)
CLIP = dict(activation="quick_gelu", eps=1e-5, stem_bias=False, stem_norm=True, interpolation="bicubic_antialias")
DINOV3 = dict(
    patch=16,
    eps=1e-5,
    qkv_bias=(True, False, True),
    layer_scale=True,
    registers=4,
    mask_token=True,
    rope=tuple(100.0 ** (n / 16) for n in range(16)),  # 64 numbers a head, half of them of each axis
)
MODELS = {
    **{f"dinov2_vit{s.lower()}14": sized(s, **DINOV2) for s in ("S", "B", "L")},
    **{f"dinov2_vit{s.lower()}14_reg4": sized(s, **DINOV2 | REGISTERS) for s in ("S", "B", "L")},
    "dinov2_vitg14": sized("g", **DINOV2) | GIANT,
    "dinov2_vitg14_reg4": sized("g", **DINOV2 | REGISTERS) | GIANT,
    "clip_vitb32": sized("B", patch=32, grid=(7, 7), **CLIP),
    "clip_vitb16": sized("B", patch=16, grid=(14, 14), **CLIP),
    "clip_vitl14": sized("L", patch=14, grid=(16, 16), **CLIP),
    "siglip_vitb16": sized("B", patch=16, grid=(14, 14), activation="gelu_tanh", cls=False, summary="probe"),
    "dino_vits16": sized("S", patch=16, grid=(14, 14), interpolation="offset0.1"),
    "dino_vitb16": sized("B", patch=16, grid=(14, 14), interpolation="offset0.1"),
    "mae_vitb16": sized("B", patch=16, grid=(14, 14)),
    "mae_vitl16": sized("L", patch=16, grid=(14, 14)),
    "dinov3_vits16": sized("S", **DINOV3),
    "dinov3_vitb16": sized("B", **DINOV3),
    "dinov3_vitl16": sized("L", **DINOV3),
}


def model(name: str) -> dict[str, Any]:
    """The settings of a published model. Raises InputError for a name that is not in MODELS."""
    if name not in MODELS:
        raise InputError(f"--config: {name!r} is no published model.{suggest(name, MODELS)}")
    return {"name": "published", **MODELS[name]}


def image_settings(config: ConfigDict, bands: int) -> Image:
    """The tower that a config's group `model` describes, for so many bands."""
    names = [field.name for field in dataclasses.fields(Blocks)]
    blocks = {name: config[name] for name in names} | {"qkv_bias": tuple(config.qkv_bias)}
    own = ("patch", "stem_bias", "cls", "registers", "interpolation", "stem_norm", "summary", "mask_token")
    return Image(
        blocks=Blocks(**blocks),
        bands=3 if config.normalisation == "lupton" else bands,
        mixed=3 if config.band_init == "project" else 0,
        band_tokens=config.band_init == "per_band",
        grid=tuple(config.grid) or None,
        rope=tuple(config.rope),
        **{name: config[name] for name in own},
    )


def settings_of(image: Image) -> dict[str, Any]:
    """The inverse: a config's settings of a tower of three bands, for all of ARCHITECTURE and its interpolation."""
    flat = dataclasses.asdict(image.blocks) | {
        field.name: getattr(image, field.name) for field in dataclasses.fields(Image) if field.name != "blocks"
    }
    flat["grid"] = image.grid or ()
    return {name: flat[name] for name in (*ARCHITECTURE, "interpolation")}


def rgb_places(config: ConfigDict, bands: Sequence[Band]) -> list[int]:
    """Where red, green and blue are among the bands. Raises InputError for a name that is none of them."""
    names = [band.name for band in bands]
    for name in config.rgb:
        if name not in names:
            raise InputError(f"model.rgb: {name!r} is no band of the run.{suggest(name, names)}")
    return [names.index(name) for name in config.rgb]


class Backbone(ImageTower):
    """The tower of the settings above. What the mask hides is 0 to it: a flux of 0 with "asinh", else the mean.

    Raises InputError for a size that the patches do not divide, or names and numbers that are not the bands'.
    """

    def __init__(self, config: ConfigDict, bands: Sequence[Band], size: int, *, rngs: nnx.Rngs):
        places = rgb_places(config, bands)
        super().__init__(image_settings(config, len(bands)), rngs=rngs)
        side = (config.image_size or size) // config.patch
        if not side or size % side or (not config.image_size and size % config.patch):
            raise InputError(
                f"model.image_size: {config.image_size} pixels in patches of {config.patch} do not fit cutouts of "
                f"{size}, of which a patch must be whole pixels; set {config.patch} times a divisor of {size}"
            )
        self.factor = config.image_size / size if config.image_size else 1.0
        self.dtype, self.remat = jnp.dtype(config.dtype), config.remat
        self.kind, self.places = config.normalisation, tuple(places)
        self.numbers = {"mean": tuple(config.mean), "std": tuple(config.std)}
        if self.kind == "lupton":
            self.numbers |= {"stretch": config.stretch, "q": config.q}
        if self.kind != "asinh" and len(config.mean) != self.settings.bands:
            raise InputError(
                f"model.mean: {tuple(config.mean)} must be a number for each of {self.settings.bands} bands"
            )

    def __call__(
        self,
        image: jax.Array,
        mask: jax.Array,
        keep: jax.Array | None = None,
        hidden: jax.Array | None = None,
        mask_token: jax.Array | None = None,
        key: jax.Array | None = None,
    ) -> Encoded:
        """image, mask [B,C,h,w]: asinh of the flux in units of data.softening, as jaxz.data.prepare makes it, of the
        model's size or a crop; the rest as for ImageTower."""
        x = self.embed(*self.input(image, mask, keep, hidden), keep, hidden, mask_token)
        blocks = jax.tree.map(lambda a: a.astype(self.dtype), self.blocks)
        end = run(blocks, x.x.astype(self.dtype), x.angles, x.observed, remat=self.remat)
        return self.summarise(end.astype(jnp.float32), x.observed)

    def input(
        self, image: jax.Array, mask: jax.Array, keep: jax.Array | None = None, hidden: jax.Array | None = None
    ) -> tuple[jax.Array, jax.Array]:
        """What the tower sees of image, mask [B,C,h,w]: its numbers, and the mask, of its own size. Patches that are
        hidden, or not kept, reach no pixel beside them; to the mask, which tells the bands that are there, they count.
        """
        image, mask = jnp.where(mask, image, 0), jnp.broadcast_to(mask, image.shape)
        if self.kind == "lupton":
            image, mask = image[:, self.places], mask[:, self.places]
        if self.kind != "asinh":
            image = normalise(jnp.sinh(image), {"kind": self.kind, **self.numbers})
        if self.factor == 1:
            return image, mask
        seen = shown(mask, round(self.settings.patch / self.factor), keep, hidden)
        pixels, _ = resize_images(image, seen, self.factor, CORNER)
        return pixels, resize_images(image, mask, self.factor)[1]
