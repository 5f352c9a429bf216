from studies.signals import HELD_OUT, TUNING, Signals

SMALL = Signals(train_size=20, steps=3, batch=10)


def test_of_the_trials_that_fit_the_one_with_the_lowest_held_out_error_is_chosen_by_its_average_where_it_has_one():
    trials = [{"lr": lr} for lr in (0.1, 0.2, 0.3)]
    rows = [{"test_error": test, "train_error": fit, "average_test_error": test - gain, "average_train_error": fit}
            for test, fit, gain in ((30, 0, 0), (40, 1, 20), (10, 9, 5)) for _ in range(2)]
    found = SMALL.chosen({"lr": (0.1, 0.2, 0.3)}, trials, rows)
    assert found["best"] == {"lr": 0.2} and found["edge"] == []
    assert [trial["held_out_error"] for trial in found["trials"]] == [30, 20, 5]
    bare = [{name: row[name] for name in ("test_error", "train_error")} for row in rows]
    assert SMALL.chosen({"lr": (0.1, 0.2, 0.3)}, trials, bare)["edge"] == ["lr"]  # 0.1 is now the best, and the first
    under = [row | {"train_error": 50 - row["train_error"]} for row in bare[:4]]
    none = SMALL.chosen({"lr": (0.1, 0.2)}, trials[:2], under)
    assert none["best"] == {"lr": 0.2}  # none fits: the nearest


def test_judging_and_tuning_share_neither_seeds_nor_test_signals():
    assert not {*TUNING, HELD_OUT} & set(SMALL.seeds) and len(SMALL.seeds) >= 20
    judged, held_out = SMALL.data(100), SMALL.data(100, held_out=True)
    assert judged.train_x.equal(held_out.train_x) and not SMALL.data(101).train_x.equal(judged.train_x)
    assert judged.test_x[:100].ne(held_out.test_x[:100]).any(dim=-1).all()
