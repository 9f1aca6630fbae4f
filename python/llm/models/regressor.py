"""A small feed-forward regressor, the simplest model for the training loop."""

from torch import Tensor, nn

from llm.models.layers.mlp import MLP
from llm.settings.model import ModelConfig


class RegressionModel(nn.Module):
    """Maps features `[B, hidden_size]` to one number each with one `MLP`."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.mlp = MLP(config)
        self.head = nn.Linear(config.hidden_size, 1)

    def forward(self, features: Tensor) -> Tensor:
        """Returns predictions `[B]`."""
        output: Tensor = self.head(self.mlp(features)).squeeze(-1)
        return output
