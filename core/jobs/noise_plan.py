"""Which windows of which micrographs are searched for noise, and what to do where too few hold any."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from pathlib import Path

import torch

from ..config.extract_noise import DEFAULT_WINDOW_PX, WINDOWS_ACROSS, ExtractNoiseOptions
from ..errors import ConfigurationError
from ..inference.plan import output_names, refuse_denoised
from ..io.micrographs import MicrographSet
from ..io.mrc import StackReader
from ..noise.finders import finder_of
from ..noise.micrograph import MicrographCounts, MicrographTask
from ..noise.output import LABELS_FOLDER
from ..noise.patches import count_in_windows
from ..noise.segmentation import BACKGROUND


def plan_search(
    images: MicrographSet, options: ExtractNoiseOptions
) -> tuple[list[MicrographTask], dict[int, MicrographCounts]]:
    """The micrographs to search, and those that the window does not fit into.

    Raises
    ------
    ConfigurationError
        If the window does not suit the micrographs, or a pixel size is needed and not known.
    InputError
        If micrographs cannot be read, or were denoised.
    """
    tasks, too_small, finder = [], {}, finder_of(options)
    names, shapes = output_names(images), images.check_images()
    refuse_denoised(images, images.examine())
    # a few odd ones among them do not count
    share = int(statistics.median(min(shape) for shape in shapes)) // WINDOWS_ACROSS
    default = min(DEFAULT_WINDOW_PX, max(share, 16, finder.smallest_window_px(options)))
    for index, shape in enumerate(shapes):
        pixel_size = options.pixel_size_angstrom or images.pixel_size_angstrom(index)
        window, stride = options.window_and_stride_px(pixel_size, default)
        task = MicrographTask(
            index,
            images.stacks[index],
            images.stack_names[index],
            names[index],
            shape,
            pixel_size,
            window,
            stride,
        )
        if finder.needs_pixel_size and pixel_size is None:
            raise ConfigurationError(
                f"method {options.method} needs the pixel size of {task.name}, which {images.source} does "
                "not say. Give --pixel-size."
            )
        if window > min(shape):
            remark = (
                f"the window of {window} px is larger than the {shape[1]} x {shape[0]} px of the micrograph."
            )
            too_small[index] = MicrographCounts(task.name, remark=remark)
        else:
            tasks.append(task)
    if not tasks:
        raise ConfigurationError(
            f"{next(iter(too_small.values())).remark} Give a smaller --window-px or --window-angstrom."
        )
    windows = sorted({task.window_px for task in tasks})
    if len(windows) > 1:
        raise ConfigurationError(
            f"with the pixel sizes of these micrographs, --window-angstrom {options.window_angstrom:g} is "
            f"from {windows[0]} to {windows[-1]} px, and a stack has one size. Give --window-px, or "
            "extract from one pixel size at a time."
        )
    if windows[0] < finder.smallest_window_px(options):
        raise ConfigurationError(
            f"a window of {windows[0]} px is too small for {options.local_patches} local patches and method "
            f"{options.method}: at least {finder.smallest_window_px(options)} px are needed."
        )
    return tasks, too_small


def label_name(task: MicrographTask) -> str:
    """Return the name of a micrograph's label map."""
    return f"{LABELS_FOLDER}/{task.short_name}"


def remedy(options: ExtractNoiseOptions, tasks: Sequence[MicrographTask], output_dir: Path) -> str:
    """Return what may find more blocks, by the label maps if there are any."""
    ways = "Try a smaller --window-px or --stride-px, or wider limits"
    window = tasks[0].window_px // 2
    while window >= max(16, finder_of(options).smallest_window_px(options)):
        free = sum(_free_windows(output_dir / label_name(task), window) for task in tasks)
        if free:
            ways = (
                f"With --window-px {window}, {free} windows touch neither particles nor contamination. Try "
                "that, or a smaller --stride-px, or wider limits"
            )
            break
        window //= 2
    return f"{ways}, {finder_of(options).remedy}."


def _free_windows(label_map: Path, window_px: int) -> int:
    """Return how many windows, half of one apart, touch nothing but background; 0 without a label map."""
    if not label_map.exists():
        return 0
    with StackReader(label_map) as reader:
        labels = torch.from_numpy(reader.read([0])[0])
    touched = count_in_windows(labels != BACKGROUND, window_px, max(1, window_px // 2))
    return int((touched == 0).sum())
