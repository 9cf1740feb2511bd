"""What denoised images are good for, and what a model invents: each task gives its figures and a section."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..config.evaluate import ClusteringSection, HalfMapsSection, PickingSection, PoseSection
from ..errors import ConfigurationError, InputError, StarError
from ..imaging.poses import poses_of
from ..imaging.symmetry import symmetry_operators
from ..inference.denoiser import Denoiser
from ..inference.devices import choose_precision, resolve_devices
from ..io.particles import ParticleSet
from ..io.star import read_tables, unquote
from ..metrics import hallucination
from ..metrics.fourier import (
    fourier_shell_correlation,
    masked_correlation,
    resolution_angstrom,
    ring_frequencies,
)
from ..metrics.image import region_signal_to_noise_ratio
from ..models.weights import load_model
from .comparison import DENOISED, RAW, Sources
from .evaluation_figures import (
    correlation_curves,
    error_histogram,
    noise_figures,
    picked_micrograph,
    scatter,
)
from .html import Picture, Section
from .image_rows import ImageRows

#: Raises `Aborted` when the user asked to stop.
Check = Callable[[], None]
Found = tuple[dict[str, Any], Section]

# Box of the noise where there are no images, and how many images a model sees at once.
_BOX_PX, _BATCH = 128, 32
_SHOWN_NOISE = 6
# Images of a known structure for the figures that need the truth.
_KNOWN_IMAGES = 128
_RIGHT_DEGREES = 10.0


def sample_rows(n: int, most: int) -> np.ndarray[Any, np.dtype[np.int64]]:
    """Return at most `most` of n rows, evenly spread."""
    return np.unique(np.linspace(0, n - 1, min(n, most)).astype(np.int64))


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
        raise ConfigurationError(f"maps need {error.name}: pip install 'cryohush[train]'") from error
    return read_map


def model_figures(name: str, sources: Sources | None, n_noise: int, device: str, check: Check) -> Found:
    """What a model makes of pure noise; with raw and clean images also of a structure that is known."""
    model = load_model(name)
    where = resolve_devices(device)[0]
    precision, _ = choose_precision(where, "auto", model.module)
    denoiser = Denoiser(model.module, where, precision)

    def denoise(images: Tensor) -> Tensor:
        parts = []
        for begin in range(0, len(images), _BATCH):
            parts.append(torch.from_numpy(denoiser(images[begin : begin + _BATCH].numpy())))
            check()
        return torch.cat(parts)

    generator = torch.Generator().manual_seed(0)
    shape = (_BOX_PX, _BOX_PX) if sources is None else sources.denoised.shape
    kinds = {"white": torch.randn(n_noise, *shape, generator=generator)}
    raw = None if sources is None else sources.raw
    if raw is not None:
        like = raw.read(sample_rows(len(raw), _KNOWN_IMAGES))
        kinds["spectrum of the raw images"] = hallucination.coloured_noise(n_noise, like, generator)
    numbers: dict[str, Any] = {"name": model.name, "sha256": model.sha256, "pure_noise": {}}
    rows, pictures = [], []
    for kind, noise in kinds.items():
        output = denoise(noise)
        found = hallucination.pure_noise_figures(noise, output)
        numbers["pure_noise"][kind] = asdict(found)
        band = slice(1, max(2, len(found.half_set_frc) // 2))
        rows += [
            (f"{kind} noise: variance kept", f"{found.variance_ratio:.4f}", "0"),
            ("correlation between outputs", f"{found.correlation_between_outputs:.4f}",
             f"{found.correlation_between_inputs:.4f}"),
            ("half-set FRC to half of Nyquist", f"{np.mean(found.half_set_frc[band]):.3f}",
             f"{np.mean(found.half_set_frc_of_input[band]):.3f}"),
            ("variance in the centre over border", f"{found.centre_to_border_variance:.2f}",
             f"{found.centre_to_border_variance_of_input:.2f}"),
        ]  # fmt: skip
        figure = noise_figures(
            noise[:_SHOWN_NOISE].numpy(), output[:_SHOWN_NOISE].numpy(), found.half_set_frc,
            found.half_set_frc_of_input,
        )  # fmt: skip
        caption = f"Pure noise ({kind}), what the model makes of it, and whether two half sets of that agree."
        pictures.append(Picture(f"noise_{kind.partition(' ')[0]}", caption, figure))
    if sources is not None and raw is not None and sources.reference is not None:
        chosen = sample_rows(len(raw), _KNOWN_IMAGES)
        clean = sources.reference.read(chosen)
        noise = raw.read(chosen) - clean
        unseen = hallucination.unseen_structure_figures(denoise, clean, noise)
        mirrored = hallucination.mirrored_map_figures(denoise, clean, noise)
        numbers |= {"unseen_structure": asdict(unseen), "mirrored_map": asdict(mirrored)}
        rows += [
            ("correlation with the clean images", f"{mirrored.original:.4f}", ""),
            ("the same, all mirrored", f"{mirrored.mirrored:.4f}", f"{mirrored.original:.4f}"),
        ]
    return numbers, Section(
        f"What {model.name} invents",
        notes=[
            "Given pure noise, a denoiser should return next to nothing. Outputs that correlate with each "
            "other, or half sets of them that agree, are the model's own idea of a particle, and it adds the "
            "same to real images. These figures say that invention happens, not how much of it is in a given "
            "image."
        ],
        header=("", "found", "ideal, or as in the noise"),
        rows=rows,
        pictures=pictures,
    )


def picking(section: PickingSection, check: Check) -> Found:
    """Pick on denoised, and on raw, micrographs with plain pickers and count what agrees with the labels."""
    from ..metrics.picking import average_precision, pick_blobs, pick_by_mean_shift, score_picks

    sets = {DENOISED: _micrographs(section.micrographs)}
    if section.raw is not None:
        sets[RAW] = _micrographs(section.raw)
        if len(sets[RAW]) != len(sets[DENOISED]):
            raise InputError(
                f"{len(sets[RAW])} micrographs, but {section.micrographs} has {len(sets[DENOISED])}.",
                path=section.raw,
            )
    names, pixel_size = (
        sets[DENOISED].titles(np.arange(len(sets[DENOISED]))),
        sets[DENOISED].pixel_size_angstrom,
    )
    if pixel_size is None:
        raise InputError("the pixel size is not known.", path=section.micrographs, remedy="Give a table.")
    labels = _labels(section, names)
    diameter = section.diameter_angstrom / pixel_size
    sign = -1 if section.protein == "dark" else 1
    numbers: dict[str, Any] = {"labels": sum(map(len, labels)), "diameter_px": diameter}
    rows, pictures = [], []
    for kind, micrographs in sets.items():
        found, shifted, ratios = [], [], []
        for number, true in enumerate(labels):
            image = sign * micrographs.read(np.array([number]))[0]
            found.append(pick_blobs(image, diameter))
            shifted.append(pick_by_mean_shift(image, diameter))
            ratios += _region_ratios(image, true, diameter)
            if number == 0:
                title = f"{names[0]}, {kind}"
                figure = picked_micrograph(
                    (sign * image).numpy(), true.numpy(), found[0].centres_px.numpy(), diameter / 2, title
                )
                pictures.append(Picture(f"picks_{kind}", f"Blobs picked on {title}.", figure))
            check()
        numbers[kind] = {"region_snr_db": float(np.mean(ratios)) if ratios else None}
        for picker, picks in (("blobs", found), ("mean_shift", shifted)):
            each = [score_picks(p.centres_px, t, diameter / 2) for p, t in zip(picks, labels, strict=True)]
            total = sum(each[1:], each[0])
            precision = average_precision(picks, labels, diameter / 2)
            numbers[kind][picker] = {
                "precision": total.precision, "recall": total.recall, "f1": total.f1,
                "average_precision": precision, "picks": total.n_picks,
            }  # fmt: skip
            rows.append(
                (f"{kind}, {picker.replace('_', ' ')}", f"{total.precision:.3f}", f"{total.recall:.3f}",
                 f"{total.f1:.3f}", f"{precision:.3f}")
            )  # fmt: skip
        if ratios:
            rows.append((f"{kind}, SNR of regions", f"{np.mean(ratios):.1f} dB", "", "", ""))
    return numbers, Section(
        "Picking",
        notes=[
            "Two pickers without training or templates, so that only contrast counts. Average precision "
            "needs no threshold: compare by it. A label set that left particles out makes right picks look "
            "wrong.",
            "The SNR of regions in dB, which papers print, rewards blur without limit: a flat background "
            "scores best, whatever was made of the particle.",
        ],
        header=("", "precision", "recall", "F1", "average precision"),
        rows=rows,
        pictures=pictures,
    )


def _micrographs(path: Path) -> ImageRows:
    rows = ImageRows(path)
    if rows.kind != "micrographs":
        raise InputError("expected micrographs, found particles.", path=path)
    return rows


def _region_ratios(image: Tensor, particles: Tensor, diameter_px: float) -> list[float]:
    """Finite SNR in dB of each particle against the nearest place without one."""
    from ..metrics.picking import nearest_background, square_regions

    side = max(4, int(diameter_px / 2))
    shape = (image.shape[0], image.shape[1])
    background, particle = nearest_background(shape, particles, diameter_px, side)
    if not len(particle):
        return []
    signal = list(square_regions(image, particles[particle], side))
    ratios = region_signal_to_noise_ratio(signal, list(square_regions(image, background, side)))
    finite: list[float] = ratios[ratios.isfinite()].tolist()
    return finite


def _labels(section: PickingSection, names: list[str]) -> list[Tensor]:
    """`(n, 2)` (y, x) of the labelled particles of each micrograph, pixels from the first pixel's centre."""
    by_name: dict[str, list[tuple[float, float]]] = {}
    if section.labels.is_dir():
        for name in names:
            path = section.labels / f"{Path(name).stem}{section.label_suffix}"
            by_name[Path(name).stem] = [place for _, place in _coordinates(path)]
    else:
        for micrograph, place in _coordinates(section.labels):
            by_name.setdefault(Path(micrograph).stem, []).append(place)
    for name in names:
        if Path(name).stem not in by_name:
            raise InputError(f"no coordinates for {name}.", path=section.labels)
    return [torch.tensor(by_name[Path(name).stem]).reshape(-1, 2) for name in names]


