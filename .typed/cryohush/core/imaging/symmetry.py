"""Point groups in RELION's orientation, and the part of all directions that a symmetric particle needs.

References
----------
.. [1] Baldwin & Penczek (2007) J. Struct. Biol. 157, 250-261: asymmetric units of projection directions.
       doi:10.1016/j.jsb.2006.06.001
.. [2] RELION's documentation, "Conventions", symmetry: the axes of each group.
"""

from __future__ import annotations

import math
import re

import torch
from torch import Tensor

from ..errors import ConfigurationError

_GOLDEN = (1 + math.sqrt(5)) / 2
_Z = (0.0, 0.0, 1.0)
# Rotations (fold, axis x y z) that make each cubic group. The icosahedral settings differ in their axes: I1
# and I2 have two-fold axes on x, y and z and are turned against each other by 90 degrees about y; I3 and I4
# have a five-fold axis on z and are turned against each other by 180 degrees about it.
_CUBIC: dict[str, tuple[tuple[int, tuple[float, float, float]], ...]] = {
    "T": ((3, _Z), (2, (0.0, math.sqrt(2), 1.0))),
    "O": ((4, _Z), (3, (1.0, 1.0, 1.0))),
    "I1": ((2, (1.0, 0.0, 0.0)), (5, (_GOLDEN, 0.0, -1.0)), (3, (_GOLDEN, 1 / _GOLDEN, 0.0))),
    "I2": ((2, _Z), (5, (1.0, 0.0, _GOLDEN)), (3, (0.0, 1 / _GOLDEN, _GOLDEN))),
    "I3": ((5, _Z), (2, (-1.0, 0.0, _GOLDEN))),
    "I4": ((5, _Z), (2, (1.0, 0.0, _GOLDEN))),
}
# A direction on no rotation axis of any group, 20 degrees from z in the plane of x: the middle of the unit.
_MIDDLE = (math.sin(math.radians(20)), 0.0, math.cos(math.radians(20)))


def symmetry_operators(group: str) -> Tensor:
    """`(k, 3, 3)` float64 rotations (acting on x, y, z) that leave a particle unchanged, the identity first.

    Parameters
    ----------
    group
        RELION's name: `C1`, `C7`, `D2`, `T`, `O`, `I1` to `I4`; `I` is `I2`, as in RELION. Cn has its axis on
        z, Dn also a two-fold axis on x.

    Raises
    ------
    ConfigurationError
        An unknown group.
    """
    name = {"I": "I2"}.get(group.strip().upper(), group.strip().upper())
    cyclic = re.fullmatch(r"([CD])([1-9]\d{0,2})", name)
    if cyclic:
        generators = [rotation_about(_Z, 360 / int(cyclic[2]))]
        generators += [rotation_about((1.0, 0.0, 0.0), 180.0)] * (cyclic[1] == "D")
    elif name in _CUBIC:
        generators = [rotation_about(axis, 360 / fold) for fold, axis in _CUBIC[name]]
    else:
        raise ConfigurationError(
            f"expected a point group of RELION (C1, C2, ... D2, ... T, O, I1, I2, I3, I4), found {group!r}."
        )
    return _closed(torch.stack(generators))


def rotation_about(axis: tuple[float, float, float], angle_degrees: float) -> Tensor:
    """`(3, 3)` float64 rotation by the right-hand rule about an axis (x, y, z) of any length."""
    vector = torch.nn.functional.normalize(torch.tensor(axis, dtype=torch.float64), dim=0)
    return rotations_from_vectors(vector * math.radians(angle_degrees))


def rotations_from_vectors(rotation_vectors: Tensor) -> Tensor:
    """`(..., 3)` rotation vectors (x, y, z; the length is the angle in radians) to `(..., 3, 3)` matrices."""
    x, y, z = rotation_vectors.unbind(-1)
    zero = torch.zeros_like(x)
    cross = torch.stack([zero, -z, y, z, zero, -x, -y, x, zero], -1).reshape(*x.shape, 3, 3)
    rotations: Tensor = torch.linalg.matrix_exp(cross)
    return rotations


def _closed(generators: Tensor) -> Tensor:
    """All products of the generators."""
    found = torch.eye(3, dtype=torch.float64)[None]
    fresh = found
    while len(fresh):
        products = torch.einsum("aij,bjk->abik", generators, fresh).reshape(-1, 3, 3)
        fresh = products[:0]
        for product in products:
            known = torch.cat([found, fresh])
            if (known - product).abs().amax((1, 2)).min() > 1e-6:
                fresh = torch.cat([fresh, product[None]])
        found = torch.cat([found, fresh])
    return found


def to_asymmetric_unit(rotations: Tensor, operators: Tensor) -> Tensor:
    """The one of the equivalent views of a symmetric particle whose direction lies in the asymmetric unit.

    The unit is the part of the sphere that is nearer to one direction than to its symmetry mates [1]_: for Cn
    it is rot within ±180/n degrees, for Dn also tilt up to 90 degrees. Psi is left free. Uniform rotations
    stay uniform inside the unit.

    Parameters
    ----------
    rotations
        `(..., 3, 3)` from the image's frame to the volume's, as `Projector` takes them.
    operators
        `(k, 3, 3)` of `symmetry_operators`.

    Returns
    -------
    `(..., 3, 3)` rotations whose projections of a symmetric volume are the same.
    """
    matrices = operators.to(rotations)
    directions = rotations[..., :, 2]  # of the image's z axis, in the volume
    middle = torch.tensor(_MIDDLE).to(rotations)
    nearness = torch.einsum("kij,...j,i->...k", matrices, directions, middle)
    return matrices[nearness.argmax(-1)] @ rotations
