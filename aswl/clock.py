"""How far training is, and the numbers that follow from it."""

import torch
from torch import Tensor

from aswl.settings import Settings, check_density
from aswl.structure import Structure


class Clock:
    """Counts the optimizer updates done, ``step``, and says what the schedules ask for then."""

    def __init__(self, settings: Settings, structure: Structure):
        self.settings, self.structure = settings, structure
        self.step = 0

    def advance(self) -> None:
        """One more update is done."""
        self.step += 1

    @property
    def budget(self) -> int | Tensor:
        """How many weights are to be kept. Raises ``ValueError`` for a density outside (0, 1]."""
        density = self.settings.target(self.step)
        check_density(density, self.step)
        return max(round(density * self.structure.total), 1)

    @property
    def pruned_gradient(self) -> float | Tensor:
        """The factor of the pruned weights' gradient."""
        return self.settings.pruned_gradient(self.step)


class DeviceClock(Clock):
    """The same for a CUDA graph, in which a number of Python's stays what it was when the graph was captured: the count
    is a tensor, and the schedules become tables, for which they are called for all steps up to ``steps`` beforehand;
    after that their last values hold. ``budget``, int64, and ``pruned_gradient``, fp32, are 0-d and on the model's device;
    a factor that never changes is a number.
    """

    def __init__(self, settings: Settings, structure: Structure):
        self._count, self._row = torch.zeros(2, dtype=torch.int64).unbind()  # of the tables: at most their last
        clock = Clock(settings, structure)
        budgets, factors = [], []
        for clock.step in range((settings.steps or 0) + 1):
            budgets.append(clock.budget if settings.target else 0)
            factors.append(clock.pruned_gradient)
        self._constant = factors[0] if len(set(factors)) == 1 else None
        self._budgets, self._factors = torch.tensor(budgets), torch.tensor(factors, dtype=torch.float32)
        super().__init__(settings, structure)

    @property
    def step(self) -> int:
        """Waits for the device."""
        return self._count.item()

    @step.setter
    def step(self, step: int) -> None:
        self._count.fill_(step)
        self._row.fill_(min(step, len(self._budgets) - 1))

    def advance(self) -> None:
        self._follow()
        self._count += 1
        torch.clamp(self._count, max=len(self._budgets) - 1, out=self._row)

    @property
    def budget(self) -> Tensor:
        return self._look_up("_budgets")

    @property
    def pruned_gradient(self) -> float | Tensor:
        return self._look_up("_factors") if self._constant is None else self._constant

    def _look_up(self, name: str) -> Tensor:
        self._follow()
        return getattr(self, name).take(self._row)

    def _follow(self) -> None:
        """Move to where the model is, before anything is captured."""
        device = self.structure.device
        if self._count.device != device:
            for name in ("_count", "_row", "_budgets", "_factors"):
                setattr(self, name, getattr(self, name).to(device))
