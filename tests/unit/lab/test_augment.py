import pytest
import torch
from torchvision.transforms import AutoAugment, AutoAugmentPolicy

from sharpnb.lab import augment


def test_cutout_makes_one_square_hole_an_image_that_may_reach_over_the_border():
    x = torch.ones(400, 2, 8, 8)
    holes = augment.Cutout(4)(x, torch.Generator().manual_seed(0)) == 0
    assert torch.equal(holes[:, 0], holes[:, 1])
    rows, columns = holes[:, 0].any(2).sum(1), holes[:, 0].any(1).sum(1)
    assert torch.equal(holes[:, 0].sum((1, 2)), rows * columns)  # a rectangle
    assert rows.max() == columns.max() == 4 and rows.min() == columns.min() == 2  # centre in the first row: half is out
    assert len({tuple(hole.flatten().tolist()) for hole in holes[:, 0]}) > 40


def test_autoaugment_draws_by_image_and_does_what_torchvision_does():
    x = torch.rand(300, 3, 12, 12)
    ours = augment.AutoAugment("svhn")(x, torch.Generator().manual_seed(1))
    again = augment.AutoAugment("svhn")(x, torch.Generator().manual_seed(1))
    assert torch.equal(ours, again)
    policies = AutoAugment(AutoAugmentPolicy.SVHN)
    pixels = (255 * x).round().to(torch.uint8)
    for image, got in zip(pixels[:4], (255 * ours[:4]).round().to(torch.uint8), strict=True):
        outcomes = []
        for number, ((_, p, _), (_, q, _)) in enumerate(policies.policies):
            for first in ([0.0, 2.0] if p < 1 else [0.0]):
                for second in ([0.0, 2.0] if q < 1 else [0.0]):
                    for signs in ([0, 0], [0, 1], [1, 0], [1, 1]):
                        drawn = (number, torch.tensor([first, second]), signs)
                        policies.get_params = lambda _, drawn=drawn: drawn
                        outcomes.append(policies(image))
        assert any(torch.equal(got, outcome) for outcome in outcomes)


def test_autoaugment_undoes_the_normalisation_and_keeps_the_size():
    x = torch.rand(64, 1, 8, 8)
    plain = augment.AutoAugment("svhn", side=32)(x, torch.Generator().manual_seed(0))
    scaled = augment.AutoAugment("svhn", (0.5,), (0.25,), side=32)((x - 0.5) / 0.25, torch.Generator().manual_seed(0))
    assert plain.shape == x.shape and plain.min() >= 0 and plain.max() <= 1
    assert torch.allclose(scaled * 0.25 + 0.5, plain, atol=0.02)  # a rounding of 1/255 may be stretched by a contrast
    with pytest.raises(ValueError, match="is not a valid"):
        augment.AutoAugment("mnist")(x, torch.Generator())
