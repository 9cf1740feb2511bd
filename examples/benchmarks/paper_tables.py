"""What `papers.py` compares: tables, the test sets of each, their rows, and what the papers print.

Published figures come from `published.yaml`. SNRs are those of a box of 128 px, the robust GAN's: a smaller
one of the same particle and dose has the higher ratio per pixel, `Size.snr`.

References
----------
.. [1] Tang, Wang, Ouyang & Liu (2022) J. Big Data 4(1), doi:10.32604/jbd.2022.028078.
.. [2] Zhang, Zhao, Hu & Zhao (2024), arXiv:2401.01097.
.. [3] Ouyang, He, Tang & Fu (2020) Research on denoising of cryo-EM images based on deep learning, J. Inf.
   Hiding Priv. Prot.
.. [4] Li et al. (2022) Bioinformatics 38, 2022-2029, doi:10.1093/bioinformatics/btac052.
.. [5] Gu, Unarta, Huang & Yao, arXiv:2008.07307.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import yaml

#: the box that the SNRs of the tables belong to
REFERENCE_BOX_PX = 128
PUBLISHED: dict[str, Any] = yaml.safe_load(
    Path(__file__).with_name("published.yaml").read_text(encoding="utf-8")
)

CLASSICAL = ("bm3d", "dictionary", "non_local_means", "covariance_wiener")


@dataclass(frozen=True)
class Case:
    """A test set.

    Attributes
    ----------
    snr
        Variance of the clean images over that of the noise, over a whole box of `REFERENCE_BOX_PX`; or ...
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
    """A network and how it is trained; every row's network is updated as often.

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
    first_part_of
        Another row, a diffusion model, of which this one is what it returns without the U-Net after it.
    with_map
        Trained on the map with structural noise, and what of it is the model's as the target.
    """

    name: str
    preset: str
    overrides: tuple[str, ...] = ()
    contaminant: Literal["clean", "noisy", "both"] | None = None
    contaminated_share: float = 0.0
    real_noise: bool = False
    at_tiny: bool = True
    first_part_of: str | None = None
    with_map: bool = False

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
    structural
        Whether the test images show a map with density that is not the particle's, as a micelle or carbon.
    checks
        How often held-out images are looked at in a training.
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
    structural: bool = False
    checks: int = 4


def _game(name: str, alpha: float, beta: float, *others: str) -> Row:
    return Row(name, "robust_gan", (f"adversarial.alpha={alpha}", f"adversarial.beta={beta}", *others))


def _mapped(row: Row) -> Row:
    return replace(row, with_map=True)


def _on_l2(row: Row) -> Row:
    return Row(row.name.replace("l1", "l2"), row.preset, (*row.overrides, "loss.pixel={l2: 10.0}"))


# the same loop, optimiser, loss and number of updates with the critic left out: what a critic adds, or not
_NO_CRITIC = "adversarial.weight=0"
_ALONE = "loss.pixel={l1: 0.0}"
_ROBUST = (
    Row("l2", "denoise_l2"),
    Row("l1", "denoise_l1"),
    Row("no critic + l1", "robust_gan", (_NO_CRITIC,)),
    _game("(0, 0)-GAN + l1", 0.0, 0.0),
    Row("WGANgp + l1", "wgan_gp_l1"),
    _game("(1, 1)-GAN + l1", 1.0, 1.0),
    _game("(.5, .5)-GAN + l1", 0.5, 0.5),
)
_TYPES: tuple[tuple[int, Literal["clean", "noisy", "both"]], ...] = ((1, "clean"), (2, "noisy"), (3, "both"))
# Eag channel, voltage sensors up and down: 2.6 % of the power of a view differs, twice as much as of ClpB's
_EAG = ("8eow", "8ep1")


def _contaminated() -> tuple[Row, ...]:
    # at size tiny one game of each kind
    brief = ("l1", "l2", "no critic + l1")
    brief += tuple(f"{game} + {loss}" for game in ("(.5, .5)-GAN", "WGANgp") for loss in ("l1", "l2"))
    games = [row for row in _ROBUST if row.name != "(0, 0)-GAN + l1"]
    games += [_on_l2(row) for row in games if row.name.endswith("-GAN + l1") or row.name == "WGANgp + l1"]
    rows = []
    for row in games:
        rows.append(Row(f"{row.name}, pure", row.preset, row.overrides, "both", at_tiny=row.name in brief))
    for share in (0.3, 0.2, 0.1):
        for number, kind in _TYPES:
            for row in games:
                name = f"{row.name}, type {number}, {share:g}"
                rows.append(Row(name, row.preset, row.overrides, kind, share, at_tiny=row.name in brief))
    # beside 10 times the mean a critic of weight 1 outweighs the pixels: only so can it fail
    for row in games:
        if row.name in ("(.5, .5)-GAN + l1", "WGANgp + l1"):
            name, overrides = f"{row.name}, critic of weight 1", (*row.overrides, "adversarial.weight=1")
            rows.append(Row(f"{name}, pure", row.preset, overrides, "both"))
            rows.append(Row(f"{name}, type 1, 0.3", row.preset, overrides, "clean", 0.3))
    return tuple(rows)


