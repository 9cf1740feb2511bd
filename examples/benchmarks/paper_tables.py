"""What `papers.py` compares: tables, the test sets of each, their rows, and what the papers print.

References
----------
.. [1] Tang, Wang, Ouyang & Liu (2022) J. Big Data 4, doi:10.32604/jbd.2022.028078.
.. [2] Zhang, Zhao, Hu & Zhao (2024), arXiv:2401.01097.
.. [3] Su, Zhang, Schawinski, Zhang & Cianfrocco (2018), doi:10.1101/256792.
.. [4] Gu, Xian, Unarta & Yao (2020), arXiv:2008.07307.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

CLASSICAL = ("bm3d", "dictionary", "non_local_means", "covariance_wiener")


@dataclass(frozen=True)
class Case:
    """A test set.

    Attributes
    ----------
    snr
        Variance of the clean images over that of the noise, over the whole box; or ...
    sigma
        ... the noise's standard deviation on a scale where the clean images span 255 grey values on average.
    real_noise
        Pieces of blocks of real noise instead of white noise.
    """

    name: str
    snr: float | None = None
    sigma: float | None = None
    real_noise: bool = False


@dataclass(frozen=True)
class Row:
    """A network and how it is trained.

    Attributes
    ----------
    preset, overrides
        Of `cryohush train`.
    contaminant, contaminated_share
        Which image of a pair is replaced by pure noise, and in which share of the pairs; such rows learn from
        stored pairs.
    real_noise
        Trained on blocks of real noise.
    at_tiny
        Whether it is trained at size `tiny`, too.
    """

    name: str
    preset: str
    overrides: tuple[str, ...] = ()
    contaminant: Literal["clean", "noisy", "both"] | None = None
    contaminated_share: float = 0.0
    real_noise: bool = False
    at_tiny: bool = True

    @property
    def stored(self) -> bool:
        """Whether it learns from stored pairs instead of those that are simulated on the fly."""
        return self.contaminant is not None or self.preset == "noise2noise"


@dataclass(frozen=True)
class Table:
    """Rows that are judged on the same test sets.

    Attributes
    ----------
    molecule
        File of an atomic model, or two of two conformations.
    intermediates
        Conformations between the two.
    published
        Lines of what the paper prints.
    classical
        Baselines of `cryohush.core.classical.baselines`.
    reconstructed
        Whether maps are made of what each row returns, in the true poses.
    """

    name: str
    title: str
    molecule: tuple[str, ...]
    cases: tuple[Case, ...]
    rows: tuple[Row, ...]
    published: tuple[str, ...]
    intermediates: int = 0
    classical: tuple[str, ...] = CLASSICAL
    reconstructed: bool = False


def _game(name: str, alpha: float, beta: float) -> Row:
    return Row(name, "robust_gan", (f"adversarial.alpha={alpha}", f"adversarial.beta={beta}"))


_ROBUST = (
    Row("l1", "denoise_l1"),
    Row("l2", "denoise_l2"),
    _game("(0, 0)-GAN + l1", 0.0, 0.0),
    _game("(1, 1)-GAN + l1", 1.0, 1.0),
    _game("(.5, .5)-GAN + l1", 0.5, 0.5),
    Row("WGANgp + l1", "wgan_gp_l1"),
)
_TYPES: tuple[tuple[int, Literal["clean", "noisy", "both"]], ...] = ((1, "clean"), (2, "noisy"), (3, "both"))
# Eag channel, voltage sensors up and down: 2.6 % of the power of a view differs, twice as much as of ClpB's
_EAG = ("8eow", "8ep1")


def _contaminated() -> tuple[Row, ...]:
    # at size tiny smaller shares of type 1 alone, and one game of each kind
    brief = ("l1", "l2", "(.5, .5)-GAN + l1", "WGANgp + l1")
    rows = []
    for row in _ROBUST:
        some = row.name in brief
        rows.append(Row(f"{row.name}, pure", row.preset, row.overrides, "both", at_tiny=some))
    for share in (0.3, 0.2, 0.1):
        for number, kind in _TYPES:
            for row in _ROBUST:
                name = f"{row.name}, type {number}, {share:g}"
                some = row.name in brief and (share == 0.3 or number == 1)
                rows.append(Row(name, row.preset, row.overrides, kind, share, at_tiny=some))
    return tuple(rows)


def _on_noise(name: str, preset: str) -> tuple[Row, Row]:
    return (
        Row(f"{name}, trained on Gaussian noise", preset),
        Row(f"{name}, trained on real noise", preset, real_noise=True),
    )


def _at_low_snr(molecule: str, published: str) -> Table:
    return Table(
        f"low_snr_{molecule}",
        f"Diffusion at very low SNR, {molecule}",
        (molecule,),
        (Case("SNR 0.03", snr=0.03),),
        (Row("sr3 + U-Net", "sr3"), Row("noise2noise", "noise2noise"), Row("l2", "denoise_l2")),
        (published, "The paper's SNR is not on this scale, and its MSE and PSNR are on two [2]."),
        reconstructed=True,
    )


_TABLES = (
    Table(
        "conformations_0.1",
        "Robust GANs, open, closed and intermediate conformations, SNR 0.1",
        _EAG,
        (Case("SNR 0.1", snr=0.1),),
        (*_ROBUST, Row("progressive GAN + l1", "pggan")),
        (
            "RNA polymerase, SNR 0.1: learnt rows 25.1 to 25.4 dB, classical ones 12 to 20 dB; (.5, .5)-GAN "
            "+ l1 MSE 2.95e-3, 25.42 dB, SSIM .83 [4].",
            "Open and closed told apart: 54 of 60 after denoising, 34 of 60 after BM3D [4].",
        ),
        intermediates=3,
    ),
    Table(
        "conformations_0.05",
        "Robust GANs, open, closed and intermediate conformations, SNR 0.05",
        _EAG,
        (Case("SNR 0.05", snr=0.05),),
        _ROBUST,
        (
            "RNA polymerase, SNR 0.05: learnt rows 23.7 to 24.1 dB; (.5, .5)-GAN + l1 MSE 3.98e-3, 24.07 dB, "
            "SSIM .80 [4].",
        ),
        intermediates=3,
    ),
    Table(
        "contamination",
        "Contaminated training pairs, SNR 0.1",
        _EAG,
        (Case("SNR 0.1", snr=0.1),),
        _contaminated(),
        ("Types: 1, the clean image is pure noise; 2, the noisy one; 3, both. Shares 0.1, 0.2 and 0.3 [4].",),
        intermediates=3,
        classical=("covariance_wiener",),
    ),
    _at_low_snr("6cvm", "EMD-8511: SR3 26.78 dB, .932; Noise2Noise 24.85, .913; CWF 19.07, .808 [2]."),
    _at_low_snr("5vox_reassembled", "EMD-24928: SR3 23.36 dB, .923 [2]."),
    Table(
        "noise_blocks",
        "Conditional GAN, weak and strong real noise",
        ("6cvm",),
        (
            Case("weak real noise, SNR 0.5", snr=0.5, real_noise=True),
            Case("strong real noise, SNR 0.05", snr=0.05, real_noise=True),
        ),
        (*_on_noise("cGAN + perceptual", "cgan_perceptual"), *_on_noise("DnCNN", "dncnn")),
        ("cGAN 25.06 dB, .96; DnCNN 23.59 dB, .92; BM3D 11.58 dB, .56 [1].",),
    ),
    Table(
        "sigma",
        "Wasserstein GAN, noise of standard deviation 10 to 80 on 8 bits",
        ("6cvm",),
        tuple(Case(f"sigma {sigma}", sigma=float(sigma)) for sigma in (10, 20, 40, 80)),
        (Row("WGAN + grey value", "wgan_gray"), Row("l2", "denoise_l2")),
        ("Sigma 40: 13.08 to 22.27 dB, SSIM .22 to .58, a gain of 9.2 dB and .36 [3].",),
    ),
)
TABLES = {table.name: table for table in _TABLES}


@dataclass(frozen=True)
class Size:
    """How much is trained and judged.

    Attributes
    ----------
    pose_order
        HEALPix order of the coarse grid of poses of the test images, which lie on the refined one.
    narrow
        Whether the networks have a half of the presets' width or less.
    steps, batch_size
        None keeps the preset's.
    projections
        Clean images to train on, of each conformation.
    pairs
        Stored pairs, where pairs are stored.
    images, stack
        Test images that are judged, and in the stack that filters are fitted to.
    views
        Fixed views in which open and closed are to be told apart, 30 images of each.
    """

    box_px: int
    pose_order: int
    narrow: bool
    steps: int | None
    batch_size: int | None
    projections: int
    pairs: int
    images: int
    stack: int
    views: int


SIZES = {
    "tiny": Size(64, 2, True, 400, 16, 512, 4096, 256, 1024, 4),
    "small": Size(64, 2, False, 1000, None, 1024, 8192, 256, 2048, 8),
    "full": Size(128, 3, False, None, None, 4096, 32768, 512, 4096, 16),
}

#: arguments of the presets' networks and critics at a narrow size
NARROW: dict[str, dict[str, Any]] = {
    "resnet_autoencoder": {"width": 16, "downs": 3, "blocks": 1, "largest_width": 64},
    "progressive_autoencoder": {"widths": [16, 32, 64], "bottom": 2},
    "convolutional_generator": {"width": 16, "downs": 2, "blocks": 3},
    "dncnn": {"width": 24, "depth": 10},
    "residual_pix2pix": {"width": 16, "downs": 4, "largest_width": 96},
    "shuffle_unet": {"widths": [24, 48, 80, 80], "blocks": [1, 1, 1, 2], "unshuffle": 4},
    "diffusion": {
        "predictor": {"widths": [32, 48, 64], "blocks": [1, 1, 1], "unshuffle": 2},
        "post": {"widths": [24, 48, 64], "blocks": [1, 1, 1], "unshuffle": 2},
        "clean_scale": 0.3,
        "steps": 8,
        "draws": 2,
    },
}
NARROW_CRITIC: dict[str, dict[str, Any]] = {
    "resnet": {"width": 16, "downs": 4, "largest_width": 64},
    "progressive": {"widths": [16, 32, 64], "bottom": 2},
    "convolutional": {"width": 16},
}
