import torch

from cryohush.core.losses.pixel import PIXEL_LOSSES


def test_losses_of_known_differences_image_by_image():
    target = torch.zeros(2, 1, 16, 16)
    stripes = torch.tensor([2.0, -2.0]).repeat(8).expand(16, 16)
    estimate = torch.stack([stripes, torch.ones(16, 16)])[:, None]
    expected = {
        "l1": [2.0, 1.0],
        "l2": [4.0, 1.0],
        # of 16 x 16 pixels
        "l1_sum": [512.0, 256.0],
        "l2_sum": [1024.0, 256.0],
        "mean_grey_value": [0.0, 1.0],
        "coarse_l1": [0.0, 1.0],
    }
    assert {name: loss(estimate, target).tolist() for name, loss in PIXEL_LOSSES.items()} == expected
