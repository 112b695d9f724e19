"""The command line: python -m ldm_numpy train | sample | edit | interpolate | evaluate | export |
info."""

import argparse
import json
import os
import sys
import warnings
from pathlib import Path

from PIL import Image

from . import checkpoint, editing, evaluation, images, model_folder, pipeline
from .backend import choose_device, cpu_count, cupy_is_installed, gpu_problem, tune_cpu
from .data import captions
from .diffusion import OBJECTIVES, SAMPLERS, SCHEDULES, WEIGHTINGS
from .nn import Module
from .training import STAGES, Run, prepare_folder
from .training.export import export as write_model


def main(arguments: list[str] | None = None) -> int:
    """Run one command; returns the exit code. Mistakes of the user are one line and code 2."""
    options = build_parser().parse_args(arguments)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("default", UserWarning)
            warnings.showwarning = lambda message, *_: print(f"warning: {message}", file=sys.stderr)
            options.command(options)
    except BrokenPipeError:  # the reader of our output has left: `... | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except (ValueError, OSError, MemoryError) as error:
        reason = str(error) or "out of memory: ask for fewer images at a time"
        print(f"error: {reason}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        hint = ": --resume continues" if options.command is train_command else ""
        print(f"\ninterrupted{hint}", file=sys.stderr)
        return 130
    return 0


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m ldm_numpy", description="Text to image by latent diffusion, on NumPy."
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def add(name: str, function, text: str) -> argparse.ArgumentParser:
        command = commands.add_parser(name, help=text, description=text)
        command.set_defaults(command=function)
        return command

    def add_device(command) -> None:
        command.add_argument("--device", default="auto", help="auto, cpu or gpu (default auto)")
        command.add_argument("--threads", type=int, help="CPU threads (default: all)")

    model_help = "model folder or finished run (default: the shipped model)"

    train = add("train", train_command, "Train the networks; ends with measured quality.")
    train.add_argument("what", nargs="?", default="all", choices=["all", *STAGES])
    train.add_argument("--data", help="folder with four IDX files (default: embedded MNIST)")
    train.add_argument("--out", default="runs/mnist", help="folder of the run")
    train.add_argument("--seed", type=int, default=0)
    train.add_argument("--steps", type=int, help="length of a single stage")
    train.add_argument("--text-encoder", default="frozen", choices=["frozen", "joint"])
    train.add_argument("--objective", default="edm", help=f"of the U-Net: {', '.join(OBJECTIVES)}")
    train.add_argument(
        "--weighting", default="target", help=f"of its errors: {', '.join(WEIGHTINGS)}"
    )
    train.add_argument("--resume", action="store_true", help="continue from the checkpoints")
    add_device(train)

    sample = add("sample", sample_command, "Draw pictures of prompts.")
    sample.add_argument("prompt", nargs="+", help="what to draw; several make several rows")
    sample.add_argument("--out", default="samples.png", help="picture to write")
    sample.add_argument("--model", help=model_help)
    add_sampling(sample)
    sample.add_argument(
        "--trajectory", help="PNG of the way from noise to picture; a GIF is put beside it"
    )
    add_device(sample)

    edit = add("edit", edit_command, "Change a picture, or fill a hole in it.")
    edit.add_argument("prompt", nargs="+", help="what to make of it; several make several rows")
    edit.add_argument("--image", required=True, help="the picture, grey, of the model's size")
    edit.add_argument("--strength", type=float, help="of the change, 0 to 1 (default 0.6)")
    edit.add_argument("--mask-image", help="white where the picture is to be drawn anew")
    edit.add_argument("--out", default="edited.png", help="picture to write")
    edit.add_argument("--model", help=model_help)
    add_sampling(edit)
    add_device(edit)

    walk = add("interpolate", interpolate_command, "Walk from one prompt or seed to another.")
    walk.add_argument("prompt", help="where to begin")
    walk.add_argument("other_prompt", nargs="?", help="where to end (default: the same)")
    walk.add_argument("--other-seed", type=int, help="seed at the end (default: the same)")
    walk.add_argument("--frames", type=int, default=8)
    walk.add_argument("--out", default="walk.png", help="PNG strip; a GIF is put beside it")
    walk.add_argument("--model", help=model_help)
    add_sampling(walk, per_prompt=False)
    add_device(walk)

    evaluate = add("evaluate", evaluate_command, "Measure a model against prompts and data.")
    evaluate.add_argument("--model", help=model_help)
    evaluate.add_argument("--data", help="folder with four IDX files (default: embedded MNIST)")
    add_guidance(evaluate)
    evaluate.add_argument("--seed", type=int, default=evaluation.SEED, help="of the samples")
    evaluate.add_argument(
        "--per-combination",
        type=int,
        default=evaluation.PER_COMBINATION,
        help="samples of each of the 90 combinations",
    )
    evaluate.add_argument(
        "--frechet-samples", type=int, default=evaluation.FRECHET_SAMPLES, help="for the distance"
    )
    evaluate.add_argument("--out", help="JSON file for the numbers")
    evaluate.add_argument("--pictures", help="PNG file for a grid of all 90 combinations")
    add_device(evaluate)

    export = add("export", export_command, "Write a finished run as a model folder.")
    export.add_argument("run", help="folder of the run")
    export.add_argument("--out", required=True, help="folder to write")

    info = add("info", info_command, "Print the networks of a model.")
    info.add_argument("--model", help=model_help)
    info.add_argument("--depth", type=int, default=2, help="how deep to go into them")
    return parser


def add_guidance(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--guidance-scale", type=float)
    parser.add_argument(
        "--guidance-interval",
        type=float,
        nargs=2,
        metavar=("LOW", "HIGH"),
        help="noise levels at which there is guidance; 0 inf are all",
    )


def add_sampling(parser: argparse.ArgumentParser, per_prompt: bool = True) -> None:
    if per_prompt:
        parser.add_argument("--num-images-per-prompt", type=int, default=8)
    parser.add_argument("--num-inference-steps", type=int)
    add_guidance(parser)
    parser.add_argument("--guidance-rescale", type=float, default=0.0, help="0 to 1")
    parser.add_argument("--negative-prompt", help="what to steer away from")
    parser.add_argument("--sampler", help=", ".join(SAMPLERS))
    parser.add_argument(
        "--schedule", default="karras", help="of noise levels: " + ", ".join(SCHEDULES)
    )
    parser.add_argument("--eta", type=float, help="noise of the sampler ddim, 0 to 1")
    parser.add_argument("--seed", type=int, default=0)


SAMPLING = (
    "num_inference_steps", "guidance_scale", "guidance_interval", "guidance_rescale",
    "negative_prompt", "sampler", "schedule", "eta", "seed",
)  # fmt: skip


def sampling(options) -> dict:
    """Those of the options that the pipeline takes by the same name."""
    return {name: getattr(options, name) for name in SAMPLING}


def train_command(options) -> None:
    if options.steps is not None and options.what == "all":
        raise ValueError("--steps is for a single stage: name it, as in `train unet --steps 600`")
    if options.steps is not None and options.steps < 1:
        raise ValueError(f"--steps must be at least 1, not {options.steps}")
    if options.seed < 0:
        raise ValueError(f"--seed must not be negative, but is {options.seed}")
    device = announce(options)
    folder = Path(options.out)
    prepare_folder(folder)
    run = Run(
        folder,
        options.data,
        options.seed,
        device,
        options.threads,
        {} if options.steps is None else {options.what: options.steps},
        text_encoder=options.text_encoder,
        objective=options.objective,
        weighting=options.weighting,
    )
    run.fit(options.what, options.resume)
    if options.what not in ("all", "unet"):
        print(f"{options.what} is trained; its checkpoint, log and pictures are in {folder}")
        return
    model = folder / "model"
    draw_overview(model_folder.load(model, device, options.threads), folder / "samples.png")
    metrics = evaluation.evaluate(model, options.data, device, options.threads, say=print)
    write_json(model / "metrics.json", metrics)
    print("\n".join(evaluation.verdict(metrics)))
    print(f"model: {model}   pictures: {folder / 'samples.png'}")


def sample_command(options) -> None:
    out = writable(options.out, ".png")
    strip = writable(options.trajectory, ".png") if options.trajectory else None
    if strip and strip.resolve() == out.resolve():
        raise ValueError(f"--out and --trajectory both name {out}")
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


def save_rows(pictures, options, out: Path) -> tuple[list[str], int]:
    """Write a grid with a row a prompt; returns the rows' labels and the number of columns."""
    labels = [prompt or "(anything)" for prompt in options.prompt]
    columns = options.num_images_per_prompt
    images.save_png(images.grid(images.from_pil(pictures), columns, row_labels=labels), out)
    print(f"wrote {out}")
    return labels, columns


def edit_command(options) -> None:
    out = writable(options.out, ".png")
    image = read_picture(options.image)
    arguments = {"num_images_per_prompt": options.num_images_per_prompt} | sampling(options)
    if options.mask_image is None:
        strength = 0.6 if options.strength is None else options.strength
        device = announce(options)
        pipe = model_folder.load(options.model, device, options.threads)
        pictures = editing.image_to_image(
            pipe, options.prompt, image, strength=strength, **arguments
        )
    else:
        if options.strength is not None:
            raise ValueError("--strength is for changing a whole picture, not with --mask-image")
        mask = read_picture(options.mask_image)
        device = announce(options)
        pipe = model_folder.load(options.model, device, options.threads)
        pictures = editing.inpaint(pipe, options.prompt, image, mask, **arguments)
    save_rows(pictures, options, out)


def interpolate_command(options) -> None:
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


def read_picture(path: str) -> Image.Image:
    """A picture file; ValueError where there is none."""
    try:
        with Image.open(path) as picture:
            picture.load()
            return picture
    except FileNotFoundError:
        raise ValueError(f"{path} does not exist") from None
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise ValueError(f"{path} cannot be read as a picture: {error}") from None


def evaluate_command(options) -> None:
    out = writable(options.out, ".json") if options.out else None
    pictures = writable(options.pictures, ".png") if options.pictures else None
    device = announce(options)
    if pictures:
        draw_overview(model_folder.load(options.model, device, options.threads), pictures)
        print(f"wrote {pictures}")
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
        say=print,
    )
    print("\n".join(evaluation.verdict(metrics)))
    if out:
        write_json(out, metrics)
        print(f"wrote {out}")


def export_command(options) -> None:
    run, out = Path(options.run), Path(options.out)
    prepare_folder(out)
    path = run / "model" / "metrics.json"
    measured = path.read_bytes() if path.is_file() else None
    write_model(run, out)
    settings = model_folder.read_config(out)["pipeline"]
    if measured and same_settings(json.loads(measured), settings):
        checkpoint.write_atomically(out / "metrics.json", measured)
    print(f"wrote {out}")


def same_settings(metrics: dict, settings: dict) -> bool:
    """Whether numbers that `train` measured were taken with the settings that are exported."""
    names = ("guidance_scale", "guidance_interval", "sampler", "num_inference_steps")
    return all(metrics.get(name) == settings[name] for name in names)


def info_command(options) -> None:
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


def draw_overview(pipe: pipeline.TextToImage, path: Path) -> None:
    """A grid of the ten digits in nine styles."""
    styles = [(weight, slant) for weight in range(3) for slant in range(3)]
    prompts = [captions.caption(digit, *style) for style in styles for digit in range(10)]
    labels = [captions.caption(0, *style).replace("zero", "...") for style in styles]
    pictures = images.from_pil(pipe(prompts))
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
    checkpoint.write_atomically(path, (json.dumps(values, indent=2) + "\n").encode())


if __name__ == "__main__":
    sys.exit(main())
