"""BEGAN's equilibrium (Berthelot, Schumm, Metz; 2017), between hard images and likely ones.

BEGAN holds E L(G(z)) = gamma E L(x) by a k_t that a proportional control moves. Here there is no real x: easy images
are those that learning began with, d_e = D_o on them; hard ones are what the game draws, d_h. The generator goes down

    -k_t (D_o + alpha D_f) + (1 - k_t) (what makes images likely)
    k_t+1 = clip(k_t + lambda_k (gamma d_e - d_h) / d_e, 0, 1),   k_0 = 0,   gamma > 1
    M = d_e + |gamma d_e - d_h|      (M_global: small where both players do well)
"""

from typing import Any

__all__ = ["Equilibrium"]

MEMORY = 0.9  # of M, which goes up and down with the images of a batch
LESS = 0.99  # of the least M so far is a new least


class Equilibrium:
    """k_t and M, from round to round. `patience`: rounds without a new least M after which it is `over`; 0: never."""

    def __init__(self, gamma: float, rate: float, patience: int) -> None:
        self.gamma, self.rate, self.patience = gamma, rate, patience
        self.k, self.m, self.least, self.since = 0.0, 0.0, float("inf"), 0

    def state_dict(self) -> dict[str, Any]:
        """What changes from round to round."""
        return {"k": self.k, "m": self.m, "least": self.least, "since": self.since}

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        """Put that back."""
        self.k, self.m, self.least, self.since = (saved[name] for name in ("k", "m", "least", "since"))

    def step(self, easy: float, hard: float) -> dict[str, float]:
        """Take note of d_e and d_h of a round; all that a log should have of it."""
        gap = self.gamma * easy - hard
        now = easy + abs(gap)
        self.m = now if self.least == float("inf") else MEMORY * self.m + (1 - MEMORY) * now
        self.k = min(max(self.k + self.rate * gap / max(easy, 1e-12), 0.0), 1.0)
        self.since += 1
        if self.m < LESS * self.least:
            self.least, self.since = self.m, 0
        return {"d_easy": easy, "d_hard": hard, "k": self.k, "m_global": self.m}

    @property
    def best(self) -> bool:
        """Whether M is the least there has been."""
        return self.since == 0

    def over(self) -> str:
        """Why a game that is played for it is over; "" while it is not."""
        if not self.patience or self.since < self.patience:
            return ""
        return f"M_global has not fallen for {self.since} rounds"
