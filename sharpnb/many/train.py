"""K trainings as one batched program, on the rules-on-rows."""

from __future__ import annotations

import functools
import gc
import math
import warnings
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from sharpnb import rules
from sharpnb.devices import pick_device
from sharpnb.many import settings
from sharpnb.many.around import Averages, in_shards
from sharpnb.many.augment import Augment
from sharpnb.many.batches import DataSet, Tensors, one_each, wrong_labels
from sharpnb.many.engine import Batch, Gradient, Nets
from sharpnb.many.schedules import Schedule, Schedules, schedule_of

Rows = dict[tuple[int, int], dict[str, Any]]  # by step and member


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
    averaged: Tensor
    kept: dict[int, Tensor] = field(default_factory=dict)
    rows: list[dict[str, Any]] = field(default_factory=list)
    diverged: list[int | None] = field(default_factory=list)

    def final(self) -> list[dict[str, Any]]:
        """Return the last row of each member, in order."""
        last = {row["member"]: row for row in self.rows}
        return [last[k] for k in range(len(self.configs))]


def train_many(
    configs: Sequence[Mapping[str, Any]], data: DataSet | Sequence[DataSet], model: Callable[[int], nn.Module], *,
    steps: int, batch_size: int = 64, schedule: str | Schedule = "cosine", augment: Augment | None = None,
    evaluate_every: int = 0, keep: Sequence[int] = (), device: str | torch.device = "auto",
    dtype: torch.dtype = torch.float32, bf16: bool = False, chunk: int = 32, progress: bool | None = None,
) -> Many:
    r"""Train one net a setting, all in lock-step.

    Each setting is a mapping: ``rule`` (one of :data:`~sharpnb.many.settings.RULES`), ``seed`` (of initial weights,
    batch order, augmentation, label noise and masks; default 0) and the rule's own hyperparameters by their names in
    :mod:`sharpnb.rules`, e.g. ``{"rule": "sam", "lr": 0.1, "momentum": 0.9, "rho": 0.2, "seed": 3}``. For SAM and its
    relatives ``base`` names the base rule (default ``"sgd"``), and ``m`` asks for m-sharpness: each batch is cut into
    shards of m images that perturb by themselves. WSAM takes ``perturbation`` (``"sam"``, ``"asam"``, ``"fisher"``),
    GSAM ``rho_min``.
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
        data: one data set for all, or one for each setting (equal sizes; own splits or labels):
            :class:`sharpnb.lab.Data`, or tensors as :class:`sharpnb.many.batches.Tensors`.
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
            does not fit into the GPU's memory, they are trained half as many at a time, and a warning says so; the
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
    sets, model = one_each(data, len(checked)), functools.cache(model)
    noisy: dict[Any, DataSet] = {}
    sets = [_with_its_labels(each, config, noisy) for each, config in zip(sets, checked, strict=True)]
    weights = sum(p.numel() for p in model(checked[0]["seed"]).parameters())
    empty = functools.partial(torch.empty, len(checked), weights, dtype=dtype)
    kept = {step: empty() for step in keep if 0 <= step <= steps}
    result = Many(checked, empty(), empty(), kept, diverged=[None] * len(checked))
    shared = {"augment": augment, "schedule": schedule_of(schedule)}
    rows: Rows = {}
    waiting = deque(settings.grouped(checked, chunk))
    while waiting:
        members = waiting.popleft()
        own = [shared | checked[k] for k in members]
        try:
            _train(Nets([config["seed"] for config in own], [sets[k] for k in members], model, batch_size=batch_size,
                        device=pick_device(device), dtype=dtype, augment=own[0]["augment"], bf16=bf16),
                   own, members, steps, evaluate_every, result, rows, progress)
            continue
        except torch.OutOfMemoryError as error:
            if len(members) == 1:
                raise torch.OutOfMemoryError(
                    f"The GPU's memory does not suffice for even one of the members: {error}\nMake batch_size or the "
                    "net smaller, or close what else uses the GPU (`nvidia-smi` shows it).") from error
        waiting = _halved([members, *waiting])
    result.rows = [rows[place] for place in sorted(rows)]
    for row in reversed(result.rows):
        if not math.isfinite(row["train_loss"]):
            result.diverged[row["member"]] = row["step"]
    return result


def _halved(groups: Sequence[Sequence[int]]) -> deque[Sequence[int]]:
    """Return groups of members of which the first did not fit into the GPU's memory, none larger than its half."""
    gc.collect()  # now, after the exception, which kept the failed frames and their tensors alive
    torch.cuda.empty_cache()
    half = len(groups[0]) // 2
    warnings.warn(f"{len(groups[0])} members of a batched program at once do not fit into the GPU's memory; going on "
                  f"with {half}.", stacklevel=3)
    return deque(group[k : k + half] for group in groups for k in range(0, len(group), half))