def _on_noise(name: str, preset: str, *overrides: str) -> tuple[Row, Row]:
    return (
        Row(f"{name}, trained on Gaussian noise", preset, overrides),
        Row(f"{name}, trained on real noise", preset, overrides, real_noise=True),
    )


def _figures(row: dict[str, Any]) -> str:
    """`MSE 3.01e-3, 25.27 dB, SSIM 0.79` of what a paper prints."""
    parts = []
    if "mse" in row:
        parts.append(f"MSE {row['mse']:.4g}")
    if "psnr" in row:
        parts.append(f"{row['psnr']:.2f} dB")
    if "ssim" in row:
        parts.append(f"SSIM {row['ssim']:.2f}")
    return ", ".join(parts)


def _printed(paper: str, table: str, case: str | None = None) -> tuple[str, ...]:
    """A line for each row of a table that a paper prints."""
    rows = PUBLISHED[paper]["tables"][table]["rows"]
    return tuple(
        f"{name}: {_figures(row if case is None else row[case])}"
        for name, row in rows.items()
        if case is None or case in row
    )


def _at_low_snr(molecule: str, entry: str) -> Table:
    return Table(
        f"low_snr_{molecule}",
        f"Diffusion at very low SNR, {molecule}",
        (molecule,),
        (Case("SNR 0.03", snr=0.03),),
        (
            _game("DenoiseGAN", 0.0, 0.0),
            _game("RobustGAN", 0.5, 0.5),
            Row("no critic", "robust_gan", (_NO_CRITIC,)),
            Row("noise2noise", "noise2noise"),
            Row("l2", "denoise_l2"),
            Row("sr3 + U-Net", "sr3"),
            Row("sr3 alone", "sr3", first_part_of="sr3 + U-Net"),
            Row(
                "sr3 + U-Net, ancestral",
                "sr3",
                tuple(
                    f"network.arguments.{entry}" for entry in ("deterministic=false", "steps=100", "draws=1")
                ),
                at_tiny=False,
            ),
        ),
        (
            f"[2], table 1, {entry}",
            *_printed("zhang2024", "1", entry),
            "The paper's SNR is not given, and its MSE and PSNR are on two scales.",
        ),
        classical=("bm3d", "dictionary", "covariance_wiener"),
        reconstructed=True,
    )


_CLUSTERING = PUBLISHED["gu"]["clustering"]["correct"]
_TOLD_APART = "[5], section 3.3, of 60 at SNR 0.05: " + ", ".join(
    f"{name} {correct}" for name, correct in _CLUSTERING.items()
)
# eight pairs of the appendix; of these (0, 0), (1, 1) and (.5, .5) are in the main table, too
_PAIRS = ((1, 1), (0.5, 0.5), (-0.5, -0.5), (-1, -1), (1, -1), (0.5, -0.5), (0, 0), (0.1, -0.1))
_LAMBDAS = (0.1, 1, 5, 10, 50, 100, 500, 10000)
# as figure 2 shows them: the moving average would smooth what oscillates
_NOT_AVERAGED = "optimisation.ema_decay=0"
_PLAIN = ("network.arguments.residuals=0",)
_PLAIN_GAME = (*_PLAIN, "adversarial.critic.arguments.residuals=[0, 0, 0]")
# optimisers of network and critic, and their rates
_OPTIMISERS = (
    ("1e-4", "sgd", "1e-5"),
    ("1e-4", "sgd", "1e-4"),
    ("1e-5", "sgd", "5e-4"),
    ("1e-5", "adam", "5e-5"),
)


def _optimised(rate: str, critic: str, critic_rate: str) -> Row:
    return Row(
        f"WGAN + grey values, Adam {rate}, critic {critic.upper()} {critic_rate}",
        "wgan_gray",
        (
            f"optimisation.learning_rate={float(rate)}",
            f"adversarial.critic_optimiser={critic}",
            f"adversarial.critic_learning_rate={float(critic_rate)}",
        ),
    )


