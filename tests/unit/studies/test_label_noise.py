import pytest
import torch

from sharpnb import lab
from studies import label_noise as study


def test_validation_images_are_clean_and_apart_from_the_rest():
    noisy, held = study.parts("digits", 100, 40, 0, torch.float64, 0.5)
    whole = lab.load_data("digits", train_size=140, dtype=torch.float64)
    assert torch.equal(noisy.train_x, whole.train_x[:100]) and torch.equal(held.test_x, whole.train_x[100:])
    assert (noisy.train_y != whole.train_y[:100]).sum() == 50
    assert torch.equal(held.test_y, whole.train_y[100:]) and torch.equal(noisy.test_y, whole.test_y)


def test_the_hyperparameter_is_picked_on_validation_and_not_on_test():
    entries = [{"method": "SAM", "value": value, "noise": 0.2, "seed": seed, "test_error": test, "validation_error": v}
               for value, test, v in ((0.0, 1.0, 1.0), (0.1, 9.0, 5.0), (0.2, 5.0, 6.0)) for seed in (1, 0)]
    assert study.picked(entries, "SAM", 0.2) == 0.0
    assert study.accuracy(entries, "SAM", 0.2) == [91.0, 91.0]  # ρ = 0 is SGD and no choice for SAM
    assert study.accuracy(entries, "SGD", 0.2) == [99.0, 99.0]


def test_the_paper_s_rows_are_those_of_its_table():
    assert study.PAPER["SAM"] == (95.1, 93.4, 90.5, 77.9) and study.PAPER["SGD"] == (84.8, 68.8, 48.2, 26.2)
    assert all(len(row) == len(study.NOISES) for row in (*study.PAPER.values(), *study.LITERATURE.values()))


def test_the_whole_study_runs_at_the_size_of_a_test():
    s, nb = study.TOY, lab.start("05_label_noise", profile="toy", device="cpu")
    entries = study.run(s, nb)
    methods = {entry["method"] for entry in entries}
    assert methods == set(study.METHODS) - {"SGD"}
    assert all(0 <= entry[key] <= 100 for entry in entries for key in ("test_error", "validation_error", "train_error"))
    assert all(entry["best_epoch"] <= entry["test_error"] + 1e-9 for entry in entries)
    for method in study.METHODS:
        for noise in study.NOISES:
            assert len(study.accuracy(entries, method, noise)) == s.seeds


def test_ordinary_rules_and_mixup_start_from_the_same_nets():
    s, nb = study.TOY, lab.start("05_label_noise", profile="toy", device="cpu")
    one = [{"method": "SAM", "value": 0.0, "noise": 0.2, "seed": 0}]
    with pytest.raises(KeyError):
        study.with_rule(s, nb, [{"value": 0.0}], lambda e: {"rule": "sgd"})
    w = study.with_rule(s, nb, one, lambda e: {"rule": "sam", "rho": 0.0})
    again = study.with_rule(s, nb, [dict(one[0])], lambda e: {"rule": "sgd"})
    assert torch.allclose(w, again, atol=1e-6)


def test_mixed_batches_that_do_not_fit_into_memory_are_trained_in_halves(monkeypatch):
    s, nb = study.TOY, lab.start("05_label_noise", profile="toy", device="cpu")
    grid = lambda: study.grid(s, "Mixup", (1.0,), (0.2, 0.4))
    whole = grid()
    expected, fit = study.with_mixup(s, nb, whole), study.Nets.fit

    def limited(rows, *arguments, **options):
        if len(rows.w) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return fit(rows, *arguments, **options)

    monkeypatch.setattr(study.Nets, "fit", limited)
    entries = grid()
    with pytest.warns(UserWarning, match="4 nets on mixed batches at once do not fit .* going on with 2"):
        w = study.with_mixup(s, nb, entries)
    assert torch.allclose(w, expected, atol=1e-5) and [e["test_error"] for e in entries] == [e["test_error"] for e in whole]
