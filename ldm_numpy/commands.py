"""What the command line's commands do. Each is given the parsed options, checks what it can before
any work, and raises ValueError, in one line, for what is wrong."""

import json
from pathlib import Path

import numpy as np

from . import attention_maps, editing, evaluation, images, model_folder, pipeline
from .backend import choose_device, cpu_count, cupy_is_installed, gpu_problem, tune_cpu
from .data import captions
from .files import read_json, write_atomically
from .nn import Module
from .training import MODELS, Run, prepare_folder
from .training.export import export as write_model
from .training.folder import locked

SAMPLING = (
    "num_inference_steps", "guidance_scale", "guidance_interval", "guidance_rescale",
    "negative_prompt", "sampler", "schedule", "eta", "seed",
)  # fmt: skip


def sampling(options) -> dict:
    """Those of the options that the pipeline takes by the same name."""
    return {name: getattr(options, name) for name in SAMPLING}


def train(options) -> None:
    if options.steps is not None and options.what == "all":
        raise ValueError("--steps is for a single stage: name it, as in `train unet --steps 600`")
    if options.steps is not None and options.steps < 1:
        raise ValueError(f"--steps must be at least 1, not {options.steps}")
    if options.seed < 0:
        raise ValueError(f"--seed must not be negative, but is {options.seed}")
    of_unet = {name: getattr(options, name) for name in ("text_encoder", "objective", "weighting")}
    usual = {"text_encoder": "frozen", "objective": "edm", "weighting": "target"}
    if options.what not in ("all", *MODELS) and of_unet != usual:
        named = next(name for name in usual if of_unet[name] != usual[name]).replace("_", "-")
        raise ValueError(f"--{named} is for a U-Net, not for {options.what}")
    device = announce(options)
    folder = Path(options.out)
    run = Run(
        folder,
        options.data,
        options.seed,
        device,
        options.threads,
        {} if options.steps is None else {options.what: options.steps},
        **of_unet,
    )
    prepare_folder(folder)
    with locked(folder):
        run.fit(options.what, options.resume)
        last = "unet" if options.what == "all" else options.what
        if last not in MODELS:
            print(f"{last} is trained; its checkpoint, log and pictures are in {folder}")
            return
        model = folder / MODELS[last]
        pictures = folder / ("samples.png" if last == "unet" else f"{last}_samples.png")
        draw_overview(model_folder.load(model, device, options.threads), pictures)
        metrics = evaluation.evaluate(model, options.data, device, options.threads, say=print)
        write_json(model / "metrics.json", metrics)
        print("\n".join(evaluation.verdict(metrics)))
        print(f"model: {model}   pictures: {pictures}")


def sample(options) -> None:
    out = writable(options.out, ".png")
    strip = writable(options.trajectory, ".png") if options.trajectory is not None else None
    maps = writable(options.attention, ".png") if options.attention is not None else None
    named = [path.resolve() for path in (out, strip, maps) if path]
    if len(set(named)) < len(named):
        raise ValueError("--out, --trajectory and --attention must name different files")
    animation = writable(strip.with_suffix(".gif"), ".gif") if strip else None
    device = announce(options)
    pipe = model_folder.load(options.model, device, options.threads)
    frames = []

    def remember(step: int, sigma: float, latents) -> None:
        frames.append(pipe.trajectory(latents, sigma))

    pictures = pipe(
        options.prompt,
        num_images_per_prompt=options.num_images_per_prompt,
        callback=remember if strip else None,
        **sampling(options),
    )
    labels, columns = save_rows(pictures, options, out)
    if strip:
        firsts = [frame[::columns] for frame in frames]  # one picture a prompt
        images.save_png(images.strip(firsts, scale=2, row_labels=labels), strip)
        images.save_gif([images.grid(frame, columns) for frame in frames], animation)
        print(f"wrote {strip} and {animation}")
    if maps:
        # All are drawn again, for a picture's noise depends on its place.
        prompts = [prompt for prompt in options.prompt for _ in range(columns)]
        drawn = attention_maps.word_maps(pipe, prompts, **sampling(options))
        firsts = [part[::columns] for part in drawn]
        images.save_png(attention_maps.figure(*firsts), maps)
        print(f"wrote {maps}")


