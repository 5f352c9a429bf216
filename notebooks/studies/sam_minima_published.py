"""Numbers of the SAM paper that notebook 02 quotes: its error tables (percent), and the hyperparameters behind them.

Table 1's CIFAR-100 column is shifted in a copy of the text that is in circulation; the values here are those of the
full text.
"""

from studies.label_noise import PAPER as TABLE4

AUGMENTATIONS = ("Basic", "Cutout", "AA")
MODELS = ("WRN-28-10 (200 epochs)", "WRN-28-10 (1800 epochs)", "Shake-Shake 26 2x96d", "PyramidNet",
          "PyramidNet + ShakeDrop")

# (data, model) -> for each augmentation: SAM and its half-width of the 95 % interval, SGD and its. "<0.1" reads 0.1.
Row = tuple[tuple[float, float, float, float], ...]
TABLE1: dict[tuple[str, str], Row] = {
    ("cifar10", MODELS[0]): ((2.7, 0.1, 3.5, 0.1), (2.3, 0.1, 2.6, 0.1), (2.1, 0.1, 2.3, 0.1)),
    ("cifar10", MODELS[1]): ((2.4, 0.1, 3.5, 0.1), (2.1, 0.1, 2.7, 0.1), (1.6, 0.1, 2.2, 0.1)),
    ("cifar10", MODELS[2]): ((2.3, 0.1, 2.7, 0.1), (2.0, 0.1, 2.3, 0.1), (1.6, 0.1, 1.9, 0.1)),
    ("cifar10", MODELS[3]): ((2.7, 0.1, 4.0, 0.1), (1.9, 0.1, 2.5, 0.1), (1.6, 0.1, 1.9, 0.1)),
    ("cifar10", MODELS[4]): ((2.1, 0.1, 2.5, 0.1), (1.6, 0.1, 1.9, 0.1), (1.4, 0.1, 1.6, 0.1)),
    ("cifar100", MODELS[0]): ((16.5, 0.2, 18.8, 0.2), (14.9, 0.2, 16.9, 0.1), (13.6, 0.2, 15.8, 0.2)),
    ("cifar100", MODELS[1]): ((16.3, 0.2, 19.1, 0.1), (14.0, 0.1, 17.4, 0.1), (12.8, 0.2, 16.1, 0.2)),
    ("cifar100", MODELS[2]): ((15.1, 0.1, 17.0, 0.1), (14.2, 0.2, 15.7, 0.2), (12.8, 0.1, 14.1, 0.2)),
    ("cifar100", MODELS[3]): ((14.6, 0.4, 19.7, 0.3), (12.6, 0.2, 16.4, 0.1), (11.6, 0.1, 14.6, 0.1)),
    ("cifar100", MODELS[4]): ((13.3, 0.2, 14.5, 0.1), (11.3, 0.1, 11.8, 0.2), (10.3, 0.1, 10.6, 0.1)),
}
TABLE5: dict[tuple[str, str], dict[str, tuple[float, float, float, float]]] = {
    ("svhn", MODELS[0]): {"Basic": (1.42, 0.02, 1.58, 0.03), "AA": (0.99, 0.01, 1.14, 0.04)},
    ("svhn", MODELS[2]): {"Basic": (1.44, 0.02, 1.58, 0.05), "AA": (1.07, 0.02, 1.03, 0.02)},
    ("fashion_mnist", MODELS[0]): {"Basic": (3.98, 0.05, 4.57, 0.07), "AA": (3.61, 0.06, 3.86, 0.14)},
    ("fashion_mnist", MODELS[2]): {"Basic": (3.97, 0.09, 4.37, 0.06), "AA": (3.59, 0.01, 3.76, 0.07)},
}
# Top-1 of ResNet-50, -101, -152 at 100, 200, 400 epochs (Table 2), and of EfficientNet-b7 (Table 3): SAM, without.
TABLE2 = ((22.5, 22.9), (21.4, 22.3), (20.9, 22.3), (20.2, 21.2), (19.4, 20.9), (19.0, 22.3), (19.2, 20.4),
          (18.5, 20.3), (18.4, 20.9))
TABLE3 = ((6.80, 8.15), (0.63, 1.16), (3.97, 4.24), (5.18, 5.94), (0.88, 0.95), (7.44, 7.68), (13.64, 14.30),
          (7.02, 7.17))

# Learning rate and weight decay on CIFAR-10, of WideResNet on Fashion-MNIST too (Tables 6, 7).
HYPER = dict(zip(MODELS, ((0.1, 5e-4), (0.05, 1e-3), (0.02, 1e-3), (0.05, 5e-4), (0.02, 5e-4)), strict=True))


def reduction(base: float, sam: float) -> float:
    """Error reduction in percent when SAM takes the place of ``base``: 100 (base - sam) / base."""
    return 100 * (base - sam) / base


def figure1_left() -> dict[str, list[float]]:
    """Return the dots of Fig. 1 (left), recomputed from the paper's own tables, by group.

    Its noisy-label dots compare SAM with *Mixup* (Table 4 gives accuracies), its finetuning dots are EfficientNet-b7's.
    """
    groups = {name: [reduction(sgd, sam) for (data, _), row in TABLE1.items() if data == key for sam, _, sgd, _ in row]
              for name, key in (("CIFAR-10", "cifar10"), ("CIFAR-100", "cifar100"))}
    return groups | {
        "ImageNet": [reduction(base, sam) for sam, base in TABLE2],
        "Finetuning": [reduction(base, sam) for sam, base in TABLE3],
        "SVHN, Fashion-MNIST": [reduction(sgd, sam) for row in TABLE5.values() for sam, _, sgd, _ in row.values()],
        "Noisy CIFAR-10": [reduction(100 - mixup, 100 - sam)
                           for sam, mixup in zip(TABLE4["SAM"], TABLE4["Mixup"], strict=True)],
    }