_TABLES = (
    Table(
        "conformations_0.1",
        "Robust GANs, open, closed and intermediate conformations, SNR 0.1",
        _EAG,
        (Case("SNR 0.1", snr=0.1),),
        (*_ROBUST, Row("progressive GAN + l1", "pggan")),
        ("[5], table 1, SNR 0.1, RNA polymerase", *_printed("gu", "1", "0.1")),
        intermediates=3,
    ),
    Table(
        "conformations_0.05",
        "Robust GANs, open, closed and intermediate conformations, SNR 0.05",
        _EAG,
        (Case("SNR 0.05", snr=0.05),),
        (
            *_ROBUST,
            Row("progressive GAN + l1", "pggan"),
            Row("progressive GAN", "pggan", (_ALONE,)),
        ),
        (
            "[5], table 1, SNR 0.05, RNA polymerase",
            *_printed("gu", "1", "0.05"),
            _TOLD_APART,
            "[5], appendix 5.2, after (1, 1)-GAN + l1: "
            + ", ".join(f"{name} {text}" for name, text in PUBLISHED["gu"]["manifolds"]["correct"].items()),
        ),
        intermediates=3,
    ),
    Table(
        "contamination",
        "Contaminated training pairs, SNR 0.1",
        _EAG,
        (Case("SNR 0.1", snr=0.1),),
        _contaminated(),
        (
            "Types: 1, the clean image is noise; 2, the noisy one; 3, both [5]. Table 2 prints MSE / 1e-3 "
            "at shares of 0.1, 0.2 and 0.3:",
            *(
                f"{name}: "
                + "; ".join(f"type {kind} {', '.join(map(str, mse))}" for kind, mse in row.items())
                for name, row in PUBLISHED["gu"]["tables"]["2"]["rows"].items()
            ),
        ),
        intermediates=3,
        classical=("covariance_wiener",),
    ),
    Table(
        "alpha_beta",
        "Eight pairs (alpha, beta), SNR 0.1",
        _EAG,
        (Case("SNR 0.1", snr=0.1),),
        (
            Row("no critic + l1", "robust_gan", (_NO_CRITIC,)),
            *(_game(f"({alpha:g}, {beta:g})-GAN + l1", alpha, beta) for alpha, beta in _PAIRS),
        ),
        ("[5], table 4, SNR 0.1", *_printed("gu", "4", "0.1")),
        intermediates=3,
        classical=("covariance_wiener",),
    ),
    Table(
        "no_residuals",
        "Without residual layers, SNR 0.1",
        _EAG,
        (Case("SNR 0.1", snr=0.1),),
        (
            Row("l2", "denoise_l2", _PLAIN),
            Row("no critic + l1", "robust_gan", (*_PLAIN, _NO_CRITIC)),
            _game("(0, 0)-GAN + l1", 0, 0, *_PLAIN_GAME),
            Row("WGANgp + l1", "wgan_gp_l1", _PLAIN_GAME),
            _game("(1, -1)-GAN + l1", 1, -1, *_PLAIN_GAME),
            _game("(.5, -.5)-GAN + l1", 0.5, -0.5, *_PLAIN_GAME),
        ),
        ("[5], table 5, SNR 0.1", *_printed("gu", "5", "0.1")),
        intermediates=3,
        classical=("covariance_wiener",),
    ),
    Table(
        "lambda",
        "(.5, .5)-GAN, weight of l1 beside a critic of weight 1, SNR 0.1",
        _EAG,
        (Case("SNR 0.1", snr=0.1),),
        (
            *(
                _game(
                    f"lambda {weight:g}, l1 as {kind}",
                    0.5,
                    0.5,
                    f"loss.pixel={{{name}: {float(weight)}}}",
                    "adversarial.weight=1",
                )
                for kind, name in (("sum", "l1_sum"), ("mean", "l1"))
                for weight in _LAMBDAS
            ),
            Row("no critic + l1", "robust_gan", (_NO_CRITIC,)),
        ),
        ("[5], table 6, lambda", *_printed("gu", "6")),
        intermediates=3,
        classical=("covariance_wiener",),
    ),
    Table(
        "alone",
        "GANs with l1 and without, weights not averaged, SNR 0.1",
        _EAG,
        (Case("SNR 0.1", snr=0.1),),
        (
            Row("no critic + l1", "robust_gan", (_NO_CRITIC, _NOT_AVERAGED)),
            _game("(0, 0)-GAN + l1", 0, 0, _NOT_AVERAGED),
            _game("(0, 0)-GAN + l1, critic of weight 1", 0, 0, "adversarial.weight=1", _NOT_AVERAGED),
            _game("(0, 0)-GAN", 0, 0, _ALONE, "adversarial.weight=1", _NOT_AVERAGED),
            _game("(.5, .5)-GAN", 0.5, 0.5, _ALONE, "adversarial.weight=1", _NOT_AVERAGED),
            Row("WGANgp", "wgan_gp_l1", (_ALONE, "adversarial.weight=1", _NOT_AVERAGED)),
        ),
        ("[5], figure 2: the (0, 0)-GAN's error oscillates, with l1 it does not.",),
        intermediates=3,
        classical=("covariance_wiener",),
        checks=20,
    ),
    _at_low_snr("6cvm", "EMD-8511"),
    _at_low_snr("5vox_reassembled", "EMD-24928"),
    Table(
        "structural_noise",
        "A map with density beside the particle's, SNR 0.03",
        ("6cvm",),
        (Case("SNR 0.03", snr=0.03),),
        (
            Row("l2, model alone", "denoise_l2"),
            Row("noise2noise", "noise2noise"),
            Row("l2, map cleaned", "denoise_l2", with_map=True),
            Row("no critic + l1, map cleaned", "robust_gan", (_NO_CRITIC,), with_map=True),
            _mapped(_game("DenoiseGAN, map cleaned", 0.0, 0.0)),
            _mapped(_game("RobustGAN, map cleaned", 0.5, 0.5)),
            Row("sr3 + U-Net, map cleaned", "sr3", with_map=True),
        ),
        ("[2], figure 3: structural noise is left by all but the paper's method.",),
        classical=("covariance_wiener",),
        structural=True,
    ),
    Table(
        "noise_blocks",
        "Conditional GAN, weak and strong real noise",
        ("6cvm",),
        (
            Case("weak real noise, SNR 0.5", snr=0.5, real_noise=True),
            Case("strong real noise, SNR 0.05", snr=0.05, real_noise=True),
        ),
        (
            *_on_noise("DnCNN", "dncnn"),
            *_on_noise("GAN (unsupervised)", "cgan_unsupervised"),
            *_on_noise("cGAN + perceptual, no critic", "cgan_perceptual", _NO_CRITIC),
            *_on_noise("cGAN", "cgan_perceptual", "loss.perceptual=0"),
            *_on_noise("cGAN + perceptual", "cgan_perceptual"),
        ),
        ("[1], table 1, weak and strong noise together", *_printed("tang2022", "1")),
        classical=("mean", "gaussian", "bilateral", "low_pass", "bm3d", "covariance_wiener"),
    ),
    Table(
        "sigma",
        "Wasserstein GAN, noise of standard deviation 10 to 80 on 8 bits",
        ("6cvm",),
        # the noisy image of the paper's sigma 40 has 13.08 dB, which is 40 times the root of 2
        tuple(Case(f"sigma {sigma}", sigma=sigma * math.sqrt(2)) for sigma in (10, 20, 40, 80)),
        (
            *(_optimised(*rates) for rates in _OPTIMISERS),
            Row("no critic", "wgan_gray", (_NO_CRITIC,)),
            Row("WGAN + mean grey value", "wgan_mean_grey"),
            Row("l2", "denoise_l2"),
        ),
        (
            "[3], table 1, sigma 40",
            *_printed("ouyang2020", "1"),
            "[3], table 2, optimisers",
            *_printed("ouyang2020", "2"),
        ),
        classical=("gaussian", "bm3d", "dictionary", "covariance_wiener"),
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
        Whether every layer of every network has half the preset's channels, and so a quarter of its weights.
    steps, batch_size
        Updates of the network, and images of a batch; None keeps the preset's.
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

    def snr(self, ratio: float) -> float:
        """The ratio at this size that leaves the image the information it has at `REFERENCE_BOX_PX`.

        SNR is per pixel: binned to half the side, an image has four times the ratio.
        """
        return ratio * (REFERENCE_BOX_PX / self.box_px) ** 2


SIZES = {
    "tiny": Size(64, 2, True, 400, 16, 512, 4096, 256, 1024, 8),
    "small": Size(64, 2, False, 1000, None, 1024, 8192, 256, 2048, 8),
    "full": Size(128, 3, False, None, None, 4096, 32768, 512, 4096, 16),
}