def save_rows(pictures, options, out: Path) -> tuple[list[str], int]:
    """Write a grid with a row a prompt; returns the rows' labels and the number of columns."""
    labels = [prompt or "(anything)" for prompt in options.prompt]
    columns = options.num_images_per_prompt
    images.save_png(images.grid(images.from_pil(pictures), columns, row_labels=labels), out)
    print(f"wrote {out}")
    return labels, columns


def edit(options) -> None:
    out = writable(options.out, ".png")
    image = images.read_png(options.image)
    arguments = {"num_images_per_prompt": options.num_images_per_prompt} | sampling(options)
    if options.mask_image is None:
        if options.resamplings is not None:
            raise ValueError("--resamplings is for filling a hole: with --mask-image")
        strength = 0.6 if options.strength is None else options.strength
        device = announce(options)
        pipe = model_folder.load(options.model, device, options.threads)
        pictures = editing.image_to_image(
            pipe, options.prompt, image, strength=strength, **arguments
        )
    else:
        if options.strength is not None:
            raise ValueError("--strength is for changing a whole picture, not with --mask-image")
        mask = images.read_png(options.mask_image)
        device = announce(options)
        pipe = model_folder.load(options.model, device, options.threads)
        times = {} if options.resamplings is None else {"resamplings": options.resamplings}
        pictures = editing.inpaint(pipe, options.prompt, image, mask, **times, **arguments)
    save_rows(pictures, options, out)


def interpolate(options) -> None:
    out = writable(options.out, ".png")
    animation = writable(out.with_suffix(".gif"), ".gif")
    device = announce(options)
    pictures = editing.interpolate(
        model_folder.load(options.model, device, options.threads),
        options.prompt,
        options.other_prompt,
        other_seed=options.other_seed,
        frames=options.frames,
        **sampling(options),
    )
    frames = images.from_pil(pictures)[:, None]  # (frames, 1, 28, 28, 1): one row
    images.save_png(images.strip(frames, scale=2), out)
    images.save_gif([images.grid(frame, 1) for frame in [*frames, *frames[-2:0:-1]]], animation)
    print(f"wrote {out} and {animation}")


def invert(options) -> None:
    out = writable(options.out, ".png")
    image = images.read_png(options.image)
    back = options.prompt if options.other_prompt is None else options.other_prompt
    settings = {"num_inference_steps": options.num_inference_steps, "method": options.method,
                "guidance_scale": options.guidance_scale}  # fmt: skip
    device = announce(options)
    pipe = model_folder.load(options.model, device, options.threads)
    noise = editing.invert(pipe, options.prompt, image, **settings)
    found = editing.reconstruct(pipe, back, noise, **settings)
    given = images.from_pil([image])
    if back == options.prompt:
        clean = pipe.encode(given)
        error = float(((found - clean) ** 2).sum() / (clean**2).sum()) ** 0.5
        print(f"relative error of the latent: {error:.5f}")
    pictures = np.concatenate([given, pipe.decode(found)])
    images.save_png(images.grid(pictures, 2, row_labels=[back or "(anything)"]), out)
    print(f"wrote {out}: the picture, and what its noise gives back")


