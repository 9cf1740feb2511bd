"""A map with structural noise goes in, what its model explains is the target: in sets and in training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import mrcfile
import numpy as np
import pytest
from numpy.typing import NDArray
from particle_files import read_stack

from cryohush.core.config.load import validate
from cryohush.core.config.simulate import ParticlesConfig
from cryohush.core.config.training import SimulationConfig
from cryohush.core.errors import ConfigurationError
from cryohush.core.imaging.structure import potential_map, read_structure
from cryohush.core.jobs.simulate import SimulateJob
from cryohush.core.training.data import SimulatedParticles

BOX, SIZE_ANGSTROM = 48, 2.5
# so clean that nothing but structural noise sets a noisy image apart
SNR = 1e8


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path]:
    """A model off the origin, and a map of it with grain and a slab of carbon at one side."""
    random = np.random.default_rng(1)
    atoms = random.normal(size=(600, 3)) * [9, 6, 7] + [120, 40, -30]
    lines = [
        f"ATOM  {i:5d}  N   ALA A{i:4d}    {x:8.3f}{y:8.3f}{z:8.3f}  1.00 20.00           N"
        for i, (x, y, z) in enumerate(atoms, 1)
    ]
    for folder in ("models", "maps"):
        (tmp_path / folder).mkdir()
    model = tmp_path / "models" / "one.pdb"
    model.write_text("\n".join([*lines, "END", ""]))
    structure = read_structure(model)
    truth = potential_map(structure, BOX, SIZE_ANGSTROM, 60).numpy()
    noise = 0.5 * truth.std() * random.normal(size=truth.shape)
    noise[:6] += truth.max()
    density = tmp_path / "maps" / "one.mrc"
    with mrcfile.new(density, (truth + noise).astype(np.float32)) as file:
        file.voxel_size = SIZE_ANGSTROM
        origin = np.array(structure.centroid_angstrom) - BOX // 2 * SIZE_ANGSTROM
        file.header.origin.x, file.header.origin.y, file.header.origin.z = origin
    return model, density


def simulated(folder: Path, entry: dict[str, Any]) -> dict[str, NDArray[np.float32]]:
    settings = {
        "structures": [entry],
        "n_images": 6,
        "box_px": BOX,
        "pixel_size_angstrom": SIZE_ANGSTROM,
        "snr": SNR,
        "ctf": None,
        "normalise": False,
    }
    config = validate(settings, ParticlesConfig, "test")
    SimulateJob(config, "cpu").run(folder)
    return {output: read_stack(folder / f"{output}.mrcs") for output in config.outputs}


def correlation(a: NDArray[np.float32], b: NDArray[np.float32]) -> float:
    return float(np.corrcoef(a.ravel(), b.ravel())[0, 1])


def test_noisy_images_show_the_whole_map_and_clean_ones_what_the_model_explains(
    files: tuple[Path, Path], tmp_path: Path
) -> None:
    model, density = files
    # 5 Å is the limit of the map's pixels: all of it is used
    split = simulated(
        tmp_path / "split", {"path": density, "model": model, "resolution_angstrom": 2 * SIZE_ANGSTROM}
    )
    whole = simulated(tmp_path / "whole", {"path": density})
    # all but the corners of the transform, beyond the limit
    assert correlation(split["noisy"], whole["noisy"]) > 0.99
    assert correlation(split["noisy"], split["ctf_only"]) < 0.8
    with mrcfile.open(tmp_path / "split" / "volume_001.mrc") as file:
        cleaned = file.data.copy()
    assert np.abs(cleaned[:6]).max() < 0.05 * cleaned.max()  # no carbon
    # the projections are those of the cleaned map: nothing where the carbon was
    assert correlation(split["clean"], split["ctf_only"]) > 0.999


def test_training_shows_the_map_and_asks_for_the_cleaned_one(
    files: tuple[Path, Path], tmp_path: Path
) -> None:
    settings: dict[str, Any] = {
        "structures": files[0].parent,
        "box_px": 32,
        "volumes_per_structure": 1,
        "projections_per_volume": 16,
        "imaging": {
            "snr": [SNR, SNR],
            "shift_share": 0.1,
            "envelope_b_factor": 0.0,
            "ice_share": 0.0,
            "background_share": 0.0,
            "neighbour_probability": 0.5,
            "empty_probability": 0.0,
            "no_ctf_probability": 1.0,
        },
    }

    def pair(name: str, **more: Any) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        data = SimulatedParticles(
            SimulationConfig.model_validate({**settings, **more}),
            held_out=False,
            seed=3,
            cache=tmp_path / f"{name}.safetensors",
            log=lambda line: None,
        )
        noisy, clean, _ = data.batch(0, 16)
        return noisy.numpy(), clean.numpy()

    noisy, clean = pair("alone")
    assert correlation(noisy, clean) > 0.999
    first = pair("map", maps=files[1].parent, map_resolution_angstrom=6.0)
    assert correlation(*first) < 0.9
    # the targets are the same particles in the same places, each on the scale of its own background: the
    # model's own, but for the map's grain in the mask and half a voxel of rounding
    alike = [correlation(*one) for one in zip(first[1], clean, strict=True)]
    assert min(alike) > 0.85
    again = pair("map", maps=files[1].parent, map_resolution_angstrom=6.0)  # from the cache
    np.testing.assert_array_equal(again[0], first[0])


def test_maps_of_other_names_are_refused(files: tuple[Path, Path], tmp_path: Path) -> None:
    files[1].rename(files[1].with_name("other.mrc"))
    with pytest.raises(
        ConfigurationError, match=r"holds no map .* with the name of one of the structures, one"
    ):
        SimulatedParticles(
            SimulationConfig(
                structures=files[0].parent,
                maps=files[1].parent,
                map_resolution_angstrom=6.0,
                imaging={"no_ctf_probability": 1.0},
            ),
            held_out=False,
            seed=3,
            cache=tmp_path / "cache.safetensors",
            log=lambda line: None,
        )


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"path": "map.mrc", "model": "model.pdb"}, "model and resolution_angstrom belong together"),
        ({"path": "map.mrc", "resolution_angstrom": 3.0}, "model and resolution_angstrom belong together"),
    ],
)
def test_half_a_request_is_refused(entry: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=message):
        simulated(tmp_path / "set", entry)


def test_a_model_for_atoms_is_refused(files: tuple[Path, Path], tmp_path: Path) -> None:
    entry = {"path": files[0], "model": files[0], "resolution_angstrom": 5.0}
    with pytest.raises(ConfigurationError, match="this file holds atoms"):
        simulated(tmp_path / "set", entry)
