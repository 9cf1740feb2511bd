import pytest
import torch

from cryohush.core.models import MODELS, ShuffleUNet
from cryohush.core.models.unet import from_cells, join

SMALL = {"widths": (8, 12, 16), "blocks": (1, 1, 1), "unshuffle": 2}


def network(**changes) -> ShuffleUNet:
    torch.manual_seed(0)
    net = ShuffleUNet(**{**SMALL, **changes}).double()
    for module in net.modules():  # blocks start as identities: make every path carry something
        if isinstance(module, torch.nn.Conv2d):
            torch.nn.init.normal_(module.weight, std=0.2)
    return net


@pytest.mark.parametrize("unshuffle", [2, 4])
@pytest.mark.parametrize("sides", [(32, 32), (48, 80)])
def test_output_has_the_shape_of_the_input(unshuffle, sides):
    assert network(unshuffle=unshuffle)(torch.randn(2, 1, *sides).double()).shape == (2, 1, *sides)


def test_sides_must_be_multiples_of_the_stride():
    net = network()
    assert net.stride == 8
    with pytest.raises(RuntimeError):
        net(torch.zeros(1, 1, 36, 36).double())


def test_nothing_beyond_the_receptive_field_has_influence():
    net = network()
    x = torch.randn(1, 1, 160, 160).double().requires_grad_()
    for row, column in [(80, 80), (81, 87), (79, 84)]:  # different phases of the coarse grids
        (gradient,) = torch.autograd.grad(net(x)[0, 0, row, column], x)
        reached = gradient[0, 0].nonzero()
        distance = (reached - torch.tensor([row, column])).abs().max().item()
        assert distance <= net.receptive_field_px
        assert distance > 0.6 * net.receptive_field_px  # the bound is not a mere guess


def test_shift_by_the_stride_shifts_the_output():
    net = network()
    x = torch.zeros(1, 1, 192, 192).double()
    x[..., 88:104, 88:104] = torch.randn(16, 16).double()
    moved = torch.roll(net(x), (net.stride, -net.stride), (-2, -1))
    inside = (..., slice(72, 120), slice(72, 120))  # farther from the border than the receptive field
    torch.testing.assert_close(net(torch.roll(x, (net.stride, -net.stride), (-2, -1)))[inside], moved[inside])


def test_registry_makes_networks_by_name():
    assert isinstance(MODELS["shuffle_unet"](**SMALL), ShuffleUNet)


def test_widths_and_blocks_must_match():
    with pytest.raises(ValueError, match="as many widths as blocks"):
        ShuffleUNet(widths=(8, 16), blocks=(1,))


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("keeps_gradients", [True, False])
def test_joining_two_levels_is_a_transposed_convolution_and_a_sum(layout, keeps_gradients):
    torch.manual_seed(0)
    up = torch.nn.ConvTranspose2d(6, 4, 2, stride=2).double()
    x = torch.randn(3, 6, 5, 7).double().to(memory_format=layout)
    skip = torch.randn(3, 4, 10, 14).double().to(memory_format=layout)
    expected = up(x) + skip
    with torch.set_grad_enabled(keeps_gradients):
        torch.testing.assert_close(join(up, x, skip.clone()), expected)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("channels", [4, 12])
def test_cells_become_pixels_as_by_pixel_shuffle(channels, layout):
    cells = torch.randn(2, channels, 8, 12).to(memory_format=layout)
    expected = torch.nn.functional.pixel_shuffle(cells, 2)
    torch.testing.assert_close(from_cells(cells, 2), expected, rtol=0, atol=0)
