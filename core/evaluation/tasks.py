"""What denoised images are good for: each task gives its figures and a section of the report."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import numpy as np
import torch

from ..config.evaluate import ClusteringSection, HalfMapsSection, PoseSection
from ..errors import InputError, missing_package
from ..imaging.poses import poses_of
from ..imaging.symmetry import symmetry_operators
from ..io.particles import ParticleSet
from ..metrics.fourier import (
    fourier_shell_correlation,
    masked_correlation,
    resolution_angstrom,
    ring_frequencies,
)
from ..report.html import Picture, Section
from ..spread import evenly_spread
from .comparison import DENOISED, RAW, Sources
from .figures import correlation_curves, error_histogram, scatter

#: Raises `Aborted` when the user asked to stop.
Check = Callable[[], None]
Found = tuple[dict[str, Any], Section]

_RIGHT_DEGREES = 10.0


def half_maps(section: HalfMapsSection) -> Found:
    """Fourier shell correlation of two half maps, and within a mask, corrected for what the mask makes."""
    read_map = _map_reader()
    paths = [path for path in (section.first, section.second, section.mask) if path is not None]
    maps = [read_map(path) for path in paths]
    for path, density in zip(paths[1:], maps[1:], strict=True):
        sizes = (maps[0].volume.shape, round(maps[0].pixel_size_angstrom, 3))
        if sizes != (density.volume.shape, round(density.pixel_size_angstrom, 3)):
            raise InputError(
                f"a map of {density.box_px} px at {density.pixel_size_angstrom:g} Å, but {paths[0]} has "
                f"{maps[0].box_px} px at {maps[0].pixel_size_angstrom:g} Å.",
                path=path,
            )
    first, second = maps[0].volume, maps[1].volume
    pixel_size, box = maps[0].pixel_size_angstrom, maps[0].box_px
    curves = {"unmasked": fourier_shell_correlation(first, second)}
    if section.mask is not None:
        found = masked_correlation(first, second, maps[2].volume)
        curves |= {
            "masked": found.masked,
            "phases randomised": found.randomised,
            "corrected": found.corrected,
        }
    frequency = ring_frequencies((box, box), pixel_size)
    resolution = {
        name: {limit: float(resolution_angstrom(curve, (box, box), pixel_size, float(limit)))
               for limit in ("0.143", "0.5")}
        for name, curve in curves.items() if name != "phases randomised"
    }  # fmt: skip
    unknown = {name: (curve, torch.full_like(curve, torch.nan)) for name, curve in curves.items()}
    figure = correlation_curves(
        unknown, frequency, pixel_size, thresholds=(0.143, 0.5), label="Fourier shell correlation"
    )
    numbers = {
        "files": [str(path) for path in paths],
        "pixel_size_angstrom": pixel_size,
        "frequency": frequency.tolist(),
        "fsc": {name: curve.tolist() for name, curve in curves.items()},
        "resolution_angstrom": resolution,
    }
    return numbers, Section(
        "Half maps",
        notes=[
            "The correlation of two half maps is evidence of resolution only if each was made from raw "
            "images that nothing common to both has touched. Of half sets denoised by one model it proves "
            "nothing: even pure noise, denoised, gives halves that agree."
        ],
        header=("", "resolution at 0.143", "at 0.5"),
        rows=[(name, *(f"{value:.2f} Å" for value in found.values())) for name, found in resolution.items()],
        pictures=[Picture("fsc", "Fourier shell correlation of the half maps by resolution.", figure)],
    )


def _map_reader() -> Any:
    try:
        from ..imaging.maps import read_map
    except ModuleNotFoundError as error:
        raise missing_package(error) from error
    return read_map


def clustering(section: ClusteringSection, sources: Sources) -> Found:
    """Lay the images out in the plane, group them, and compare the groups with the true conformations."""
    from ..metrics.clustering import clustering_scores, embed, group

    rows = evenly_spread(len(sources.denoised), section.images)
    labels = np.asarray(sources.denoised.column(section.column))[rows]
    known, number = np.unique(labels, return_inverse=True)
    if len(known) < 2:
        raise InputError(
            f"{section.column} has one value only, {known[0]}: nothing to tell apart.",
            path=sources.denoised.path,
        )
    true = torch.from_numpy(number.reshape(-1))
    numbers: dict[str, Any] = {
        "column": section.column, "embedding": section.embedding, "conformations": len(known),
        "images": len(rows),
    }  # fmt: skip
    points, table = {}, []
    for kind, images in ((DENOISED, sources.denoised), (RAW, sources.raw), ("clean", sources.reference)):
        if images is None:
            continue
        place = embed(images.read(rows), section.embedding, n_neighbours=section.neighbours)
        found = clustering_scores(group(place, len(known)), true)
        points[kind] = place.numpy()
        numbers[kind] = asdict(found)
        table.append((kind, f"{found.accuracy:.3f}", f"{found.adjusted_rand_index:.3f}"))
    figure = scatter(points, labels)
    caption = f"{len(rows)} images laid out by {section.embedding}, coloured by {section.column}."
    return numbers, Section(
        "Clustering",
        notes=[
            "Groups that stand apart are worth something only if they are the true conformations: a model "
            "can sort images by what it invented. Labels that came from a classification of the same images "
            "are no truth."
        ],
        header=("", "accuracy", "adjusted Rand index"),
        rows=table,
        pictures=[Picture("clustering", caption, figure)],
    )


def pose_accuracy(section: PoseSection, sources: Sources, check: Check) -> Found:
    """Match the images with projections of a map and compare the poses found with those of the table."""
    read_map = _map_reader()
    from ..imaging.ctf import ctf, ctf_parameters_of
    from ..imaging.maps import resampled
    from ..metrics.pose import PoseMatcher, Poses, pose_errors
    from ..metrics.pose_grid import PoseGrid

    pixel_size, box = sources.pixel_size_angstrom, sources.denoised.shape[-1]
    particles = sources.denoised.table
    if not isinstance(particles, ParticleSet) or pixel_size is None:
        raise InputError("poses need a table of particles with a pixel size.", path=sources.denoised.path)
    chosen = torch.from_numpy(evenly_spread(len(sources.denoised), section.images))
    rows_of_table = torch.from_numpy(sources.denoised.rows)[chosen]
    table = poses_of(particles)[rows_of_table]
    true = Poses(table.rotations, table.shifts_angstrom / pixel_size, torch.ones(len(chosen)))
    density = resampled(read_map(section.map), pixel_size, box)
    shifts = section.shift_px
    grid = PoseGrid.with_shifts(section.order, shifts, 1.0) if shifts else PoseGrid.centred(section.order)
    finest = None if section.finest_angstrom is None else int(box * pixel_size / section.finest_angstrom)
    matcher = PoseMatcher(density.volume, grid, finest_ring=finest)
    transfer = None
    if section.apply_ctf:
        transfer = ctf(
            ctf_parameters_of(particles)[rows_of_table], torch.full((len(chosen),), pixel_size), box
        )
    symmetry = symmetry_operators(section.symmetry)
    numbers: dict[str, Any] = {"images": len(chosen), "symmetry": section.symmetry, "order": section.order}
    angles, rows = {}, []
    for kind, images in ((DENOISED, sources.denoised), (RAW, sources.raw), ("clean", sources.reference)):
        if images is None:
            continue
        errors = pose_errors(matcher(images.read(chosen.numpy()), transfer), true, symmetry)
        check()
        angle, shift = float(errors.angle_degrees.median()), float(errors.shift_px.median())
        share = errors.share_within(_RIGHT_DEGREES)
        angles[kind] = errors.angle_degrees.numpy()
        numbers[kind] = {
            "median_angle_degrees": angle, "median_shift_px": shift, "share_within_10_degrees": share
        }  # fmt: skip
        rows.append((kind, f"{angle:.1f}°", f"{100 * share:.0f} %", f"{shift:.2f} px"))
    figure = error_histogram(angles, "error of the orientation, degrees", np.linspace(0, 180, 37))
    return numbers, Section(
        "Poses",
        notes=[
            "Poses that a refinement gave are an estimate, too: what is scored then is agreement with it. "
            "Better poses of denoised images are a reason to align with them, never to reconstruct from them."
        ],
        header=("", "median error", f"within {_RIGHT_DEGREES:g}°", "median shift error"),
        rows=rows,
        pictures=[Picture("poses", "Errors of the orientations found.", figure)],
    )
