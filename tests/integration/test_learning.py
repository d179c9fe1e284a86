"""Alignment really learns: it comes to know the one batch that it is shown."""

from __future__ import annotations

from pathlib import Path

import torch

from genrl.runs.session import Session
from tests.runs import attach, sft_module, small_config


def test_alignment_learns_a_batch_by_heart(tmp_path: Path) -> None:
    session = Session.build(small_config(tmp_path, "data.toy.users=10", "align.items_per_step=100000"))
    module = attach(sft_module(session, tmp_path))
    batch = next(iter(module.train_dataloader()))
    optimizer = torch.optim.Adam(session.policy.trainable().values(), lr=0.02)
    losses = []
    for _ in range(60):
        optimizer.zero_grad()
        loss = module.training_step(batch, 0)
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.3 * losses[0]
