"""Our side of every workload: the library's parts, used as `ldm_numpy.training` uses them."""

import dataclasses
import functools
import time
from contextlib import nullcontext

import numpy as np

from ldm_numpy import images, ops
from ldm_numpy.backend import blas_threads
from ldm_numpy.diffusion.denoiser import Denoiser, denoising_loss
from ldm_numpy.diffusion.guidance import EVERYWHERE
from ldm_numpy.nn import to_torch_layout
from ldm_numpy.parallel import Shards
from ldm_numpy.pipeline import PipelineConfig, TextToImage
from ldm_numpy.tensor import Tensor, gradients, no_grad
from ldm_numpy.training import loop
from ldm_numpy.training.clip import MAX_SCALE

from . import workloads as w


def on_all_ranks(method):
    """The method, run by all processes together: rank 0 is asked, and tells the others."""

    @functools.wraps(method)
    def call(self):
        if self.shards.leads:
            self.ring.share(method.__name__)
        return method(self)

    return call


class Step(w.Job):
    """One training step: forward and backward in shards, clip, AdamW (or spec's "optimizer"), EMA;
    over processes."""

    def __init__(self, spec: dict):
        self.spec = spec
        optimizer = spec.get("optimizer", "adamw")  # PyTorch's users have no Muon
        self.config = dataclasses.replace(w.STAGES[spec["kind"]], optimizer=optimizer)
        self.network = w.network(spec["kind"], spec)
        self.inputs = w.inputs(spec)

    def start(self) -> None:
        """What a training allocates before its first step."""
        stage = loop.Stage()
        stage.config, stage.networks = self.config, {"network": self.network}
        here = Shards(w.shard_size(self.spec), self.spec.get("threads"))
        self.ring, self.shards = loop.ranks(here, self.spec["batch"])
        self.optimizer, self.ema = loop.prepare(stage, self.shards)
        self.ring.fork()
        if not self.shards.leads:
            with self.ring, blas_threads(1):
                while method := self.ring.share():
                    getattr(self, method)()

    def end(self) -> None:
        """End the other processes."""
        with self.ring:
            self.ring.share("")

    @on_all_ranks
    def gradients(self):
        """Fill the gradients; returns the batch's loss."""
        a, n, parameters = self.inputs, self.spec["batch"], self.optimizer.parameters
        self.optimizer.zero_grad()
        if self.spec["kind"] == "clip":
            scale = self.network.logit_scale
            own = [p for p in parameters if p is not scale]
            return self.shards.coupled_backward(self.towers, self.contrastive, n, own, [scale])
        loss = {"unet": self.unet_loss, "autoencoder": self.autoencoder_loss}[self.spec["kind"]]
        return self.shards.backward(lambda rows: [loss(a, rows)], n, parameters)[0]

    def unet_loss(self, a, rows):
        denoiser = Denoiser(self.network, 1.0)
        return denoising_loss(denoiser, a["clean"][rows], a["sigma"][rows], a["noise"][rows],
                        a["cond"][rows])  # fmt: skip

    def autoencoder_loss(self, a, rows):
        x = a["pixels"][rows]
        mean, logvar = self.network.encode(x)
        decoded = self.network.decode(mean + (logvar * 0.5).exp() * a["noise"][rows])
        kl = ops.gaussian_kl(mean, logvar)
        return ops.mse_loss(decoded, x) + kl * (self.config.kl_weight / w.SIDE**2)

    def towers(self, rows):
        pixels, ids = self.inputs["pixels"][rows], self.inputs["ids"][rows]
        return [self.network.encode_image(pixels), self.network.encode_text(ids)]

    def contrastive(self, image, text):
        return ops.contrastive_loss(image, text, self.network.logit_scale, self.inputs["positives"])

    @on_all_ranks
    def update(self) -> None:
        self.optimizer.clip_gradient(self.config.clip_norm)
        self.optimizer.step(w.LEARNING_RATE)
        if self.spec["kind"] == "clip":
            scale = self.network.logit_scale.data
            scale[...] = scale.clip(0, MAX_SCALE)
        self.ema.update()

    def run(self) -> None:
        self.gradients()
        self.update()

    def outputs(self) -> dict:
        """What the network says of the first rows."""
        a, rows = self.inputs, slice(0, 32)
        with no_grad():
            if self.spec["kind"] == "unet":
                y = self.network(a["clean"][rows], a["sigma"][rows], a["cond"][rows])
                return {"output": y.data}
            if self.spec["kind"] == "autoencoder":
                mean, logvar = self.network.encode(a["pixels"][rows])
                decoded = self.network.decode(mean)
                return {"mean": mean.data, "logvar": logvar.data, "decoded": decoded.data}
            image, text = self.towers(rows)
            return {"image": image.data, "text": text.data}

    def check(self) -> dict:
        result = self.outputs()
        result["loss"] = np.asarray(self.gradients())
        found = {name: p.grad.copy() for name, p in self.network.named_parameters()}
        result |= prefixed("gradient/", to_torch_layout(self.network, found))
        self.update()
        self.run()
        result |= self.state("weights/")
        with self.ema.applied():
            result |= self.state("average/")
        return result

    def state(self, prefix: str) -> dict:
        return prefixed(prefix, to_torch_layout(self.network, self.network.state_dict()))


