"""The method: preference data, reward with a bound, policy gradients, evaluation. Imports no Ray."""

__version__ = "0.1.0"
