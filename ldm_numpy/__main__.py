"""The command line: python -m ldm_numpy train | sample | edit | interpolate | invert | evaluate |
export | info."""

import argparse
import os
import signal
import sys
import warnings

from . import commands, evaluation
from .diffusion import OBJECTIVES, SAMPLERS, SCHEDULES, WEIGHTINGS
from .training import BESIDE, STAGES
from .training.stop import terminable


def main(arguments: list[str] | None = None) -> int:
    """Run one command; returns the exit code. Mistakes of the user are one line and code 2; signals
    give what shells say of them, 130 for Ctrl-C and 143 for SIGTERM."""
    parser = build_parser()
    options = parser.parse_args(arguments)
    if [] in vars(options).values():  # what Python 3.11 makes of --name=--
        parser.error("an option's value cannot be --")
    try:
        with terminable(), warnings.catch_warnings():
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
    except KeyboardInterrupt as stopped:
        hint = ": --resume continues" if options.command is commands.train else ""
        print(f"\n{str(stopped) or 'interrupted'}{hint}", file=sys.stderr)
        return 128 + getattr(stopped, "signal", signal.SIGINT)
    return 0


class Parser(argparse.ArgumentParser):
    """One whose errors are one line."""

    def error(self, message: str):
        self.exit(2, f"error: {message}; {self.prog} --help says more\n")


def build_parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="python -m ldm_numpy", description="Text to image by latent diffusion, on NumPy."
    )
    choices = parser.add_subparsers(required=True, metavar="COMMAND")

    def add(name: str, function, text: str) -> argparse.ArgumentParser:
        command = choices.add_parser(name, help=text, description=text)
        command.set_defaults(command=function)
        return command

    def add_device(command) -> None:
        command.add_argument("--device", default="auto", help="auto, cpu or gpu (default auto)")
        command.add_argument("--threads", type=int, help="CPU threads (default: all)")

    model_help = "model folder or finished run (default: the shipped model)"

    train = add("train", commands.train, "Train the networks; ends with measured quality.")
    train.add_argument("what", nargs="?", default="all", choices=["all", *STAGES, *BESIDE])
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

    sample = add("sample", commands.sample, "Draw pictures of prompts.")
    sample.add_argument("prompt", nargs="+", help="what to draw; several make several rows")
    sample.add_argument("--out", default="samples.png", help="picture to write")
    sample.add_argument("--model", help=model_help)
    add_sampling(sample)
    sample.add_argument(
        "--attention", metavar="PNG", help="where each word acts, on the first picture of a prompt"
    )
    sample.add_argument(
        "--trajectory", help="PNG of the way from noise to picture; a GIF is put beside it"
    )
    add_device(sample)

    edit = add("edit", commands.edit, "Change a picture, or fill a hole in it.")
    edit.add_argument("prompt", nargs="+", help="what to make of it; several make several rows")
    edit.add_argument("--image", required=True, help="the picture, grey, of the model's size")
    edit.add_argument("--strength", type=float, help="of the change, 0 to 1 (default 0.6)")
    edit.add_argument("--mask-image", help="white where the picture is to be drawn anew")
    edit.add_argument(
        "--resamplings", type=int, help="turns a step, so that new and old fit (default 5)"
    )
    edit.add_argument("--out", default="edited.png", help="picture to write")
    edit.add_argument("--model", help=model_help)
    add_sampling(edit)
    add_device(edit)

    walk = add("interpolate", commands.interpolate, "Walk from one prompt or seed to another.")
    walk.add_argument("prompt", help="where to begin")
    walk.add_argument("other_prompt", nargs="?", help="where to end (default: the same)")
    walk.add_argument("--other-seed", type=int, help="seed at the end (default: the same)")
    walk.add_argument("--frames", type=int, default=8)
    walk.add_argument("--out", default="walk.png", help="PNG strip; a GIF is put beside it")
    walk.add_argument("--model", help=model_help)
    add_sampling(walk, per_prompt=False)
    add_device(walk)

    invert = add("invert", commands.invert, "Follow a picture up to its noise, and back down.")
    invert.add_argument("prompt", help="what the picture shows")
    invert.add_argument("other_prompt", nargs="?", help="for the way back (default: the same)")
    invert.add_argument("--image", required=True, help="the picture, grey, of the model's size")
    invert.add_argument("--num-inference-steps", type=int, default=50)
    invert.add_argument("--method", default="heun", help="heun, or euler: DDIM's inversion")
    invert.add_argument("--guidance-scale", type=float, default=1.0)
    invert.add_argument("--out", default="inverted.png", help="picture to write")
    invert.add_argument("--model", help=model_help)
    add_device(invert)

    evaluate = add("evaluate", commands.evaluate, "Measure a model against prompts and data.")
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
    evaluate.add_argument(
        "--likelihood", type=int, default=0, metavar="N",
        help="bits per dimension of so many test digits (of a model of pixels)",
    )  # fmt: skip
    evaluate.add_argument("--out", help="JSON file for the numbers")
    evaluate.add_argument("--pictures", help="PNG file for a grid of all 90 combinations")
    add_device(evaluate)

    export = add("export", commands.export, "Write a finished run as a model folder.")
    export.add_argument("run", help="folder of the run")
    export.add_argument("--out", required=True, help="folder to write")

    info = add("info", commands.info, "Print the networks of a model.")
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


if __name__ == "__main__":
    sys.exit(main())
