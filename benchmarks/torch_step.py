"""The steps of vit_step in PyTorch: the same model, objectives and update, compiled, with fused attention and AdamW.

float32 parameters under autocast to the task's dtype; no loss scaling, so bfloat16 and float32 only.
"""

import time
from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from benchmarks.vit_step import DECODER, STEPS, Task, bands_of, batch_of, config_of
from jaxz.models.stems import wavelength_features
from jaxz.models.stems.fused import Stem as FusedStem


class Block(nn.Module):
    def __init__(self, width: int, heads: int, swiglu: bool = False):
        super().__init__()
        self.heads, self.swiglu = heads, swiglu
        hidden = -(-8 * width // 24) * 8 if swiglu else 4 * width
        self.norm1, self.norm2 = nn.LayerNorm(width, eps=1e-6), nn.LayerNorm(width, eps=1e-6)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, (1 + swiglu) * hidden), nn.Linear(hidden, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        batch, tokens, width = x.shape
        q, k, v = self.qkv(self.norm1(x)).view(batch, tokens, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        x = x + self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(batch, tokens, width))
        y = self.up(self.norm2(x))
        if self.swiglu:
            gate, value = y.chunk(2, -1)
            return x + self.down(F.silu(gate) * value)
        return x + self.down(F.gelu(y, approximate="tanh"))


class WavelengthKernel(nn.Module):
    def __init__(self, features: np.ndarray, shape: tuple[int, ...], scale: float):
        super().__init__()
        self.register_buffer("features", torch.from_numpy(features))
        self.basis = nn.Parameter(scale * torch.randn(features.shape[1], *shape))

    def forward(self) -> torch.Tensor:
        return torch.tensordot(self.features, self.basis, 1)


class Encoder(nn.Module):
    def __init__(self, settings, features: np.ndarray, patches: int):
        super().__init__()
        self.patch, pixels, width = settings.patch, settings.patch**2, settings.width
        self.kernel = WavelengthKernel(features, (pixels, width), (len(features) * pixels) ** -0.5)
        self.mean = nn.Linear(pixels, width)
        self.presence = WavelengthKernel(features, (width,), 0.02)
        self.position = nn.Parameter(0.02 * torch.randn(patches, width))
        swiglu = settings.mlp == "swiglu"
        self.blocks = nn.ModuleList(Block(width, settings.heads, swiglu) for _ in range(settings.depth))
        self.norm = nn.LayerNorm(width, eps=1e-6)

    def forward(self, image: torch.Tensor, mask: torch.Tensor, keep: torch.Tensor | None = None) -> torch.Tensor:
        image = torch.where(mask, image, 0)
        mean = image.sum(1, keepdim=True) / mask.sum(1, keepdim=True).clamp(min=1)
        pixels = cut(torch.where(mask, FusedStem.GAIN * (image - mean), 0), self.patch).flatten(2)
        x = pixels @ self.kernel().flatten(0, 1) + self.mean(cut(mean, self.patch).flatten(2))
        x = x + cut(mask.float(), self.patch).mean(-1) @ self.presence() + self.position.to(x.dtype)
        if keep is not None:
            x = x.gather(1, keep[..., None].expand(-1, -1, x.shape[-1]))
        for block in self.blocks:
            x = block(x)
        return self.norm(x.float())


def cut(image: torch.Tensor, patch: int) -> torch.Tensor:
    """[B,C,H,W] -> [B,N,C,P*P], as jaxz.models.stems.patchify."""
    batch, bands, height, width = image.shape
    grid = image.reshape(batch, bands, height // patch, patch, width // patch, patch)
    return grid.permute(0, 2, 4, 1, 3, 5).reshape(batch, -1, bands, patch * patch)


class Supervised(nn.Module):
    """Redshift as a softmax over bins with labels smoothed by their error."""

    def __init__(self, config, features: np.ndarray, patches: int):
        super().__init__()
        settings = config.redshift
        self.encoder = Encoder(config.model, features, patches)
        self.norm = nn.LayerNorm(config.model.width, eps=1e-6)
        self.out = nn.Linear(config.model.width, settings.bins)
        self.register_buffer("edges", torch.linspace(settings.z_min, settings.z_max, settings.bins + 1))
        self.least = settings.label_sigma

    def forward(self, batch: dict) -> torch.Tensor:
        logits = self.out(self.norm(self.encoder(batch["image"], batch["mask"]).mean(1)))
        z = batch["z"][:, None]
        sigma = torch.maximum(batch["z_err"][:, None], self.least * (1 + z))
        mass = torch.special.ndtr((self.edges - z) / sigma).diff(dim=1) + 1e-12
        return -(mass / mass.sum(1, keepdim=True) * F.log_softmax(logits.float(), 1)).sum(1).mean()


class MAE(nn.Module):
    """Error of the hidden patches' pixels in units of the sky."""

    def __init__(self, config, features: np.ndarray, patches: int):
        super().__init__()
        width, inner, pixels = config.model.width, DECODER["decoder_width"], config.model.patch**2
        self.encoder = Encoder(config.model, features, patches)
        self.keep, self.patch = max(1, round(patches * (1 - config.mae.mask_ratio))), config.model.patch
        self.embed = nn.Linear(width, inner)
        self.mask_token = nn.Parameter(0.02 * torch.randn(inner))
        self.position = nn.Parameter(0.02 * torch.randn(patches, inner))
        self.blocks = nn.ModuleList(Block(inner, DECODER["decoder_heads"]) for _ in range(DECODER["decoder_depth"]))
        self.norm = nn.LayerNorm(inner, eps=1e-6)
        self.kernel = WavelengthKernel(features, (inner, pixels), inner**-0.5)

    def forward(self, batch: dict) -> torch.Tensor:
        count, patches = len(batch["image"]), len(self.position)
        order = torch.rand(count, patches, device=batch["image"].device).argsort(1)
        place = order.argsort(1)
        x = self.embed(self.encoder(batch["image"], batch["mask"], order[:, : self.keep]))
        x = torch.cat([x, self.mask_token.to(x.dtype).expand(count, patches - self.keep, -1)], 1)
        x = x.gather(1, place[..., None].expand(-1, -1, x.shape[-1])) + self.position.to(x.dtype)
        for block in self.blocks:
            x = block(x)
        predicted = torch.einsum("bnd,cdp->bncp", self.norm(x), self.kernel())
        hidden = (place >= self.keep)[..., None, None] & cut(batch["mask"], self.patch)
        error = (predicted.float() - cut(batch["image"], self.patch)) / batch["sky"][:, None, :, None]
        return torch.where(hidden, error**2, 0).sum() / hidden.sum().clamp(min=1)


def arm(task: Task, batch_size: int) -> Callable[[], float]:
    """A function that takes STEPS training steps on one batch and returns their seconds; some have been taken."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.set_float32_matmul_precision("high")  # TF32, as jax's default
    config = config_of(task, batch_size)
    features = wavelength_features([band.wavelength_nm for band in bands_of(task)])
    make = {"supervised": Supervised, "mae": MAE}[task.objective]
    model = make(config, features, task.patches).to(device)
    batch = {name: torch.from_numpy(value).to(device) for name, value in batch_of(task, batch_size).items()}
    optimizer = torch.optim.AdamW(
        model.parameters(), config.optim.lr, (0.9, config.optim.b2), weight_decay=config.optim.weight_decay, fused=True
    )
    compiled, low = torch.compile(model), getattr(torch, task.dtype)

    def step() -> None:
        with torch.autocast(device, low, enabled=task.dtype != "float32"):
            loss = compiled(batch)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), config.optim.clip_norm)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    def run() -> float:
        began = time.perf_counter()
        for _ in range(STEPS):
            step()
        if device == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - began

    for _ in range(3):  # compiles, and chooses its kernels
        step()
    return run
