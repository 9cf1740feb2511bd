"""`cryohush-topaz`: the public command line of `topaz denoise`, for programs that call Topaz themselves.

Whatever takes the path of a Topaz executable can so use the models of cryohush. Options that mean something
here are obeyed; the others, and unknown ones, are named on stderr and ignored. Written from Topaz-Denoise's
documented command line (version 0.3.20), none of its code.

References
----------
Bepler et al. (2020), doi:10.1038/s41467-020-18952-1.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from .errors import ConfigurationError, CryohushError, InputError

if TYPE_CHECKING:
    from .models.weights import LoadedModel

DEFAULT_SUFFIX = ".denoised"
MODEL = "general"
# Networks of Topaz by name: each stands for ours.
TOPAZ_MODELS = ("unet", "unet-small", "fcnet", "affine", "unet-v0.2.1", "unet-0.2.1", "L1", "L2", "SA")
# What has no meaning here: with a value, and without.
IGNORED = [
    "--save-prefix",
    "--save-interval",
    "--holdout",
    "--lowpass",
    "--gaussian",
    "--inv-gaussian",
    "--deconv-patch",
    "--pixel-cutoff",
    "--patch-size",
    "-s",
    "--patch-padding",
    "-p",
    "--method",
    "--arch",
    "--optim",
    "--lr",
    "--criteria",
    "--crop",
    "-c",
    "--batch-size",
    "--num-epochs",
    "--num-workers",
]
IGNORED_FLAGS = ("--preload", "--deconvolve")


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of `cryohush-topaz denoise`."""
    parser = argparse.ArgumentParser(prog="cryohush-topaz denoise", allow_abbrev=False)
    parser.add_argument("micrographs", nargs="*", help="MRC files; with --stack one stack")
    parser.add_argument("-o", "--output", default="", help="folder; with --stack the file to write")
    parser.add_argument("--suffix", default="", help=f"of the names; {DEFAULT_SUFFIX} without a folder")
    parser.add_argument("--format", default="mrc", help="mrc; others are refused")
    parser.add_argument("--stack", action="store_true", help="the file is a stack of particles")
    parser.add_argument("--normalize", action="store_true", help="mean 0 and standard deviation 1")
    parser.add_argument("-m", "--model", nargs="+", default=[MODEL], help="a model of cryohush")
    parser.add_argument("-d", "--device", type=int, default=None, help="GPU; below 0 the CPU")
    parser.add_argument("-j", "--num-threads", type=int, default=0, help="CPU threads; 0 for all")
    for flag in ("-a/--dir-a", "-b/--dir-b", "--hdf"):
        parser.add_argument(*flag.split("/"), help="training, which `cryohush train` does")
    return parser


