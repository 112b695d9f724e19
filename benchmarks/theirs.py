"""PyTorch's side of every workload; jobs as in ours.py, the same weights, inputs and formulas.

`LAST` (channels last) is set by the worker, once, before the first job.
"""

import math
from itertools import pairwise

import numpy as np
import torch
import torch.nn.functional as F

from ldm_numpy import images
from ldm_numpy.backend import cpu_count
from ldm_numpy.diffusion.schedules import karras_sigmas
from ldm_numpy.nn import to_torch_layout
from ldm_numpy.pipeline import PipelineConfig

from . import workloads as w
from .ours import median_run, prefixed
from .torch_autoencoder import AutoencoderKL
from .torch_clip import CLIP, CLIPTextModel
from .torch_models import UNet, heads_attention

LAST = False


def image(array) -> torch.Tensor:
    """(N, H, W, C) as (N, C, H, W), in the memory format of this run."""
    x = torch.from_numpy(np.ascontiguousarray(array)).permute(0, 3, 1, 2)
    return x.contiguous(memory_format=torch.channels_last if LAST else torch.contiguous_format)


def array(x: torch.Tensor) -> np.ndarray:
    """The reverse, of whatever has four axes."""
    x = x.detach()
    return (x.permute(0, 2, 3, 1) if x.ndim == 4 else x).numpy()


def network(kind: str, spec: dict) -> torch.nn.Module:
    """The PyTorch network with the weights of ours."""
    ours = w.network(kind, spec)
    if kind == "unet":
        model = UNet(ours.config)
    elif kind == "autoencoder":
        model = AutoencoderKL(ours.config)
    elif kind == "text":
        model = CLIPTextModel(ours.config)
    else:
        projection = ours.text_projection.weight.shape[1]
        model = CLIP(ours.text_model.config, ours.vision_model.config, projection)
    state = to_torch_layout(ours, ours.state_dict())
    model.load_state_dict({name: torch.from_numpy(a) for name, a in state.items()})
    return model.to(memory_format=torch.channels_last) if LAST else model


def tensors(spec: dict) -> dict[str, torch.Tensor]:
    return {
        name: image(a) if a.ndim == 4 and name != "w" else torch.from_numpy(a)
        for name, a in w.inputs(spec).items()
    }


def precondition(sigma):
    """c_skip, c_out, c_in, c_noise of `ldm_numpy.diffusion.denoiser`, for data of deviation 1."""
    root = torch.sqrt(sigma**2 + 1)
    return 1 / root**2, sigma / root, 1 / root, 250 * torch.log(sigma)


class Step(w.Job):
    def __init__(self, spec: dict):
        self.spec, self.config = spec, w.STAGES[spec["kind"]]
        self.network = network(spec["kind"], spec)
        self.inputs = tensors(spec)

    def start(self) -> None:
        self.parameters = list(self.network.parameters())
        groups = [
            {"params": [p for p in self.parameters if p.ndim >= 2]},
            {"params": [p for p in self.parameters if p.ndim < 2], "weight_decay": 0.0},
        ]
        # Fused is the fastest of its three ways on a CPU.
        self.optimizer = torch.optim.AdamW(
            groups, lr=w.LEARNING_RATE, betas=(0.9, 0.99),
            weight_decay=self.config.weight_decay, fused=True,
        )  # fmt: skip
        self.average = [p.detach().clone() for p in self.parameters]
        self.steps = 0

    def loss(self):
        a, net = self.inputs, self.network
        if self.spec["kind"] == "unet":
            level = a["sigma"][:, None, None, None]
            c_skip, c_out, c_in, c_noise = precondition(level)
            x = a["clean"] + level * a["noise"]
            denoised = c_skip * x + c_out * net(x * c_in, c_noise.flatten(), a["cond"])
            return ((denoised - a["clean"]) ** 2 / c_out**2).mean()
        if self.spec["kind"] == "autoencoder":
            mean, logvar = net.encode(a["pixels"])
            decoded = net.decode(mean + torch.exp(0.5 * logvar) * a["noise"])
            kl = 0.5 * (mean**2 + logvar.exp() - 1 - logvar).sum() / len(mean)
            return F.mse_loss(decoded, a["pixels"]) + kl * (self.config.kl_weight / w.SIDE**2)
        z = net.logit_scale.exp() * net.encode_image(a["pixels"]) @ net.encode_text(a["ids"]).T
        right = a["positives"].float()
        rows = F.cross_entropy(z, right / right.sum(1, keepdim=True))
        return (rows + F.cross_entropy(z.T, right.T / right.T.sum(1, keepdim=True))) / 2

    def gradients(self):
        self.optimizer.zero_grad()
        loss = self.loss()
        loss.backward()
        return loss

    @torch.no_grad()
    def update(self) -> None:
        torch.nn.utils.clip_grad_norm_(self.parameters, self.config.clip_norm)
        self.optimizer.step()
        if self.spec["kind"] == "clip":
            self.network.logit_scale.clamp_(0, math.log(100))
        self.steps += 1
        decay = min(self.config.ema_decay, (1 + self.steps) / (10 + self.steps))
        torch._foreach_lerp_(self.average, self.parameters, 1 - decay)

    def run(self) -> None:
        self.gradients()
        self.update()

    @torch.no_grad()
    def outputs(self) -> dict:
        a = {name: x[:32] for name, x in self.inputs.items()}
        if self.spec["kind"] == "unet":
            return {"output": array(self.network(a["clean"], a["sigma"], a["cond"]))}
        if self.spec["kind"] == "autoencoder":
            mean, logvar = self.network.encode(a["pixels"])
            decoded = self.network.decode(mean)
            return {"mean": array(mean), "logvar": array(logvar), "decoded": array(decoded)}
        found = self.network.encode_image(a["pixels"]), self.network.encode_text(a["ids"])
        return {"image": array(found[0]), "text": array(found[1])}

    def check(self) -> dict:
        result = self.outputs()
        result["loss"] = array(self.gradients())
        names = [name for name, _ in self.network.named_parameters()]
        grads = [p.grad.numpy().copy() for p in self.parameters]
        result |= prefixed("gradient/", dict(zip(names, grads)))
        self.update()
        self.run()
        weights = [p.detach().numpy() for p in self.parameters]
        result |= prefixed("weights/", dict(zip(names, weights)))
        return result | prefixed("average/", {n: a.numpy() for n, a in zip(names, self.average)})