def _coordinates(path: Path) -> list[tuple[str, tuple[float, float]]]:
    """Micrograph (empty where the file does not say it) and (y, x) of each row of a coordinate file."""
    for table in read_tables(path):
        if {"rlnCoordinateX", "rlnCoordinateY"} <= set(table.labels):
            x, y = table.column("rlnCoordinateX"), table.column("rlnCoordinateY")
            named = table.labels.index("rlnMicrographName") if "rlnMicrographName" in table.labels else None
            found = []
            for line, _, tokens in table.rows():
                if tokens:
                    try:
                        place = (float(tokens[y]), float(tokens[x]))
                    except ValueError as error:
                        raise StarError("a coordinate is no number.", path=path, line=line) from error
                    found.append(("" if named is None else unquote(tokens[named]), place))
            return found
    raise StarError("no table with rlnCoordinateX and rlnCoordinateY.", path=path)


def clustering(section: ClusteringSection, sources: Sources) -> Found:
    """Lay the images out in the plane, group them, and compare the groups with the true conformations."""
    from ..metrics.clustering import clustering_scores, embed, group

    rows = sample_rows(len(sources.denoised), section.images)
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
    from ..metrics.bayes import PoseGrid
    from ..metrics.pose import PoseMatcher, Poses, pose_errors

    pixel_size, box = sources.pixel_size_angstrom, sources.denoised.shape[-1]
    particles = sources.denoised.table
    if not isinstance(particles, ParticleSet) or pixel_size is None:
        raise InputError("poses need a table of particles with a pixel size.", path=sources.denoised.path)
    chosen = torch.from_numpy(sample_rows(len(particles), section.images))
    table = poses_of(particles)[chosen]
    true = Poses(table.rotations, table.shifts_angstrom / pixel_size, torch.ones(len(chosen)))
    density = resampled(read_map(section.map), pixel_size, box)
    shifts = section.shift_px
    grid = PoseGrid.with_shifts(section.order, shifts, 1.0) if shifts else PoseGrid.centred(section.order)
    finest = None if section.finest_angstrom is None else int(box * pixel_size / section.finest_angstrom)
    matcher = PoseMatcher(density.volume, grid, finest_ring=finest)
    transfer = None
    if section.apply_ctf:
        transfer = ctf(ctf_parameters_of(particles)[chosen], torch.full((len(chosen),), pixel_size), box)
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
