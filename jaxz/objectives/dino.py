"""Self-distillation without labels: DINO (Caron et al. 2021) with what DINOv2 (Oquab et al. 2024, sec. 4) adds.

A student that sees several views and smaller crops of an object learns to sort it among prototypes as the averaged
teacher sorts another view of it; hidden patches are sorted as the teacher, which sees them, does (iBOT, Zhou et al.
2022); embeddings are spread (KoLeo, Sablayrolles et al. 2019). One head serves images and patches. Of each object's two
views one, drawn by chance, has hidden patches.
"""

import functools

import jax
import jax.numpy as jnp
from flax import nnx
from ml_collections import ConfigDict

from jaxz.checks import at_least, is_range
from jaxz.data.prepare import Normalisation
from jaxz.errors import InputError
from jaxz.models import Encoder
from jaxz.models.functional import Functional, Params
from jaxz.models.heads import MLP, Prototypes, unit
from jaxz.models.stems import patchify
from jaxz.objectives import Extra, Loss, Prepared

SETTINGS = dict(
    prototypes=1024,
    hidden_width=512,
    bottleneck=128,  # width of what is compared with the prototypes
    crops=4,
    crop_scale=0.5,  # side of a crop in that of the image
    centering="sinkhorn",  # or "mean": of the teacher's outputs, which is the first paper's
    student_temperature=0.1,
    teacher_temperature=0.07,
    first_temperature=0.04,  # the teacher's rises from it ...
    warmup_steps=1000,  # ... in so many steps
    frozen_steps=100,  # at first, in which the prototypes stay
    patch_weight=1.0,  # of the loss of hidden patches
    patch_ratio=(0.1, 0.5),  # least and largest part of an image's patches that are hidden
    koleo_weight=0.1,
)
CHECKS = {
    **{name: at_least(name, 1) for name in ("prototypes", "hidden_width", "bottleneck")},
    **{name: at_least(name, 0) for name in ("crops", "warmup_steps", "frozen_steps", "patch_weight", "koleo_weight")},
    "student_temperature": (lambda s: s.student_temperature > 0, "above 0"),
    "teacher_temperature": (lambda s: s.teacher_temperature > 0, "above 0"),
    "first_temperature": (lambda s: s.first_temperature > 0, "above 0"),
    "crop_scale": (lambda s: 0 < s.crop_scale <= 1, "in (0, 1]"),
    "centering": (lambda s: s.centering in ("sinkhorn", "mean"), "'sinkhorn' or 'mean'"),
    "patch_ratio": (
        lambda s: is_range(s.patch_ratio) and len(s.patch_ratio) == 2 and 0 < s.patch_ratio[0] <= s.patch_ratio[1] < 1,
        "two rising numbers between 0 and 1",
    ),
}
MEMORY = 0.9  # of the running mean of the teacher's outputs
ROUNDS = 3  # of Sinkhorn-Knopp
BLOCKS = 8  # rectangles drawn to hide the patches of an image


class Head(nnx.Module):
    """From an embedding [..., D] to its cosines with the prototypes, [..., K]; and what stands for a hidden patch."""

    def __init__(self, settings: ConfigDict, encoder: Encoder, *, rngs: nnx.Rngs):
        hidden, width = settings.hidden_width, settings.bottleneck
        self.mlp = MLP((encoder.width, hidden, hidden, width), norm=False, dtype=encoder.dtype, rngs=rngs)
        self.last = Prototypes(width, settings.prototypes, dtype=encoder.dtype, rngs=rngs)
        self.mask_token = nnx.Param(0.02 * jax.random.normal(rngs.params(), (encoder.width,)))

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.last(self.mlp(x))