def prefixed(prefix: str, arrays: dict) -> dict:
    return {prefix + name: array for name, array in arrays.items()}


class Sample(w.Job):
    """Prompts to pictures, through the pipeline."""

    def __init__(self, spec: dict):
        self.spec = spec
        settings = PipelineConfig(padded_size=w.SIDE, latent_size=w.LATENT)
        self.pipeline = TextToImage(
            w.network("unet", spec),
            w.network("autoencoder", spec),
            w.network("text", spec),
            w.tokenizer(),
            settings,
        )
        self.options = {
            "num_inference_steps": spec["steps"], "sampler": "dpmpp_2m",
            "guidance_scale": 2.0, "guidance_interval": EVERYWHERE,
        }  # fmt: skip

    def run(self):
        count = self.spec["batch"]
        return self.pipeline(w.PROMPT, num_images_per_prompt=count, **self.options)

    def check(self) -> dict:
        latents = self.pipeline.sample([w.PROMPT] * self.spec["batch"], **self.options)
        pixels = self.pipeline.decode(latents)
        drawn = [np.asarray(picture) for picture in self.run()]
        expected = [np.asarray(picture) for picture in images.to_pil(pixels)]
        assert np.array_equal(drawn, expected)
        return {"latents": latents, "pixels": pixels}


class Op(w.Job):
    """One operation, forward and backward, in shards over threads."""

    def __init__(self, spec: dict):
        self.spec, self.inputs = spec, w.inputs(spec)
        self.shards = Shards(w.shard_size(spec), spec.get("threads"))

    def apply(self, tensors):
        if self.spec["kind"] == "conv":
            return ops.conv2d(*tensors, padding=1)
        if self.spec["kind"] == "norm":
            return ops.group_norm(*tensors, groups=w.NORM_GROUPS, silu=True)
        return ops.attention(*tensors, heads=w.HEADS)

    def run(self) -> dict:
        """Results by name: y, and a gradient an input."""
        names = [name for name in self.inputs if name != "gy"]
        batched = {name: len(self.inputs[name]) == self.spec["batch"] and name in "xqkv"
                   for name in names}  # fmt: skip

        def work(rows):
            tensors = [
                Tensor(self.inputs[n][rows] if batched[n] else self.inputs[n], requires_grad=True)
                for n in names
            ]
            y = self.apply(tensors)
            return y.data, gradients(y, tensors, self.inputs["gy"][rows])

        parts = list(self.shards.map(work, self.shards.slices(self.spec["batch"])))
        result = {"y": [y for y, _ in parts]}
        for i, name in enumerate(names):
            found = [g[i] for _, g in parts]
            result[name] = found if batched[name] else sum(found[1:], found[0])
        return result

    def check(self) -> dict:
        joined = {
            name: np.concatenate(value) if isinstance(value, list) else value
            for name, value in self.run().items()
        }
        if "w" in joined:
            joined["w"] = joined["w"].transpose(3, 2, 0, 1)
        return joined


class Sgemm(w.Job):
    """What the matrix library can do: so many threads, each with its own products, one BLAS thread
    each. `shapes`: (m, k, n), arrays reused."""

    def __init__(self, spec: dict):
        self.threads, self.shapes = spec["threads"], [tuple(s) for s in spec["shapes"]]
        sizes = [max(s) for s in zip(*[(m * k, k * n, m * n) for m, k, n in self.shapes])]
        rng = np.random.default_rng(0)
        self.buffers = [
            [rng.standard_normal(size, np.float32) for size in sizes] for _ in range(self.threads)
        ]
        self.shards = Shards(None, self.threads)

    def run(self) -> None:
        def work(buffers):
            a, b, c = buffers
            for m, k, n in self.shapes:
                left, right = a[: m * k].reshape(m, k), b[: k * n].reshape(k, n)
                np.matmul(left, right, out=c[: m * n].reshape(m, n))

        list(self.shards.map(work, self.buffers))


class Overhead(w.Job):
    """What Python costs an operation: a chain of products of one number each."""

    def __init__(self, spec: dict):
        self.x = Tensor(np.ones(1, np.float32), requires_grad=True)
        self.backward = spec["backward"]

    def run(self) -> None:
        y = self.x
        for _ in range(w.CHAIN):
            y = y * self.x
        if self.backward:
            gradients(y, [self.x], np.ones(1, np.float32))


KINDS = {
    "sample": Sample, "conv": Op, "norm": Op, "attention": Op, "sgemm": Sgemm, "overhead": Overhead
} | dict.fromkeys(w.STAGES, Step)  # fmt: skip


def build(spec: dict):
    return KINDS[spec["kind"]](spec)


def timed(job, seconds: float) -> float:
    """Median seconds of a run, of as many as fit into `seconds`."""
    # As training does it; the pipeline limits BLAS by itself.
    with nullcontext() if isinstance(job, Sample) else blas_threads(1):
        return median_run(job.run, seconds)


def median_run(run, seconds: float) -> float:
    times, began = [], time.perf_counter()
    while not times or time.perf_counter() - began < seconds:
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return float(np.median(times))
