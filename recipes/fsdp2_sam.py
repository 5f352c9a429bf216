r"""SAM over ``fully_shard`` (FSDP2), and checkpoints that another number of processes can load.

.. code-block:: console

    $ torchrun --nproc_per_node=2 recipes/fsdp2_sam.py --out runs/fsdp2 --steps 20
    $ torchrun --nproc_per_node=4 recipes/fsdp2_sam.py --out runs/fsdp2 --steps 40      # goes on after step 20

Nothing is special about SAM here: shard the model first, then build the optimizer from its parameters. Each process
computes the gradient of its share of the batch, and FSDP averages. The radius is that of the whole averaged gradient,
so any number of processes trains as one does, up to the order of sums. FSDP1 is refused, ``fully_shard`` on a part of
the model too.
"""

import argparse
import os
from pathlib import Path

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import nn
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from sharpnb.optim import SAM

BATCH = 16  # samples per step, over all processes: a multiple of their number


def network() -> nn.Module:
    """Return the network; the same seed gives every process the same weights to share out."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(20, 64), nn.Tanh(), nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 5))


def build(device: str) -> tuple[nn.Module, SAM]:
    """Return the network in shards, and its optimizer."""
    model, mesh = network().to(device), init_device_mesh(device, (dist.get_world_size(),))
    for layer in model:
        if isinstance(layer, nn.Linear):
            fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)
    return model, SAM(torch.optim.AdamW(model.parameters(), lr=0.01), rho=0.1)


def batch(step: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return this process's share of the batch of a step."""
    draw = torch.Generator().manual_seed(step)
    x, y = torch.randn(BATCH, 20, generator=draw), torch.randint(5, (BATCH,), generator=draw)
    mine = slice(dist.get_rank(), None, dist.get_world_size())
    return x[mine], y[mine]


def train(model: nn.Module, optimizer: SAM, steps: range, device: str) -> None:
    """Make the steps."""
    for step in steps:
        x, y = (t.to(device) for t in batch(step))

        def closure(x=x, y=y):
            loss = nn.functional.cross_entropy(model(x), y)
            loss.backward()
            return loss

        optimizer.step(closure)


def save(out: Path, model: nn.Module, optimizer: SAM, done: int) -> None:
    """Write the checkpoint ``out/done``, to which each process adds what it holds."""
    model_state, optimizer_state = get_state_dict(model, optimizer)
    dcp.save({"model": model_state, "optimizer": optimizer_state}, checkpoint_id=out / str(done))


def load(out: Path, model: nn.Module, optimizer: SAM) -> int:
    """Read the newest checkpoint, over any number of processes; return how many steps were made, 0 without one."""
    done = max((int(file.parent.name) for file in out.glob("*/.metadata")), default=0)  # .metadata is written last
    if done:
        model_state, optimizer_state = get_state_dict(model, optimizer)  # to be filled
        dcp.load({"model": model_state, "optimizer": optimizer_state}, checkpoint_id=out / str(done))
        set_state_dict(model, optimizer, model_state_dict=model_state, optim_state_dict=optimizer_state)
    return done


def main() -> None:
    """Train as far as ``--steps`` says, from the newest checkpoint in ``--out``."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder for the checkpoints")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu")
    args = parser.parse_args()
    if args.device == "cuda":
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    dist.init_process_group("nccl" if args.device == "cuda" else "gloo")
    if BATCH % dist.get_world_size():
        raise SystemExit(f"{dist.get_world_size()} processes cannot share {BATCH} samples equally: the mean of their "
                         "gradients would not be the batch's.")
    model, optimizer = build(args.device)
    done = load(args.out, model, optimizer)
    if done < args.steps:
        train(model, optimizer, range(done, args.steps), args.device)
        save(args.out, model, optimizer, args.steps)
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