class Objective:
    """settings: see SETTINGS. Raises InputError for crops that hold no patch."""

    columns, views, teacher, parts = (), 2, True, True

    def __init__(self, encoder: Encoder, settings: ConfigDict, normalisation: Normalisation):
        self.encoder, self.settings = encoder, settings
        self.side, self.patch = encoder.side, encoder.patch
        pixels = int(settings.crop_scale * self.side) * self.patch
        if settings.crops and not pixels:
            raise InputError(
                f"dino.crop_scale: {settings.crop_scale} of {encoder.size} pixels is less than a patch of "
                f"{self.patch}; raise it or lower model.patch"
            )
        self.crops = (settings.crops, pixels)
        self.head = Functional(lambda rngs: Head(settings, encoder, rngs=rngs))

    def init(self, key: jax.Array) -> tuple[Params, Extra]:
        centre = {name: jnp.zeros(self.settings.prototypes) for name in ("images", "patches")}
        return self.head.init(key), centre if self.settings.centering == "mean" else {}

    def loss(self, params: Params, ema: Params, extra: Extra, batch: Prepared, key: jax.Array, step: jax.Array) -> Loss:
        settings, views = self.settings, batch["views"][:2]
        which_key, blocks_key, *encoder_keys = jax.random.split(key, 4)
        observed = jnp.stack([patchify(view["mask"], self.patch).any((2, 3)) for view in views], 1)  # [B,2,N]
        masked = jax.random.bernoulli(which_key, shape=(len(observed), 1, 1)).astype(int)  # the view that is
        blocks = hide_blocks(blocks_key, len(observed), self.side, settings.patch_ratio)
        hidden = blocks[:, None] & (masked == jnp.arange(2)[:, None])  # [B,2,N]
        own, teacher = params["dino"], jax.lax.stop_gradient(ema)
        own = own | {"last": jax.tree.map(lambda p: frozen(p, step < settings.frozen_steps), own["last"])}

        token = own["mask_token"]
        encode = functools.partial(self.encoder.views, columns=batch)
        whole = encode(params["encoder"], views, hidden, mask_token=token, key=encoder_keys[0])
        seen = encode(teacher["encoder"], views)
        small = batch["crops"][: settings.crops]
        images = [whole.cls]
        if small:
            images.append(encode(params["encoder"], small, key=encoder_keys[1]).cls)

        temperature = self.temperature(step)
        target, extra = self.sort(teacher, seen.cls, jnp.ones(seen.cls.shape[:2]), temperature, extra, "images")
        loss = distillation(target, self.head(own, jnp.concatenate(images, 1)) / settings.student_temperature)
        metrics = {"images": loss, **usage(target)}
        if settings.patch_weight:
            most = max(1, round(settings.patch_ratio[1] * blocks.shape[1]))
            place = blocks.argsort(1, descending=True)[:, None, :most, None]  # [B,1,M,1] the hidden ones first
            take = lambda x: jnp.take_along_axis(jnp.take_along_axis(x, masked[..., None], 1), place, 2)[:, 0]
            weight = take((hidden & observed)[..., None])[..., 0]  # [B,M]
            target, extra = self.sort(teacher, take(seen.tokens), weight, temperature, extra, "patches")
            logits = self.head(own, take(whole.tokens)) / settings.student_temperature
            metrics["patches"] = masked_distillation(target, logits, weight)
            loss += settings.patch_weight * metrics["patches"]
        if settings.koleo_weight:
            metrics["koleo"] = (koleo(whole.cls[:, 0]) + koleo(whole.cls[:, 1])) / 2
            loss += settings.koleo_weight * metrics["koleo"]
        return loss, {"metrics": metrics, "extra": extra}

    def temperature(self, step: jax.Array) -> jax.Array:
        """The teacher's at a step."""
        first, last = self.settings.first_temperature, self.settings.teacher_temperature
        return first + (last - first) * jnp.minimum(step / max(1, self.settings.warmup_steps), 1)

    def sort(
        self, teacher: Params, x: jax.Array, weight: jax.Array, temperature: jax.Array, extra: Extra, name: str
    ) -> tuple[jax.Array, Extra]:
        """The teacher's distributions [B,M,K] of embeddings x [B,M,D] that have a weight [B,M], and the new extra."""
        logits = self.head(teacher["dino"], x)
        if self.settings.centering == "sinkhorn":
            flat = sinkhorn(logits.reshape(-1, logits.shape[-1]) / temperature, weight.reshape(-1))
            return flat.reshape(logits.shape), extra
        centre, weight = extra[name], weight[..., None].astype(jnp.float32)
        mean = (weight * logits).sum((0, 1)) / jnp.maximum(weight.sum(), 1)
        kept = jnp.where(weight.sum() > 0, MEMORY * centre + (1 - MEMORY) * mean, centre)
        return jax.nn.softmax((logits - centre) / temperature), extra | {name: kept}

    def predict(self, params: Params, extra: Extra, batch: Prepared) -> dict[str, jax.Array]:
        return {}


def frozen(p: jax.Array, when: jax.Array) -> jax.Array:
    """A parameter, without a gradient where `when` bool [] says so."""
    return jnp.where(when, jax.lax.stop_gradient(p), p)


