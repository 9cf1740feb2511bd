"""Which windows of which micrographs are searched for noise, and what to do where too few hold any."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from pathlib import Path

import torch

from ..config.extract_noise import (
    DEFAULT_WINDOW_PX,
    SMALLEST_WINDOW_PX,
    WINDOWS_ACROSS,
    ExtractNoiseOptions,
)
from ..errors import ConfigurationError
from ..inference.plan import output_names, refuse_denoised
from ..io.micrographs import MicrographSet
from ..io.mrc import StackReader
from ..noise.finders import finder_of
from ..noise.micrograph import MicrographCounts, MicrographTask
from ..noise.output import LABELS_FOLDER
from ..noise.patches import count_in_windows
from ..noise.segmentation import BACKGROUND

# Of more label maps, so many are looked at.
_MOST_MAPS = 100


def plan_search(
    images: MicrographSet, options: ExtractNoiseOptions, window_px: int | None = None
) -> tuple[list[MicrographTask], dict[int, MicrographCounts]]:
    """The micrographs to search, and those that the window does not fit into.

    `window_px` takes the place of the default window.

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
    default = window_px or default_window_px(shapes, options)
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


def default_window_px(shapes: Sequence[tuple[int, int]], options: ExtractNoiseOptions) -> int:
    """Side of a window in micrographs of the shapes `(y, x)`."""
    # a few odd ones among them do not count
    share = int(statistics.median(min(shape) for shape in shapes)) // WINDOWS_ACROSS
    return min(DEFAULT_WINDOW_PX, max(share, 16, finder_of(options).smallest_window_px(options)))


def smaller_window(
    options: ExtractNoiseOptions, tasks: Sequence[MicrographTask], output_dir: Path
) -> int | None:
    """The window to try where that of `tasks` has found too little; None where none is sensible.

    By the label maps it is the largest that as many places are free for as there are micrographs, or, where
    they are crowded, as many as are needed; without label maps one of two thirds.
    """
    smallest = max(SMALLEST_WINDOW_PX, finder_of(options).smallest_window_px(options))
    windows = _smaller_windows(tasks[0].window_px, smallest)
    some = _some(tasks)
    free = _free_windows(options, some, output_dir, windows)
    if free is None:
        return next((window for window in windows if 3 * window <= 2 * tasks[0].window_px), None)
    for enough in (max(len(tasks), options.min_blocks), options.min_blocks):
        for window, number in zip(windows, free, strict=True):
            if number * len(tasks) >= enough * len(some):
                return window
    return None


def remedy(options: ExtractNoiseOptions, tasks: Sequence[MicrographTask], output_dir: Path) -> str:
    """Return what may find more blocks, by the label maps if there are any."""
    ways = "Try a smaller --window-px or --stride-px, or wider limits"
    windows = _smaller_windows(tasks[0].window_px, max(16, finder_of(options).smallest_window_px(options)))
    free = _free_windows(options, _some(tasks), output_dir, windows) or []
    for window, number in zip(windows, free, strict=False):
        if number:
            ways = (
                f"With --window-px {window}, {number} windows touch neither particles nor contamination. Try "
                "that, or a smaller --stride-px, or wider limits"
            )
            break
    return f"{ways}, {finder_of(options).remedy}."


def _some(tasks: Sequence[MicrographTask]) -> Sequence[MicrographTask]:
    """Micrographs whose label maps tell of the others."""
    return tasks[:: -(-len(tasks) // _MOST_MAPS)]


def _smaller_windows(window_px: int, smallest_px: int) -> list[int]:
    """Each an eighth smaller than the last and even, and at last `smallest_px`."""
    windows = []
    while window_px > smallest_px:
        window_px = max(smallest_px, window_px * 7 // 8 // 2 * 2)
        windows.append(window_px)
    return windows


def _free_windows(
    options: ExtractNoiseOptions, tasks: Sequence[MicrographTask], output_dir: Path, windows: Sequence[int]
) -> list[int] | None:
    """How many windows of each size touch nothing but background; None without label maps."""
    free, known = [0] * len(windows), False
    for task in tasks:
        path = output_dir / label_name(task)
        if not path.exists():
            continue
        known = True
        with StackReader(path) as reader:
            touched = torch.from_numpy(reader.read([0])[0]) != BACKGROUND
        for number, window in enumerate(windows):
            stride = options.window_and_stride_px(task.pixel_size_angstrom, window)[1]
            free[number] += int((count_in_windows(touched, window, stride) == 0).sum())
    return free if known else None
