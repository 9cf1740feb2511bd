"""A few images of a set, denoised for a look before the whole run."""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Sequence
from pathlib import Path

from ..config.denoise import DenoiseOptions
from ..errors import ConfigurationError
from ..inference.engine import Task, choose, denoise
from ..inference.inputs import look_at_inputs
from ..inference.plan import refuse_to_replace_inputs, spread_over
from ..inference.summary import SAMPLED_MICROGRAPHS, read_samples
from ..io.files import make_folder
from ..io.journal import JOURNAL_NAME, Journal, Undertaking
from ..io.micrographs import MicrographSet
from ..job_context import QUIET, JobContext
from ..models.weights import Weights, load_model
from ..report.pdf import write_montage
from .contexts import contexts_of
from .denoise import DenoiseJob

PREVIEW_NAME = "preview.png"
LARGEST_PREVIEW = 24
"""Images that still fit beside each other in a picture."""


def preview(
    source: str | Path,
    output_dir: str | Path,
    options: DenoiseOptions,
    n_images: int,
    context: JobContext = QUIET,
    *,
    root: Path | None = None,
    passthrough: Sequence[str | Path] = (),
) -> Path:
    """Denoise a few evenly spread images, and draw them raw, low-pass filtered and denoised, and what goes.

    Everything is as in a run with these options, but nothing stays except the picture, in `output_dir`.

    Parameters
    ----------
    source, output_dir, options, context, root, passthrough
        As of `jobs.denoise.DenoiseJob`.
    n_images
        At most so many; of micrographs never more than six, of which the middle is shown. Images of another
        size than the first are left out.

    Returns
    -------
    Path
        The picture; one that is there is replaced.

    Raises
    ------
    CryohushError
        As `jobs.denoise.DenoiseJob.run`.
    """
    if not 1 <= n_images <= LARGEST_PREVIEW:
        raise ConfigurationError(f"preview: expected 1 to {LARGEST_PREVIEW} images, found {n_images}.")
    output_dir = Path(output_dir)
    job = DenoiseJob(source, options, root=root, passthrough=passthrough)
    model = load_model(options.model)
    trained_angstrom = model.trained_pixel_sizes_angstrom
    images, _, _ = job.images()
    stacks = job.stacks(images, trained_angstrom)
    refuse_to_replace_inputs(images, stacks, output_dir)
    is_micrographs, devices = isinstance(images, MicrographSet), job.devices()
    notes = look_at_inputs(images, stacks, trained_angstrom)
    for line in (*notes.facts, *(f"warning: {warning}" for warning in notes.warnings)):
        context.log(line)
    most = min(n_images, SAMPLED_MICROGRAPHS) if is_micrographs else n_images
    chosen = [
        dataclasses.replace(stack, indices=stack.indices[positions])
        for stack, positions in spread_over(stacks, most)
    ]
    make_folder(output_dir)
    with tempfile.TemporaryDirectory(prefix=".preview-", dir=output_dir) as folder:
        place = Path(folder)
        parts = dict.fromkeys((stack.name for stack in stacks), "")
        known = contexts_of(
            images,
            stacks,
            model,
            options,
            place,
            parts=parts,
            goes_on=False,
            log=context.log,
            stop_if_asked=lambda: context.stop_if_asked("Stopped. Nothing was written."),
        )
        weights = Weights.of(model)
        choices, _ = choose(weights, options, [chosen[0].shape], is_micrographs, devices)
        task = Task(weights, options, choices, chosen, is_micrographs, "preview", known.contexts)
        with Journal(place / JOURNAL_NAME) as journal:
            journal.begin(Undertaking("preview", parts={stack.name: "" for stack in chosen}))
            result = denoise(task, place, journal, devices, context)
        samples = read_samples(chosen, place, result.skipped, are_micrographs=is_micrographs)
    path, verdict = write_montage(
        output_dir / PREVIEW_NAME,
        samples.raw,
        samples.denoised,
        titles=samples.titles,
        pixel_size_angstrom=samples.pixel_size_angstrom,
        kind="micrographs" if is_micrographs else "particles",
    )
    if verdict:
        context.log(verdict)
    context.log(f"wrote {path}")
    return path
