"""A simulation of particles or micrographs: from a configuration to images, STAR tables and a record."""

from __future__ import annotations

from pathlib import Path

import torch

from ..config.micrographs import MicrographsConfig
from ..config.simulate import ParticlesConfig
from ..errors import ConfigurationError
from ..inference.devices import LocalDevices, resolve_devices
from ..job_context import QUIET, JobContext
from ..report import PNG_NAME
from ..report.figures import Kind
from ..report.simulation import draw_simulation
from ..simulation.micrograph_set import file_names
from .folder import Earlier
from .job import Devices, Job
from .micrograph_stream import MicrographsPlan
from .particle_stream import ParticlesPlan, stack_name
from .simulation_plan import SimulationSummary


class SimulateJob(Job[SimulationSummary]):
    """Simulates a set of particles or of micrographs.

    Parameters
    ----------
    config
        What is simulated.
    device
        Where; micrographs are simulated on the CPU.
    """

    def __init__(self, config: ParticlesConfig | MicrographsConfig, device: str = "auto") -> None:
        self.config, self._device = config, device

    def devices(self) -> LocalDevices:
        """See `Job`."""
        return LocalDevices([self._place()])

    def _place(self) -> torch.device:
        if isinstance(self.config, ParticlesConfig):
            return resolve_devices(self._device)[0]
        if self._device not in ("auto", "cpu"):
            raise ConfigurationError(f"device {self._device}: micrographs are simulated on the CPU.")
        return torch.device("cpu")

    def plan(self, devices: Devices, context: JobContext) -> ParticlesPlan | MicrographsPlan:
        """See `Job`."""
        if isinstance(self.config, MicrographsConfig):
            return MicrographsPlan(self.config, context)
        context.log(f"device {devices.names[0]}")
        return ParticlesPlan(self.config, self._place(), context)


def simulate(
    config: ParticlesConfig | MicrographsConfig,
    output_dir: Path,
    context: JobContext = QUIET,
    *,
    device: str = "auto",
    earlier: Earlier = "refuse",
) -> SimulationSummary:
    """Simulate, as `SimulateJob` does it, tell of it in the log, and draw some of it as `montage.png`."""
    summary = SimulateJob(config, device).run(output_dir, context, earlier=earlier)
    if isinstance(config, ParticlesConfig):
        context.log(
            f"{summary.n_images} images in {summary.seconds['total']:.1f} s; without the time for volumes, "
            f"{summary.images_per_second:.0f} per second"
        )
    for path in (*summary.tables, summary.record):
        context.log(f"wrote {path}")
    # a run that was killed while it drew has all but this
    if not summary.was_complete or not (output_dir / PNG_NAME).exists():
        context.log(f"wrote {_draw(config, output_dir)}")
    if isinstance(config, ParticlesConfig) and "ctf_only" in config.outputs:
        context.log("denoised images keep their CTF: compare them with ctf_only.star")
    return summary


def _draw(config: ParticlesConfig | MicrographsConfig, output_dir: Path) -> Path:
    kind: Kind
    if isinstance(config, MicrographsConfig):
        names = dict(zip(("noisy", "clean", "labels"), file_names(0), strict=False))
        pixel_size, kind = config.settings.pixel_size_angstrom, "micrographs"
    else:
        names = {output.replace("ctf_only", "CTF only"): stack_name(output) for output in config.outputs}
        pixel_size, kind = config.pixel_size_angstrom, "particles"
    files = {label: output_dir / name for label, name in names.items()}
    return draw_simulation(output_dir, files, pixel_size, kind)
