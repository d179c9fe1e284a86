"""The policy as it was when training began, which objectives hold the trained one to."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch.func import functional_call

from genrl.policy.base import TrainablePolicy
from genrl.policy.protocol import Growth
from genrl.policy.sharding import gathered


class Reference:
    """A policy with the trained weights that it has now, for passes without gradient; all else is the policy's own.

    Only what training changes is copied: the adapters under LoRA, all weights under full fine-tuning; of weights that
    are shared out this rank's share.

    Args:
        policy: what is copied.
    """

    def __init__(self, policy: TrainablePolicy) -> None:
        self.policy = policy
        own = policy.trainable()
        self.weights = {name: value.detach().clone() for name, value in own.items()}
        names = {id(value): name for name, value in own.items()}
        self.places = {
            f"{path}.{name}": names[id(value)]
            for path, module in policy.named_modules()  # each once: a module at two paths must not be exchanged twice
            for name, value in module.named_parameters(recurse=False)
            if id(value) in names
        }
        """Where the policy holds each of them: tied weights in several places."""

    @contextmanager
    def whole(self) -> Iterator[None]:
        """Have all of these weights in every rank for the block, inside `genrl.policy.sharding.whole` of the policy."""
        own = self.weights = {name: value.to(self.policy.device) for name, value in self.weights.items()}
        self.weights = {name: gathered(value) for name, value in own.items()}
        try:
            yield
        finally:
            self.weights = own

    @torch.no_grad()
    def __call__(self, *inputs: Any, **options: Any) -> Any:  # noqa: ANN401 (those of `forward`)
        """The policy's `forward` with these weights."""
        self.weights = {name: value.to(self.policy.device) for name, value in self.weights.items()}
        weights = {place: self.weights[name] for place, name in self.places.items()}
        return functional_call(self.policy, weights, inputs, options, tie_weights=False)

    def grow(self, *inputs: Any, **options: Any) -> Growth:  # noqa: ANN401
        """As the policy does, by passes with these weights."""
        return type(self.policy).grow(cast(TrainablePolicy, self), *inputs, **options)

    def follow(self, *inputs: Any, **options: Any) -> Any:  # noqa: ANN401
        """As the policy does, by passes with these weights."""
        return type(self.policy).follow(cast(TrainablePolicy, self), *inputs, **options)

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401 (any attribute of a policy)
        """What the policy says of itself."""
        return getattr(self.policy, name)