class Sample(w.Job):
    """DPM-Solver++ 2M with guidance as in `ldm_numpy`, on tensors."""

    def __init__(self, spec: dict):
        self.spec, self.settings = spec, PipelineConfig(padded_size=w.SIDE, latent_size=w.LATENT)
        self.unet, self.decoder = network("unet", spec), network("autoencoder", spec)
        self.text, self.tokenizer = network("text", spec), w.tokenizer()
        self.together = True

    @torch.inference_mode()
    def start(self) -> None:
        """With the caption and without: one batch of twice the size, or two; the faster stays."""
        taken = {}
        for self.together in (True, False):
            self.latents()
            taken[self.together] = median_run(self.latents, 0.5)
        self.together = min(taken, key=taken.get)

    def states(self, prompt: str) -> torch.Tensor:
        return self.text(torch.from_numpy(self.tokenizer([prompt])).long())

    def denoise(self, x, sigma, cond, uncond):
        c_skip, c_out, c_in, c_noise = precondition(torch.tensor(sigma))
        if self.together:
            times = c_noise.expand(2 * len(x))
            twice = (x * c_in).repeat(2, 1, 1, 1)
            given, free = self.unet(twice, times, torch.cat([cond, uncond])).chunk(2)
        else:
            times = c_noise.expand(len(x))
            given, free = (self.unet(x * c_in, times, c) for c in (cond, uncond))
        return c_skip * x + c_out * (free + 2.0 * (given - free))

    @torch.inference_mode()
    def latents(self):
        n, s = self.spec["batch"], self.settings
        cond, uncond = (self.states(p).expand(n, -1, -1) for p in (w.PROMPT, ""))
        sigmas = karras_sigmas(self.spec["steps"], s.sigma_min, s.sigma_max)
        x = image(w.start_noise(n)) * sigmas[0]
        last = h_last = None
        for sigma, sigma_next in pairwise(sigmas):
            denoised = middle = self.denoise(x, sigma, cond, uncond)
            if sigma_next > 0:
                h = math.log(sigma / sigma_next)
                if last is not None:
                    middle = denoised + (denoised - last) * (h / (2 * h_last))
                last, h_last = denoised, h
            keep = sigma_next / sigma
            x = keep * x + (1 - keep) * middle
        return x

    @torch.inference_mode()
    def pixels(self, latents) -> np.ndarray:
        padded = self.decoder.decode(latents / self.settings.latent_scale)
        return images.crop_to(array(padded), self.settings.image_size)

    def run(self):
        return images.to_pil(self.pixels(self.latents()))

    def check(self) -> dict:
        latents = self.latents()
        return {"latents": array(latents), "pixels": self.pixels(latents)}


class Op(w.Job):
    def __init__(self, spec: dict):
        found = tensors(spec)
        if "w" in found:
            found["w"] = torch.from_numpy(
                np.ascontiguousarray(w.inputs(spec)["w"].transpose(3, 2, 0, 1))
            ).contiguous(memory_format=torch.channels_last if LAST else torch.contiguous_format)
        self.kind, self.gy = spec["kind"], found.pop("gy")
        self.inputs = {name: x.requires_grad_() for name, x in found.items()}

    def run(self) -> torch.Tensor:
        for x in self.inputs.values():
            x.grad = None
        a = list(self.inputs.values())
        if self.kind == "conv":
            y = F.conv2d(*a, padding=1)
        elif self.kind == "norm":
            y = F.silu(F.group_norm(a[0], w.NORM_GROUPS, *a[1:]))
        else:
            y = heads_attention(*a, w.HEADS)
        y.backward(self.gy)
        return y

    def check(self) -> dict:
        y = self.run()
        found = {n: x.grad.numpy() if n == "w" else array(x.grad) for n, x in self.inputs.items()}
        return {"y": array(y)} | found


class Overhead(w.Job):
    def __init__(self, spec: dict):
        self.x = torch.ones(1, requires_grad=True)
        self.backward = spec["backward"]

    def run(self) -> None:
        y = self.x
        for _ in range(w.CHAIN):
            y = y * self.x
        if self.backward:
            torch.autograd.grad(y, [self.x], torch.ones(1))


KINDS = {"sample": Sample, "conv": Op, "norm": Op, "attention": Op, "overhead": Overhead}
KINDS |= dict.fromkeys(w.STAGES, Step)


def build(spec: dict):
    job = KINDS[spec["kind"]](spec)
    job.threads = spec.get("threads") or cpu_count()
    return job


def timed(job, seconds: float) -> float:
    torch.set_num_threads(job.threads)
    return median_run(job.run, seconds)
