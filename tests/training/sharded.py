"""A process of two that shard the tiny network; started by test_distributed.py under torchrun.

Asserts, against the same network unsharded in the same process: loss and gradient norm, the weights after two
clipped steps of AdamW, and both again after the whole state went through a file.
"""

import sys
from pathlib import Path

import torch
import torch.distributed as dist
from torch.distributed.tensor import DTensor

from glm2core.training.distributed import (
    gathered,
    is_first,
    joined,
    meet,
    put,
    put_optimizer_state,
    rank,
    shard,
    whole,
    whole_optimizer_state,
    whole_tensors,
)
from glm2core.training.loop import clip_gradients
from tests.training.conftest import tiny_model

STEPS, LIMIT = 2, 0.1


def loss_of(network: torch.nn.Module) -> torch.Tensor:
    ids = torch.arange(10, 58).reshape(2, 24)
    return network(input_ids=ids, labels=ids).loss


def train(network: torch.nn.Module, optimizer: torch.optim.Optimizer) -> list[float]:
    losses = []
    for _ in range(STEPS):
        loss = loss_of(network)
        loss.backward()
        losses += [loss.item(), float(clip_gradients(network, LIMIT))]
        optimizer.step()
        optimizer.zero_grad()
    return losses


def adamw(network: torch.nn.Module) -> torch.optim.Optimizer:
    return torch.optim.AdamW(network.parameters(), lr=1e-2)


def main(file: Path) -> None:
    torch.set_num_threads(1)
    with joined(torch.device("cpu")):
        plain, sharded = tiny_model(), tiny_model()
        shard(sharded)
        for name, parameter in sharded.named_parameters():
            assert isinstance(parameter, DTensor), name
        held = sum(parameter.to_local().numel() for parameter in sharded.parameters())
        assert sum(gathered(held)) == sum(parameter.numel() for parameter in plain.parameters())

        theirs, ours = adamw(plain), adamw(sharded)
        torch.testing.assert_close(train(sharded, ours), train(plain, theirs), rtol=0, atol=1e-5)

        weights, state = whole_tensors(sharded.state_dict()), whole_optimizer_state(sharded, ours)
        if is_first():
            for name, tensor in plain.state_dict().items():
                torch.testing.assert_close(weights[name], tensor, rtol=0, atol=1e-5)
            torch.save((weights, state), file)
        meet()

        saved, saved_state = torch.load(file, weights_only=True)
        again = tiny_model()
        shard(again)
        for name, parameter in again.named_parameters():
            put(parameter, saved[name])
            assert torch.equal(whole(parameter), saved[name])
        restored = adamw(again)
        put_optimizer_state(again, restored, saved_state)
        assert train(again, restored) == train(sharded, ours)
        print(f"process {rank()} of {dist.get_world_size()}: equal", flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