def sinkhorn(logits: jax.Array, weight: jax.Array) -> jax.Array:
    """[M,K]: each row a distribution, the prototypes used equally by the rows with a weight; 0 for the others. logits
    [M,K] over the temperature, weight [M] of 0 and 1 (Caron et al. 2020, SwAV, sec. 3.1 and appendix A)."""
    weight = weight.astype(jnp.float32)[:, None]
    for _ in range(ROUNDS):
        logits -= jax.nn.logsumexp(logits, axis=0, b=weight, keepdims=True)
        logits -= jax.nn.logsumexp(logits, axis=1, keepdims=True)
    return jnp.where(weight > 0, jnp.exp(logits), 0)


def distillation(target: jax.Array, logits: jax.Array) -> jax.Array:
    """Mean over objects and pairs of cross-entropies of each teacher's view target [B,2,K] with each other view or crop
    of the student, logits [B,S,K], of which the first two are of the same views (Caron et al. 2021, eq. 3)."""
    pairs = -jnp.einsum("btk,bsk->ts", target, jax.nn.log_softmax(logits), precision="highest") / len(logits)
    other = 1 - jnp.eye(pairs.shape[0], pairs.shape[1])
    return (pairs * other).sum() / other.sum()


def masked_distillation(target: jax.Array, logits: jax.Array, weight: jax.Array) -> jax.Array:
    """Mean over images of the mean cross-entropy over their patches with a weight [B,M], of target with logits [B,M,K]
    (Zhou et al. 2022, eq. 2). An image without such patches is not counted."""
    entropy = -jnp.where(weight, (target * jax.nn.log_softmax(logits)).sum(-1), 0)
    count = weight.sum(1)
    return (entropy.sum(1) / jnp.maximum(count, 1)).sum() / jnp.maximum((count > 0).sum(), 1)


def koleo(x: jax.Array) -> jax.Array:
    """-mean log of the distance from each of x [B,D], at unit norm, to its nearest neighbour (Sablayrolles et al. 2019,
    eq. 2)."""
    x = unit(x)
    cosine = jnp.where(jnp.eye(len(x), dtype=bool), -2, jax.lax.stop_gradient(jnp.matmul(x, x.T, precision="highest")))
    distance = ((x - x[cosine.argmax(1)]) ** 2).sum(1)
    return -0.5 * jnp.log(distance + 1e-12).mean()


def usage(target: jax.Array) -> dict[str, jax.Array]:
    """Of the teacher's distributions [B,2,K]: perplexity of one (1: sure; K: knows nothing) and of their mean (1: all
    alike; K: all prototypes are used)."""
    entropy = lambda p: jax.scipy.special.entr(p).sum(-1)
    mean = target.mean((0, 1))
    return {"perplexity": jnp.exp(entropy(target).mean()), "perplexity_of_mean": jnp.exp(entropy(mean))}


def hide_blocks(key: jax.Array, count: int, side: int, ratio: tuple[float, float]) -> jax.Array:
    """[count, side*side] bool: patches to hide, in rectangles of random shape (blockwise masking, Bao et al. 2022,
    BEiT, algorithm 1), of each image a part drawn between the two of `ratio`, at least one patch.

    Rectangles of half that area are laid one after another until the part is reached, the last one in part."""
    keys = jax.random.split(key, 5)
    part = jax.random.uniform(keys[0], (count, 1), minval=ratio[0], maxval=ratio[1])
    wanted = jnp.maximum(jnp.round(part * side * side), 1)
    aspect = jnp.exp(jax.random.uniform(keys[1], (count, BLOCKS), minval=jnp.log(0.3), maxval=-jnp.log(0.3)))
    place = jnp.arange(side)

    def covered(key: jax.Array, length: jax.Array) -> jax.Array:  # [count, BLOCKS, side] along one axis
        length = jnp.clip(jnp.round(length), 1, side)[..., None]
        low = jnp.floor(jax.random.uniform(key, length.shape) * (side - length + 1))
        return (place >= low) & (place < low + length)

    area = wanted / 2
    rows, columns = covered(keys[2], jnp.sqrt(area * aspect)), covered(keys[3], jnp.sqrt(area / aspect))
    inside = (rows[..., :, None] & columns[..., None, :]).reshape(count, BLOCKS, -1)
    first = jnp.where(inside.any(1), inside.argmax(1), BLOCKS)  # which rectangle hides it
    rank = (first + jax.random.uniform(keys[4], first.shape)).argsort(1).argsort(1)
    return rank < wanted
