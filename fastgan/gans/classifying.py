"""Turns of a critic with a second objective: to tell classes apart, of reals and fakes or of fakes alone.

The critic returns [N, 1 + K] per image: a logit, and K class logits. Penalties are on the gradient of the first alone.
So in a step without penalties one pass serves both objectives; in one with them the classes take a pass of their own
beside that of fastgan.penalty.critic_backward.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from fastgan.contract import Draw
from fastgan.gans.play import Compared, Game, Play, detached, first, wide
from fastgan.penalty import critic_backward


class Verdict(nn.Module):
    """x -> the first output of a critic with several: [N]."""

    def __init__(self, critic: nn.Module) -> None:
        super().__init__()
        self.critic = critic

    def forward(self, x: Tensor) -> Tensor:
        values: Tensor = self.critic(x)
        return values[:, 0]


class ClassifyingPlay(Play):
    """A play whose fakes, and whose reals perhaps, have classes (Compared). weight: theirs in the generator's loss."""

    def __init__(
        self,
        options: Game,
        players: Mapping[str, nn.Module],
        scalars: Mapping[str, Tensor],
        weight: float,
    ) -> None:
        super().__init__(options, players, scalars)
        self.weight = weight
        self.judge = Verdict(self.critic)

    def train_critic(
        self, compared: Compared, draw: Draw, names: tuple[str, ...], *, simultaneous: bool
    ) -> dict[str, Tensor]:
        if not names:
            return self._in_one_pass(compared, draw)
        found = super().train_critic(compared, draw, names, simultaneous=simultaneous)
        real, fake = (first(self.seen(detached(side), draw)) for side in (compared.real, compared.fake))
        at_real, at_fake = wide(self.critic(real)), wide(self.critic(fake))
        loss = self.class_loss(at_real, at_fake, compared)
        loss.backward()  # type: ignore[no-untyped-call]
        return found | {"class_loss": loss.detach(), **self.observe(at_real.detach(), at_fake.detach(), compared)}

    def _in_one_pass(self, compared: Compared, draw: Draw) -> dict[str, Tensor]:
        parts: dict[str, Tensor] = {}

        def both(at_real: Tensor, at_fake: Tensor) -> Tensor:
            parts["loss"] = self.loss.critic(at_real[:, 0], at_fake[:, 0])
            parts["class_loss"] = self.class_loss(at_real, at_fake, compared)
            return parts["loss"] + parts["class_loss"]

        real, fake = (self.seen(detached(side), draw) for side in (compared.real, compared.fake))
        result = critic_backward(self.critic, real, fake, both)
        self.augment.observe(result.real_logits[:, 0])
        return {
            "loss": parts["loss"].detach(),
            "real_logits": result.real_logits[:, 0].mean(),
            "fake_logits": result.fake_logits[:, 0].mean(),
            "class_loss": parts["class_loss"].detach(),
            **self.observe(result.real_logits, result.fake_logits, compared),
        }

    def class_loss(self, at_real: Tensor, at_fake: Tensor, compared: Compared) -> Tensor:
        """What the critic minimises of the classes; at_real, at_fake: [N, 1 + K]."""
        assert compared.fake_classes is not None
        loss = cross_entropy(at_fake[:, 1:], compared.fake_classes)
        if compared.real_classes is not None:
            loss = loss + cross_entropy(at_real[:, 1:], compared.real_classes)
        return loss

    def observe(self, at_real: Tensor, at_fake: Tensor, compared: Compared) -> dict[str, Tensor]:
        """For the log: how often the critic finds the class of a fake."""
        assert compared.fake_classes is not None
        found = at_fake[:, 1:].argmax(1).eq(compared.fake_classes)
        return {"class_accuracy": found.to(at_fake.dtype).mean()}

    def generator_loss(self, compared: Compared, draw: Draw) -> tuple[Tensor, dict[str, Tensor]]:
        assert compared.fake_classes is not None
        real = self.score_reals(compared, draw)
        values = wide(self.critic(first(self.seen(compared.fake, draw))))
        loss = self.loss.generator(wide(real), values[:, 0])
        return loss, {"class_loss": self.weight * cross_entropy(values[:, 1:], compared.fake_classes)}
