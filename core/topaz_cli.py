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
import math
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from .console import in_one_line, prepare_streams
from .errors import ConfigurationError, ImageError, InputError, several

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from .inference.denoiser import Denoiser
    from .inference.plan import StackPlan

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
    ours = parser.add_argument_group("not of Topaz")
    ours.add_argument("--pixel-size", type=float, default=None, help="Å, instead of the header's")
    ours.add_argument(
        "--protein", default="auto", choices=("auto", "dark", "white"), help="auto: dark, in stacks white"
    )
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
    prepare_streams()
    arguments = list(sys.argv[1:] if argv is None else argv)
    if arguments[:1] in (["--version"], ["-h"], ["--help"]) or arguments[:1] != ["denoise"]:
        print("usage: cryohush-topaz denoise [options] MICROGRAPHS; see cryohush-topaz denoise --help")
        return 0 if arguments[:1] in (["--version"], ["-h"], ["--help"]) else 2
    kept, ignored = split_ignored(arguments[1:])
    given = build_parser().parse_args(kept)
    if ignored:
        _say(f"ignored: {', '.join(dict.fromkeys(ignored))}")
    try:
        _denoise(given)
    except Exception as error:
        print(f"\nERROR: {in_one_line(error)}", file=sys.stderr)  # behind how far it is
        return 1
    return 0


def _say(line: str) -> None:
    print(f"# {line}", file=sys.stderr)


def _denoise(given: argparse.Namespace) -> None:
    if given.dir_a or given.dir_b or given.hdf:
        raise ConfigurationError("this program does not train. Use `cryohush train noise2noise`.")
    if given.format != "mrc":
        raise ConfigurationError(f"--format: expected mrc, found {given.format!r}.")
    paths = [Path(name) for name in given.micrographs]
    if given.pixel_size is not None and not 0 < given.pixel_size < math.inf:
        raise ConfigurationError(f"--pixel-size: expected a positive number of Å, found {given.pixel_size}.")
    if given.stack and (len(paths) != 1 or not given.output):
        raise ConfigurationError("--stack: expected one stack and the file to write (--output).")
    targets = [Path(given.output)] if given.stack else _targets(paths, given.output, given.suffix)
    _refuse_shared(paths, targets)
    # heavy: torch
    import torch

    from .inference.denoiser import Denoiser
    from .inference.devices import choose_precision, resolve_devices
    from .io.mrc_header import label_of_denoised
    from .models.weights import load_model

    if given.num_threads > 0:
        torch.set_num_threads(given.num_threads)
    device = "auto" if given.device is None else "cpu" if given.device < 0 else f"cuda:{given.device}"
    if device.startswith("cuda") and not torch.cuda.is_available():
        _say(f"no GPU is to be had: GPU {given.device} was asked for, the CPU is used")
        device = "cpu"
    name = MODEL if given.model[0] in TOPAZ_MODELS or given.model[0].endswith(".sav") else given.model[0]
    if name != given.model[0] or len(given.model) > 1:
        _say(f"model {name} of cryohush instead of {', '.join(given.model)}")
    model = load_model(name)
    plans = _plans(paths, given, model.trained_pixel_sizes_angstrom)
    used = resolve_devices(device)[0]
    denoiser = Denoiser(model.module, used, choose_precision(used, "auto")[0])
    _say(f"device {used}, model {model.name}")
    for number, (plan, target) in enumerate(zip(plans, targets, strict=True), 1):
        label = label_of_denoised(Path(model.name).name)
        _denoise_file(plan, target, denoiser, label, normalize=given.normalize)
        if plan.is_micrograph:
            _completed(number, len(plans))
    print(file=sys.stderr)
    if given.stack:
        _say(f"writing to {given.output}")


def _completed(number: int, total: int) -> None:
    """Say how far it is in Topaz's words, which other programs may look for."""
    print(f"\r# {number} of {total} completed.", end="", file=sys.stderr, flush=True)


def _targets(paths: Sequence[Path], output: str, suffix: str) -> list[Path]:
    """Return the file that each micrograph is written to: beside it, or in the folder."""
    if output:
        return [Path(output) / f"{path.stem}{suffix}.mrc" for path in paths]
    return [path.with_name(f"{path.stem}{suffix or DEFAULT_SUFFIX}.mrc") for path in paths]


