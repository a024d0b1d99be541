"""The limit of training: forward, backward and optimizer over pixels augmented beforehand.

Nothing is read, decoded, augmented, validated or saved. With ``--processes`` a DDP process a core,
each of one thread, share every batch, which is how our workers run on CPUs.
"""

from __future__ import annotations

import argparse
import os

import numpy as np
import torch
import torch.distributed
import torch.multiprocessing
from lion_pytorch import Lion
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from bloodcells.allocator import keep_freed_memory
from bloodcells.models import create_model

BATCH_SIZE = 64


def main() -> None:
    """Train for some epochs and print the last loss."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pixels", required=True, help="uint8 (N, S, S, 3) in a .npy file")
    parser.add_argument("--labels", required=True, help="int64 (N,) in a .npy file")
    parser.add_argument("--model", required=True)
    parser.add_argument("--epochs", type=int, required=True)
    parser.add_argument("--processes", type=int, default=1)
    flags = parser.parse_args()
    if flags.processes == 1:
        train(0, flags)
    else:
        os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29517"}
        torch.multiprocessing.spawn(train, (flags,), nprocs=flags.processes)


def train(rank: int, flags: argparse.Namespace) -> None:
    """Train as one of ``flags.processes``."""
    keep_freed_memory()  # as our workers do
    pixels, labels = np.load(flags.pixels), np.load(flags.labels)
    torch.manual_seed(0)
    model: nn.Module = create_model(flags.model, dropout=0.2).to(memory_format=torch.channels_last)
    if flags.processes > 1:
        torch.set_num_threads(1)
        torch.distributed.init_process_group("gloo", rank=rank, world_size=flags.processes)
        model = DistributedDataParallel(model)
    optimizer = Lion(model.parameters(), lr=1e-5, weight_decay=0.05)
    model.train()
    share = BATCH_SIZE // flags.processes
    for _ in range(flags.epochs):
        for start in range(0, len(pixels), BATCH_SIZE):
            own = slice(start + rank * share, start + (rank + 1) * share)
            logits = model(torch.from_numpy(pixels[own]))
            loss = nn.functional.cross_entropy(
                logits, torch.from_numpy(labels[own]), label_smoothing=0.05
            )
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
    if rank == 0:
        print(f"loss {float(loss):.4f}")
    if flags.processes > 1:
        torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main()