def _with_its_labels(data: DataSet, config: settings.Setting, noisy: dict[Any, DataSet]) -> DataSet:
    """Return a member's data set with its wrong labels; members of equal labels share one in ``noisy``."""
    rate, seed = float(config.get("label_noise", 0.0)), config["seed"]
    key, (x, y) = (id(data), rate, seed), data.train
    if rate and key not in noisy:
        noisy[key] = Tensors((x, wrong_labels(y, rate, data.classes, seed)), data.test, data.classes)
    return noisy.get(key, data)


def _train(
    nets: Nets, configs: Sequence[settings.Setting], members: Sequence[int], steps: int, evaluate_every: int,
    result: Many, rows: Rows, progress: bool | None,
) -> None:
    """Train the members of one program and note what they come to, at their places."""
    rule = MembersRule(configs, nets, steps)

    def look(step: int, nets: Nets) -> None:
        if step in result.kept:
            result.kept[step][members] = nets.w.cpu()
        if step == steps or (step and evaluate_every and step % evaluate_every == 0):
            measured, best = nets.evaluate(nets.w), rule.averages.best(nets.w)
            if best is not nets.w:
                measured |= {f"average_{name}": column for name, column in nets.evaluate(best).items()}
            for k, member in enumerate(members):
                values = {name: column[k] for name, column in measured.items()}
                rows[step, member] = {"member": member, "step": step, **values, **result.configs[member]}

    mix = rule.cut if rule.shards > 1 else None
    w = nets.fit(rule, steps, schedule=rule.schedules, every=1, probe=look, mix=mix, progress=progress)
    result.weights[members], result.averaged[members] = w.cpu(), rule.averages.best(w).cpu()


class MembersRule:
    """The rule of members that share it and its options, each with its own numbers, as :meth:`Nets.fit` takes it.

    It counts its own steps, for averages and for ESAM's masks. The settings are complete: ``validated``. For
    m-sharpness each member is as many rows as there are shards in a batch; a ValueError if ``m`` does not divide it.
    """

    def __init__(self, configs: Sequence[settings.Setting], nets: Nets, steps: int) -> None:
        batch = nets.batches.size
        m = int(configs[0].get("m", batch))
        if batch % m:
            raise ValueError(f"m = {m} does not divide the batch size {batch}. Choose a divisor.")
        self.name, self.step, self.shards = configs[0]["rule"], 0, batch // m
        scaled = torch.cat([torch.full((shape.numel(),), len(shape) > 1) for shape in nets.forward.shapes])
        scaled = scaled.to(nets.w.device)
        self.averages = Averages(settings.bound(configs, scaled, nets.w.dtype), nets.w, steps)
        rows = [config for config in configs for _ in range(self.shards)]
        hyper = settings.bound(rows, scaled, nets.w.dtype)
        self.seeds = [config["seed"] for config in rows]
        self.schedules = Schedules(rows, steps, hyper.pop("lambda_norm", None))
        self.radius = {name: hyper.pop(name) for name in ("rho_min", "lr_max", "lr_min") if name in hyper}
        self.hyper = {name: value for name, value in hyper.items() if name not in (*settings.NUMBERS, "m")}
        rule = settings.RULES[self.name]
        self.rule = in_shards(rule, self.shards) if self.shards > 1 else rule

    def cut(self, batch: Batch) -> Batch:
        """Return the batch as its shards, each a row of its own: images (K S, m, ...), labels (K S, m)."""
        x, y = (part.unflatten(1, (self.shards, -1)).flatten(0, 1) for part in batch)
        return x, y

    def __call__(
        self, w: Tensor, gradient: Gradient, state: rules.State, **of_step: Any
    ) -> tuple[Tensor, rules.State]:
        """Return the weights and the state after an update; ``of_step`` is what the schedules say."""
        hyper = self.hyper | of_step
        if self.radius:
            limits = {"rho": hyper["rho"], "lr_max": hyper["lr"], **self.radius}
            hyper["rho"] = rules.gsam_rho(hyper["eta"] * hyper["lr"], **limits)
        if self.name == "esam":
            hyper |= {"losses": gradient.losses, "mask": self._mask(w)}
        w, state = self.rule(w, gradient(w) if self.name in settings.BASES else gradient, state=state, **hyper)
        self.step += 1
        return self.averages.after(self.step - 1, w), state

    def _mask(self, w: Tensor) -> Tensor:
        """Return ESAM's masks of this step, (K, n), as :class:`sharpnb.optim.ESAM` draws them."""
        drawn = {seed: torch.rand(w.shape[1], generator=torch.Generator().manual_seed(seed * 1_000_003 + self.step))
                 for seed in dict.fromkeys(self.seeds)}
        return (torch.stack([drawn[seed] for seed in self.seeds]).to(w.device) < self.hyper["beta"]).to(w)