def _refuse_shared(paths: Sequence[Path], targets: Sequence[Path]) -> None:
    """Raise when a file would be written over an input, or over what another input has become."""
    inputs = {os.path.realpath(path) for path in paths}
    sources: dict[str, Path] = {}
    for path, target in zip(paths, targets, strict=True):
        place = os.path.realpath(target)
        if target.is_dir():
            raise InputError("cannot be written: it is a folder.", path=target)
        if place in inputs:
            raise InputError("is an input itself, which is never written to.", path=target)
        if place in sources:
            raise InputError(
                f"would be written for two inputs, {sources[place]} and {path}.",
                path=target,
                remedy="Give each folder an --output of its own.",
            )
        sources[place] = path


def _plans(
    paths: Sequence[Path], given: argparse.Namespace, trained_angstrom: tuple[float, float] | None
) -> list[StackPlan]:
    """Check all files as `cryohush denoise` does, say what is odd about them, and return how to read each.

    Raises
    ------
    InputError
        If files cannot be read, hold what is not asked for or were denoised before; names all of them.
    """
    from .inference.inputs import look_at_inputs
    from .inference.plan import plan_stacks
    from .io.micrographs import MicrographSet
    from .io.particles import ParticleSet

    plans: list[StackPlan] = []
    bad: list[InputError] = []
    warned: dict[str, None] = {}
    for path in paths:
        try:
            if path.suffix.lower() not in (".mrc", ".mrcs"):
                raise InputError("expected an MRC file, .mrc or .mrcs.", path=path)
            images = ParticleSet.read(path) if given.stack else MicrographSet.read(path)
            found = plan_stacks(
                images,
                given.protein,
                pixel_size_angstrom=given.pixel_size,
                trained_angstrom=trained_angstrom,
            )
            plans += found
            warned |= dict.fromkeys(look_at_inputs(images, found, trained_angstrom).warnings)
        except InputError as error:
            bad.append(error)
    if bad:
        raise several(bad, len(paths), "files")
    for warning in warned:
        _say(f"warning: {warning}")
    return plans


def _denoise_file(plan: StackPlan, target: Path, denoiser: Denoiser, label: str, *, normalize: bool) -> None:
    """Denoise one file, block by block, and write it whole or not at all."""
    import numpy as np

    from .inference.devices import CPU_BATCH_PX
    from .io.files import make_folder
    from .io.mrc import StackReader, StackWriter

    make_folder(target.parent)
    n, size = len(plan.indices), max(1, CPU_BATCH_PX // (plan.shape[0] * plan.shape[1]))
    if not plan.is_micrograph:
        _say(f"denoising stack with shape: {(n, *plan.shape)}")
    with (
        StackReader(plan.source) as reader,
        StackWriter(
            target, (n, *plan.shape), pixel_size_angstrom=plan.pixel_size_angstrom, label=label
        ) as writer,
    ):
        for first in range(0, n, size):
            indices = plan.indices[first : first + size]
            made = _denoised(plan, reader.read(indices), denoiser, first)
            if normalize:
                mean, sd = made.mean((1, 2), keepdims=True), made.std((1, 2), keepdims=True)
                made = (made - mean) / np.where(sd > 0, sd, 1)
            writer.write(made)
            if not plan.is_micrograph:
                _completed(first + len(indices), n)


def _denoised(
    plan: StackPlan, images: NDArray[np.float32], denoiser: Denoiser, first: int
) -> NDArray[np.float32]:
    """Denoise images `(k, y, x)` of a file, from its 0-based `first` on; say what is odd about them."""
    import numpy as np

    from .inference.micrograph_denoiser import MicrographDenoiser

    if plan.is_micrograph:
        sign = np.float32(-1 if plan.protein_dark else 1)
        made, problem, remark = MicrographDenoiser(denoiser).denoise(
            sign * images[0], pixel_size_angstrom=plan.pixel_size_angstrom, finer=plan.finer
        )
        if problem is not None:
            raise ImageError(problem, path=plan.source)
        if remark is not None:
            _say(f"warning: {plan.source}: {remark}")
        return sign * made[None]
    made, problems, remarks = denoiser.denoise(images, protein_dark=plan.protein_dark, finer=plan.finer)
    for index, problem in problems.items():
        raise ImageError(problem, path=plan.source, image=first + index + 1)
    for index, remark in remarks.items():
        _say(f"warning: {plan.source}, image {first + index + 1}: {remark}")
    return made
