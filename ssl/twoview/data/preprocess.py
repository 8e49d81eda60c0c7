"""What lies between samples as they are stored and what an encoder takes."""

from typing import Any, ClassVar

from torch import Tensor, nn

from twoview.data.demand import Samples


class Preprocess(nn.Module):
    """How stored samples become what an encoder takes, in two halves at the two ends of the augmentation.

    This base changes nothing: it serves vectors of numbers that are standardised already. A subclass says of which
    `kind` its samples are ("image", "wave", "table", "text", ...; empty: of any), and overrides what it needs. It
    travels with the encoder: checkpoints and exports hold what `describe` gives and its state dict, which build it
    again.
    """

    kind: ClassVar[str] = ""

    def prepare(self, samples: Samples) -> Samples:
        """Samples as they are stored (B, ...) to what operations work on. What is prepared already passes as it is."""
        return samples

    def finish(self, x: Samples) -> Tensor:
        """What operations work on to what the encoder takes: one tensor (B, ...)."""
        if not isinstance(x, Tensor):
            raise TypeError(f"{type(self).__name__} has to make one tensor of {', '.join(x)}: override finish")
        return x

    def forward(self, samples: Samples) -> Tensor:
        return self.finish(self.prepare(samples))

    def describe(self) -> dict[str, Any]:
        """`_target_`, the path of the class, and its constructor's arguments: plain containers."""
        return {"_target_": f"{type(self).__module__}.{type(self).__qualname__}"}

    def look(self, samples: Samples) -> None:
        """Warns of what cannot be meant in a run's first batch."""
