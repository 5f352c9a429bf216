"""K trainings as one batched program, on the rules-on-rows."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from sharpnb import rules
from sharpnb.lab.augment import Augment
from sharpnb.lab.data import Data
from sharpnb.lab.training import Schedule, _progress, _schedule, pick_device
from sharpnb.many import settings
from sharpnb.many.averages import Averages
from sharpnb.many.batches import Feed
from sharpnb.many.cuda_graph import Captured, shared_memory
from sharpnb.many.net import BatchedNet, batched_forward, blocks, cross_entropy, evaluate_many
from sharpnb.many.retry_smaller import halving
from sharpnb.many.schedules import Clocks
from sharpnb.many.settings import RULES as RULES
from sharpnb.many.shards import in_shards

_IMAGES_AT_ONCE = 250  # of each member, in an evaluation: small blocks stay in the cache


@dataclass
class Many:
    """The result of :func:`train_many`; row k belongs to the k-th setting.

    Attributes:
        configs: the settings, in order.
        weights: final flat weights, (K, n), on the CPU. A diverged row holds what it had come to (not finite).
        averaged: the average on top: SWA's, else Lookahead's slow weights, else ``weights``; (K, n).
        kept: step -> weights (K, n), for the steps asked for.
        rows: one dictionary a member and evaluation: ``member``, ``step``, ``train_loss``, ``train_error``,
            ``test_loss``, ``test_error`` (nats, percent), and the member's own settings; with SWA or Lookahead also
            ``average_train_loss`` and so on, which are those of ``averaged``.
        diverged: for each member the first evaluated step at which its loss was not finite, or None.
    """

    configs: list[dict[str, Any]]
    weights: Tensor
    averaged: Tensor = field(default_factory=lambda: torch.empty(0))
    kept: dict[int, Tensor] = field(default_factory=dict)
    rows: list[dict[str, Any]] = field(default_factory=list)
    diverged: list[int | None] = field(default_factory=list)

    def final(self) -> list[dict[str, Any]]:
        """Return the last row of each member, in order."""
        last = {row["member"]: row for row in self.rows}
        return [last[k] for k in range(len(self.configs))]


def train_many(
    configs: Sequence[Mapping[str, Any]], data: Data | Sequence[Data], model: Callable[[int], nn.Module], *, steps: int,
    batch_size: int = 64, schedule: str | Schedule = "cosine", augment: Augment | None = None, evaluate_every: int = 0,
    keep: Sequence[int] = (), device: str = "auto", dtype: torch.dtype = torch.float32, bf16: bool = False,
    chunk: int = 32, progress: bool | None = None,
) -> Many:
    r"""Train one net a setting, all in lock-step.

    Each setting is a mapping: ``rule`` (one of :data:`RULES`), ``seed`` (of initial weights, batch order, augmentation,
    label noise and masks; default 0) and the rule's own hyperparameters by their names in :mod:`sharpnb.rules`, e.g.
    ``{"rule": "sam", "lr": 0.1, "momentum": 0.9, "rho": 0.2, "seed": 3}``. For SAM and its relatives ``base`` names
    the base rule (default ``"sgd"``), and ``m`` asks for m-sharpness: each batch is cut into shards of m images that
    perturb by themselves. WSAM takes ``perturbation`` (``"sam"``, ``"asam"``, ``"fisher"``), GSAM ``rho_min``.
    Any rule takes

    * ``schedule``, in the place of the argument; ``"restarts"`` with ``t_0`` and ``t_mult`` (default 2) is the cosine
      with warm restarts, the first period t_0 steps long;
    * ``lambda_norm``: the decay is :math:`\lambda_{norm}/\sqrt{T}`, T the steps in all, or in the current period;
    * ``label_noise``, the share of wrong training labels; ``augment``, in the place of the argument: None for
      none, or [pixels, flip] for ``shift_and_flip``;
    * ``lookahead_k`` and ``lookahead_alpha`` (default 0.5): Lookahead, the base's state kept at each synchronisation;
    * ``swa_start`` (share of training) and ``swa_every`` (steps, default 1): the average of the weights from there on.

    Members of one rule and equal options form one batched program; the numbers are columns. BatchNorm normalises each
    member by its own batch (in m-sharpness its own shard) and is evaluated with the statistics of the training set,
    measured at the weights that are evaluated; there are no running averages.

    Args:
        configs: the settings.
        data: one data set for all, or one for each setting (equal sizes; own splits or labels).
        model: seed -> net, e.g. ``lambda seed: models.mlp((64, 24, 10), seed=seed)``. No dropout.
        steps: number of updates of each member.
        batch_size: images an update.
        schedule: as in :func:`sharpnb.lab.train`.
        augment: a function of a batch and a generator, e.g. ``shift_and_flip(1, flip=False)``; one's own runs member by
            member.
        evaluate_every: evaluate each so many steps (0: at the end alone).
        keep: steps (0 is the start) at which the weights are kept.
        device: ``"auto"``, ``"cpu"``, ``"cuda"``.
        dtype: of weights and images. float64 makes the result independent of the grouping to about 1e-12.
        bf16: compute the gradients under bfloat16 autocast, linear layers apart; weights stay of type ``dtype``.
        chunk: members in one program at most (default 32: measured fastest on a CPU; a GPU takes hundreds). Where that
            does not fit into the GPU's memory, training begins anew with half as many, and a warning says so; the
            results are those of the smaller chunk.
        progress: show a progress bar (default: where one can be drawn).

    Raises:
        ValueError: for no settings, an unknown rule or hyperparameter, a missing or impossible value, unequal data
            sizes, or a model that cannot be batched.
        torch.OutOfMemoryError: if a single member does not fit.
    """
    checked = [settings.validated(config, k) for k, config in enumerate(configs)]
    if not checked or steps < 1 or chunk < 1:
        raise ValueError(f"{len(checked)} settings, {steps} steps, chunk = {chunk}: one of each at least.")
    sets = list(data) if not isinstance(data, Data) else [data] * len(checked)
    if len(sets) != len(checked) or len({len(d.train_y) for d in sets}) > 1:
        raise ValueError(f"{len(sets)} data sets for {len(checked)} settings: give one, or one each of one size.")
    shared = {"augment": augment, "schedule": _schedule(schedule)}
    plan = _Plan(checked, [shared | config for config in checked], sets, functools.cache(model), steps,
                 min(batch_size, len(sets[0].train_y)), pick_device(device), dtype, bf16, evaluate_every, keep,
                 progress)
    return halving(functools.partial(_train, plan), min(chunk, len(checked)), "members of a batched program")


@dataclass(frozen=True)
class _Plan:
    """The arguments of :func:`train_many`, checked."""

    configs: list[dict[str, Any]]
    complete: list[dict[str, Any]]  # with what the members share
    sets: list[Data]
    model: Callable[[int], nn.Module]
    steps: int
    batch_size: int
    device: torch.device
    dtype: torch.dtype
    bf16: bool
    evaluate_every: int
    keep: Sequence[int]
    progress: bool | None


def _train(p: _Plan, chunk: int) -> Many:
    result = Many(p.configs, torch.empty(0), diverged=[None] * len(p.configs))
    memory = shared_memory(p.device)
    groups = [
        _Group(members, [p.complete[k] for k in members], [p.sets[k] for k in members], p.model, p.steps, p.batch_size,
               p.device, p.dtype, p.bf16, memory)
        for members in settings.grouped(p.configs, chunk)
    ]
    for step in _progress(p.steps, p.progress):
        if step in p.keep:
            result.kept[step] = _gather(groups, [group.w for group in groups])
        for group in groups:
            group.step(step)
        if step + 1 == p.steps or (p.evaluate_every and (step + 1) % p.evaluate_every == 0):
            for group in groups:
                group.evaluate(step + 1, result)
    result.weights = _gather(groups, [group.w for group in groups])
    result.averaged = _gather(groups, [group.w if group.averages is None else group.averages.best for group in groups])
    if p.steps in p.keep:
        result.kept[p.steps] = result.weights
    result.rows.sort(key=lambda row: (row["step"], row["member"]))
    return result


class _Group:
    """The members that share a rule and its options: one batched program."""

    def __init__(
        self, members: list[int], configs: list[dict[str, Any]], sets: list[Data], model: Callable[[int], nn.Module],
        steps: int, batch_size: int, device: torch.device, dtype: torch.dtype, bf16: bool = False,
        memory: Any = None,
    ) -> None:
        self.members, self.configs, self.rule_name = members, configs, configs[0]["rule"]
        nets = [model(config["seed"]) for config in configs]
        self.net = batched_forward(nets[0].to(device, dtype))
        self.gradient = Captured(functools.partial(self.net.gradient_and_logits, bf16=bf16), memory)
        self.bf16 = bf16
        flat = [nn.utils.parameters_to_vector(net.parameters()).detach() for net in nets]
        self.w = torch.stack([row.to(device, dtype) for row in flat])  # (K, n)
        self.state: rules.State = None
        self.feed = Feed(configs, sets, batch_size, configs[0]["augment"], device, dtype)
        hyper = settings.columns(configs, device, dtype)
        self.clocks = Clocks(configs, steps, hyper.pop("lambda_norm", None))
        self.averages = Averages.of(hyper, self.w, steps)
        shard = hyper.pop("m", batch_size)
        if batch_size % shard:
            raise ValueError(f"m = {shard} does not divide the batch size {batch_size}. Choose a divisor.")
        self.shards = batch_size // int(shard)
        self.radius = {name: hyper.pop(name) for name in ("rho_min", "lr_max", "lr_min") if name in hyper}
        scaled = torch.cat([torch.full((p.numel(),), p.ndim > 1) for p in nets[0].parameters()]).to(device)
        self.rule, self.hyper = settings.bound(self.rule_name, hyper, scaled)

    def step(self, step: int) -> None:
        x, y = self.feed.next_batch()
        if self.shards > 1:  # a shard is a row of its own
            x, y = (part.unflatten(1, (self.shards, -1)).flatten(0, 1) for part in (x, y))
        hyper = self.hyper | self.clocks.at(step, self.w)
        hyper |= self._of_this_step(step, hyper)
        gradients = _Gradients(self.net, self.gradient, x, y, self.bf16)
        rule = in_shards(self.rule, self.shards) if self.shards > 1 else self.rule
        if self.rule_name == "esam":
            self.w, self.state = rule(self.w, gradients, losses=gradients.losses, state=self.state, **hyper)
        else:
            self.w, self.state = rule(self.w, gradients, state=self.state, **hyper)
        if self.averages is not None:
            self.w = self.averages.after(step, self.w)

    def _of_this_step(self, step: int, hyper: dict[str, Any]) -> dict[str, Any]:
        """Return what a rule takes that is new in each step: GSAM's radius, ESAM's masks."""
        if self.radius:
            limits = {"rho": hyper["rho"], "lr_max": hyper["lr"], **self.radius}
            return {"rho": rules.gsam_rho(hyper["eta"] * hyper["lr"], **limits)}
        if self.rule_name != "esam":
            return {}
        seeds = [config["seed"] for config in self.configs]  # as sharpnb.optim.ESAM draws the masks
        drawn = {seed: torch.rand(self.w.shape[1], generator=torch.Generator().manual_seed(seed * 1_000_003 + step))
                 for seed in dict.fromkeys(seeds)}
        uniform = torch.stack([drawn[seed] for seed in seeds]).to(self.w.device)
        return {"mask": (uniform < self.hyper["beta"]).to(self.w)}

    @torch.no_grad()
    def evaluate(self, step: int, result: Many) -> None:
        measured = self._measured(self.w)
        if self.averages is not None:
            measured |= {f"average_{name}": column for name, column in self._measured(self.averages.best).items()}
        for k, member in enumerate(self.members):
            values = {name: column[k] for name, column in measured.items()}
            result.rows.append({"member": member, "step": step, **values, **result.configs[member]})
            if result.diverged[member] is None and not math.isfinite(values["train_loss"]):
                result.diverged[member] = step

    def _measured(self, w: Tensor) -> dict[str, list[float]]:
        found = {name: [math.nan] * len(w) for name in ("train_loss", "train_error", "test_loss", "test_error")}
        for data, rows in self.feed.parts:
            own = w[rows]
            chunks = [x[None] for x in blocks(data.train_x, _IMAGES_AT_ONCE)]
            statistics = self.net.statistics(own, chunks) if self.net.normalises else None
            for part, images in (("train", data.train), ("test", data.test)):
                values = evaluate_many(self.net, own, images, statistics, _IMAGES_AT_ONCE)
                for name, column in zip(("loss", "error"), values, strict=True):
                    for k, value in zip(rows.tolist(), column, strict=True):
                        found[f"{part}_{name}"][k] = value
        return found


class _Gradients:
    """The mean loss's gradient of each row on one batch, as a function of rows; ``rows`` picks images (for ESAM)."""

    def __init__(
        self, net: BatchedNet, gradient: Callable[..., Any], x: Tensor, y: Tensor, bf16: bool = False
    ) -> None:
        self.net, self.gradient, self.x, self.y, self.bf16 = net, gradient, x, y, bf16
        self.last: tuple[Tensor | None, Tensor | None] = None, None  # weights, and the batch's logits there

    def __call__(self, w: Tensor, rows: Tensor | None = None) -> Tensor:
        x, y = self.x, self.y
        if rows is None:
            found, logits = self.gradient(w, x, y)
            self.last = w, logits
            return found
        places = (torch.arange(len(x), device=x.device)[:, None] * x.shape[1] + rows).flatten()
        x, y = x.flatten(0, 1).index_select(0, places).unflatten(0, rows.shape), y.gather(1, rows)
        return self.gradient(w, x, y)[0]

    @torch.no_grad()
    def losses(self, w: Tensor) -> Tensor:
        """Return the loss of each image, (K, B); where the gradient was just asked for, by its forward pass."""
        at, logits = self.last
        if logits is not None and w is at:
            return cross_entropy(logits, self.y)
        return self.net.losses(w, self.x, self.y, self.bf16)


def _gather(groups: list[_Group], rows: list[Tensor]) -> Tensor:
    members = sum(len(group.members) for group in groups)
    out = rows[0].new_empty(members, rows[0].shape[1], device="cpu")
    for group, w in zip(groups, rows, strict=True):
        out[group.members] = w.cpu()
    return out
