"""Minimal, exact meta-reinforcement learning in NumPy: tabular MDPs, REINFORCE, MAML."""

__version__ = "0.1.0"