def split_ignored(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """Return the arguments that are obeyed, and the names of the options that are not.

    Behind an option that nobody knows a word is taken for its value unless it is a file.
    """
    known = {option for action in build_parser()._actions for option in action.option_strings}
    kept: list[str] = []
    ignored: list[str] = []
    words = list(arguments)
    while words:
        word = words.pop(0)
        name, equals, _ = word.partition("=")
        is_number = word.lstrip("-").replace(".", "", 1).isdigit()
        if not word.startswith("-") or name in known or is_number:
            kept.append(word)
            continue
        ignored.append(name)
        if equals or name in IGNORED_FLAGS or not words:
            continue
        if name in IGNORED or (not words[0].startswith("-") and not Path(words[0]).exists()):
            words.pop(0)
    return kept, ignored


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; 0 on success, 1 on failure, 2 for wrong usage."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if arguments[:1] in (["--version"], ["-h"], ["--help"]) or arguments[:1] != ["denoise"]:
        print("usage: cryohush-topaz denoise [options] MICROGRAPHS; see cryohush-topaz denoise --help")
        return 0 if arguments[:1] in (["--version"], ["-h"], ["--help"]) else 2
    kept, ignored = split_ignored(arguments[1:])
    given = build_parser().parse_args(kept)
    if ignored:
        print(f"# ignored: {', '.join(dict.fromkeys(ignored))}", file=sys.stderr)
    try:
        _denoise(given)
    except CryohushError as error:
        print(f"ERROR: {error}", file=sys.stderr)
        return 1
    return 0


def _denoise(given: argparse.Namespace) -> None:
    if given.dir_a or given.dir_b or given.hdf:
        raise ConfigurationError("this program does not train. Use `cryohush train noise2noise`.")
    if given.format != "mrc":
        raise ConfigurationError(f"--format: expected mrc, found {given.format!r}.")
    paths = [Path(name) for name in given.micrographs]
    if given.stack and (len(paths) != 1 or not given.output):
        raise ConfigurationError("--stack: expected one stack and the file to write (--output).")
    targets = [Path(given.output)] if given.stack else _targets(paths, given.output, given.suffix)
    for path, target in zip(paths, targets, strict=True):
        if target.exists() and path.exists() and target.samefile(path):
            raise InputError("is the input itself, which is never written to.", path=target)
    # heavy: torch
    import torch

    from .inference.devices import choose_precision, resolve_devices
    from .models.weights import load_model

    if given.num_threads > 0:
        torch.set_num_threads(given.num_threads)
    device = "auto" if given.device is None else "cpu" if given.device < 0 else f"cuda:{given.device}"
    if device.startswith("cuda") and not torch.cuda.is_available():
        print(f"# no GPU is to be had: GPU {given.device} was asked for, the CPU is used", file=sys.stderr)
        device = "cpu"
    name = MODEL if given.model[0] in TOPAZ_MODELS or given.model[0].endswith(".sav") else given.model[0]
    if name != given.model[0] or len(given.model) > 1:
        print(f"# model {name} of cryohush instead of {', '.join(given.model)}", file=sys.stderr)
    model = load_model(name)
    used = resolve_devices(device)[0]
    precision, _ = choose_precision(used, "auto")
    print(f"# device {used}, model {model.name}", file=sys.stderr)
    for number, (path, target) in enumerate(zip(paths, targets, strict=True), 1):
        _denoise_file(path, target, given, model, str(used), precision)
        if not given.stack:
            _completed(number, len(paths))
    print(file=sys.stderr)
    if given.stack:
        print(f"# writing to {given.output}", file=sys.stderr)


def _completed(number: int, total: int) -> None:
    """Say how far it is in Topaz's words, which other programs may look for."""
    print(f"\r# {number} of {total} completed.", end="", file=sys.stderr, flush=True)


def _targets(paths: Sequence[Path], output: str, suffix: str) -> list[Path]:
    """Return the file that each micrograph is written to: beside it, or in the folder."""
    if output:
        return [Path(output) / f"{path.stem}{suffix}.mrc" for path in paths]
    return [path.with_name(f"{path.stem}{suffix or DEFAULT_SUFFIX}.mrc") for path in paths]


def _denoise_file(
    path: Path, target: Path, given: argparse.Namespace, model: LoadedModel, device: str, precision: object
) -> None:
    """Denoise one file, block by block, and write it whole or not at all."""
    import numpy as np

    from .api import denoise, denoise_micrograph
    from .io.mrc import StackReader, StackWriter
    from .io.mrc_header import label_of_denoised

    target.parent.mkdir(parents=True, exist_ok=True)
    with StackReader(path) as reader:
        if not given.stack and reader.n_images != 1:
            raise InputError(
                f"expected a micrograph, found {reader.n_images} images.", path=path, remedy="Give --stack."
            )
        if given.stack:
            print(f"# denoising stack with shape: {reader.shape}", file=sys.stderr)
        label = label_of_denoised(Path(model.name).name)
        with StackWriter(
            target, reader.shape, pixel_size_angstrom=reader.pixel_size_angstrom, label=label
        ) as writer:
            for first in range(0, reader.n_images, 64):
                images = reader.read(range(first, min(first + 64, reader.n_images)))
                how = {"model": model, "device": device, "precision": precision}
                made = denoise(images, **how) if given.stack else denoise_micrograph(images[0], **how)[None]  # type: ignore[arg-type]
                if given.normalize:
                    mean, sd = made.mean((1, 2), keepdims=True), made.std((1, 2), keepdims=True)
                    made = (made - mean) / np.where(sd > 0, sd, 1)
                writer.write(made)
                if given.stack:
                    _completed(first + len(images), reader.n_images)