def evaluate(options) -> None:
    out = writable(options.out, ".json") if options.out is not None else None
    pictures = writable(options.pictures, ".png") if options.pictures is not None else None
    device = announce(options)
    metrics = evaluation.evaluate(
        options.model,
        options.data,
        device,
        options.threads,
        options.per_combination,
        options.frechet_samples,
        options.guidance_scale,
        options.guidance_interval,
        options.seed,
        options.likelihood,
        say=print,
    )
    print("\n".join(evaluation.verdict(metrics)))
    if out:
        write_json(out, metrics)
        print(f"wrote {out}")
    if pictures:
        pipe = model_folder.load(options.model, device, options.threads)
        drawn_as = ("guidance_scale", "guidance_interval", "seed")
        draw_overview(pipe, pictures, **{name: getattr(options, name) for name in drawn_as})
        print(f"wrote {pictures}")


def export(options) -> None:
    run, out = Path(options.run), Path(options.out)
    prepare_folder(out)
    path = run / "model" / "metrics.json"
    measured = read_json(path, "what was measured") if path.is_file() else {}
    if not isinstance(measured, dict):
        raise ValueError(f"{path} must hold a JSON object, not {type(measured).__name__}")
    write_model(run, out)
    settings = model_folder.read_config(out)["pipeline"]
    if same_settings(measured, settings):
        write_json(out / "metrics.json", measured)
    print(f"wrote {out}")


def same_settings(metrics: dict, settings: dict) -> bool:
    """Whether numbers that `train` measured were taken with the settings that are exported."""
    names = ("guidance_scale", "guidance_interval", "sampler", "num_inference_steps")
    return all(metrics.get(name) == settings[name] for name in names)


def info(options) -> None:
    if options.depth < 0:
        raise ValueError(f"--depth must not be negative, but is {options.depth}")
    folder = model_folder.find_model(options.model)
    config = model_folder.read_config(folder)
    for name in (name for name in model_folder.BUILDERS if name in config):
        describe(name, model_folder.load_network(folder, config, name), options.depth)


def describe(name: str, module: Module, depth: int, indent: int = 0) -> None:
    """Print a module, its parameters' shapes and what is inside, `depth` levels down."""
    title = f"{'  ' * indent}{name} ({type(module).__name__})"
    shapes = ", ".join(
        f"{key} {'x'.join(map(str, p.shape)) or '1'}"
        for key, p in module.named_parameters()
        if "." not in key
    )
    print(f"{title:52} {module.count_parameters():>11,}   {shapes}".rstrip())
    if depth > 0:
        for child_name, child in module.named_children():
            describe(child_name, child, depth - 1, indent + 1)


def announce(options) -> str:
    """Choose the device, say which, and get the processor ready; returns its name."""
    if options.threads is not None and options.threads < 1:
        raise ValueError(f"--threads must be at least 1, not {options.threads}")
    device = choose_device(options.device)
    threads = options.threads or cpu_count()
    note = f", {threads} threads" if device == "cpu" else ""
    if device == "cpu" and options.device == "auto" and cupy_is_installed():
        note += f" ({gpu_problem()})"
    print(f"device: {device}{note}", flush=True)
    if device == "cpu":
        tune_cpu()
    return device


def draw_overview(pipe: pipeline.TextToImage, path: Path, **options) -> None:
    """A grid of the ten digits in nine styles; options as of a call of the pipeline."""
    styles = [(weight, slant) for weight in range(3) for slant in range(3)]
    prompts = [captions.caption(digit, *style) for style in styles for digit in range(10)]
    labels = [captions.caption(0, *style).replace("zero", "...") for style in styles]
    pictures = images.from_pil(pipe(prompts, **options))
    images.save_png(images.grid(pictures, 10, scale=2, row_labels=labels), path)


def writable(path: str | Path, suffix: str) -> Path:
    """`path`, once its folder is known to take files; ValueError otherwise."""
    result = Path(path)
    if result.suffix != suffix:
        raise ValueError(f"{result}: the name must end in {suffix}")
    if result.is_dir():
        raise ValueError(f"{result} is a folder: name a file in it")
    prepare_folder(result.parent)
    return result


def write_json(path: Path, values: dict) -> None:
    write_atomically(path, (json.dumps(values, indent=2) + "\n").encode())
