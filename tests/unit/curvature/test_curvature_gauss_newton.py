"""Gauss-Newton and Fisher matrices against Jacobians written out, and where they are the Hessian."""

import numpy as np
import pytest
import torch
from torch import nn

from conftest import close, mlp
from sharpnb.curvature import FisherOperator, GGNOperator, HessianOperator, top_eigenvalues

F = nn.functional


def jacobian(model, x):
    params = list(model.parameters())
    out = model(x)
    grads = [torch.autograd.grad(o, params, retain_graph=True) for o in out.reshape(-1)]
    rows = [torch.cat([g.reshape(-1) for g in grad]) for grad in grads]
    return out.detach(), torch.stack(rows).view(*out.shape, -1)


@pytest.mark.parametrize("cut", [[30], [20, 7, 3]])
def test_gauss_newton_and_fisher_against_explicit_jacobians(mlp_case, cut):
    x, y, model = mlp_case.x[:30], mlp_case.y[:30], mlp_case.model
    out, j = jacobian(model, x)
    p = out.softmax(1)
    curvature = torch.diag_embed(p) - p[:, :, None] * p[:, None, :]
    batches = list(zip(x.split(cut), y.split(cut), strict=True))
    ggn = GGNOperator(model, mlp_case.loss, batches).to_dense()
    close(ggn, torch.einsum("bon,boq,bqm->nm", j, curvature, j) / 30, 1e-10)
    score = torch.einsum("bo,bon->bn", p - F.one_hot(y, 4), j)
    empirical = FisherOperator(model, mlp_case.loss, batches)
    close(empirical.to_dense(), score.T @ score / 30, 1e-10)
    v = torch.randn(empirical.n, 4, dtype=torch.float64)
    empirical._batched = False
    close(empirical @ v, score.T @ (score @ v) / 30, 1e-10)
    assert top_eigenvalues(GGNOperator(model, mlp_case.loss, batches), 1, "SA", tol=1e-10).values[0] > -1e-12


def test_fisher_with_drawn_targets_tends_to_gauss_newton(mlp_case):
    torch.manual_seed(1)
    model, data = mlp().double(), [(mlp_case.x[:20], mlp_case.y[:20]), (mlp_case.x[20:30], mlp_case.y[20:30])]
    ggn = GGNOperator(model, mlp_case.loss, data).to_dense()
    few, many = (FisherOperator(model, mlp_case.loss, data, kind="mc", draws=d) for d in (2, 200))
    far, near = ((f.to_dense() - ggn).norm() / ggn.norm() for f in (few, many))
    assert near < 0.1 < 0.3 < far
    v = torch.randn(many.n, 4, dtype=torch.float64)
    close(few @ v, FisherOperator(model, mlp_case.loss, data, kind="mc", draws=2, memory=0) @ v)  # rebuilt graphs


def test_gauss_newton_is_the_hessian_of_a_linear_model():
    torch.manual_seed(0)
    model, x, t = nn.Linear(5, 3).double(), torch.randn(40, 5).double(), torch.randn(40, 3).double()
    for loss, y in [(F.mse_loss, t), (F.cross_entropy, t.argmax(1))]:
        hessian = HessianOperator(model, loss, (x, y)).to_dense()
        close(GGNOperator(model, loss, (x, y)).to_dense(), hessian)
        augmented = torch.cat([x, torch.ones(40, 1).double()], 1)
        if loss is F.mse_loss:
            expected = torch.kron(torch.eye(3).double(), 2 * augmented.T @ augmented / 40 / 3)
            order = torch.cat([torch.arange(18).view(3, 6)[:, :5].reshape(-1), torch.arange(18).view(3, 6)[:, 5]])
            close(hessian, expected[order][:, order])
        else:
            zeros = (np.abs(np.linalg.eigvalsh(hessian.numpy())) < 1e-14).sum()
            assert zeros == 6, "adding the same row to every class changes nothing: one zero a feature"
