"""What runs otherwise on a device, run on the CPU: numbers that stay in tensors, and gradients that are not finite."""

from __future__ import annotations

import family
import pytest
import torch
from torch import Tensor, nn

from sharpnb.optim import foreach


@pytest.fixture(params=[True, False], ids=["host", "as on a device"])
def host(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    monkeypatch.setattr(foreach, "on_host", lambda t: request.param)
    return request.param


@pytest.mark.parametrize("name", family.CLASSES)
def test_numbers_on_the_host_and_on_the_device_make_one_step(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    ends = []
    for host in (True, False):
        monkeypatch.setattr(foreach, "on_host", lambda t, host=host: host)
        params = family.parameters()
        optimizer = family.CLASSES[name](torch.optim.SGD(params, lr=0.05, momentum=0.9), rho=0.1)
        family.advance(name, optimizer, family.losses_of(params), 10)
        ends.append(family.flat(params))
    assert torch.allclose(*ends, rtol=0, atol=1e-12)
    assert (ends[0] - family.flat(family.parameters())).abs().max() > 1e-2


@pytest.mark.parametrize("skip", [True, False])
@pytest.mark.parametrize("factor", [float("nan"), float("inf"), 0.0, 3e38])
def test_a_bad_gradient_is_not_followed(factor: float, skip: bool, host: bool) -> None:
    """No perturbation either way; then no step where it was not finite, or without the test for it the base's plain
    one."""
    p, seen = nn.Parameter(torch.tensor([1.0, 2.0])), []
    optimizer = family.CLASSES["SAM"](torch.optim.SGD([p], lr=0.1), rho=0.5, skip_nonfinite=skip)

    def closure() -> Tensor:
        seen.append(p.detach().clone())
        loss = p.sum() * (factor if len(seen) == 1 else 1.0)
        loss.backward()
        return loss

    optimizer.step(closure)
    assert torch.equal(seen[0], seen[1])
    assert torch.allclose(p, seen[0] if skip and factor else torch.tensor([0.9, 1.9]))  # the norm of 3e38 is infinite


def _kinds() -> dict[str, Tensor]:
    draw = torch.Generator().manual_seed(0)
    plain = torch.randn(3, 4, generator=draw)
    return {"float32": plain, "float64": plain.double(), "bfloat16": plain.bfloat16(), "float16": plain.half(),
            "complex": torch.complex(plain, plain), "strided": torch.randn(4, 6, generator=draw)[:, ::2],
            "expanded": plain[0, :1].expand(5), "transposed": plain.T, "empty": torch.zeros(0), "large": plain + 3e38,
            "sparse": torch.sparse_coo_tensor(torch.tensor([[1, 1, 3]]), plain[:, :2], (5, 2), check_invariants=True)}


@pytest.mark.parametrize("value", [float("nan"), float("-inf")])
def test_one_number_that_is_not_finite_is_seen_in_any_kind_of_gradient(value: float, host: bool) -> None:
    for bad in ("", *(kind for kind in _kinds() if kind != "empty")):
        tensors = _kinds()
        if bad:
            where = tensors[bad]._values() if bad == "sparse" else tensors[bad]
            (where[:1] if bad == "expanded" else where[-1:, -1:]).fill_(value)
        before = [t.to_dense().clone() for t in tensors.values()]
        assert float(foreach.nonfinite(list(tensors.values()))) == float(bool(bad)), bad
        for old, new in zip(before, tensors.values(), strict=True):
            assert torch.equal(old.nan_to_num(), new.to_dense().nan_to_num())


def test_a_model_that_changes_its_dtype_between_steps_returns_bit_by_bit() -> None:
    model = nn.Linear(4, 3).to(torch.bfloat16)
    optimizer = family.CLASSES["SAM"](torch.optim.SGD(model.parameters(), lr=0.0), rho=0.3)
    losses = lambda: model(torch.ones(2, 4, dtype=model.weight.dtype)).square().sum(1)
    family.advance("SAM", optimizer, losses)
    model.double()
    with torch.no_grad():
        model.weight += 1e-12
    before = model.weight.detach().clone()
    family.advance("SAM", optimizer, losses)
    assert torch.equal(model.weight, before)
