import torch

from sharpnb.lab import models
from sharpnb.lab.data import load_data, with_label_noise
from sharpnb.many.engine import Nets
from studies.mixup import Mixup, bootstrapped


def test_images_and_labels_are_mixed_alike():
    x = torch.eye(8, dtype=torch.float64).expand(2, 8, 8).clone()  # image i is the i-th unit vector
    y = torch.arange(8).expand(2, 8)
    mixed, soft = Mixup([1.0, 8.0], classes=8, seeds=[0, 1])((x, y))
    assert torch.allclose(mixed, soft, atol=1e-15)  # so an image shows its own mixture
    assert torch.allclose(soft.sum(2), torch.ones(2, 8, dtype=torch.float64))
    share = soft.diagonal(dim1=1, dim2=2)
    for k in range(2):
        assert share[k].unique().numel() <= 2  # λ, or 1 where the permutation leaves an image in place


def test_bootstrap_puts_predictions_in_the_place_of_labels():
    data = with_label_noise(load_data("digits", train_size=40, dtype=torch.float64), 0.5)
    rows = Nets([0, 1], data, lambda seed: models.mlp((64, 10), seed=seed))
    first, second = bootstrapped(rows, rows.w)
    for k, labels in enumerate((first, second)):
        net = models.mlp((64, 10), seed=k).double()
        assert torch.equal(labels, net(data.train_x).argmax(1)) and labels.dtype == data.train_y.dtype
    assert not torch.equal(first, second)
