"""Chapter 3: learning to learn. MAML and its relatives, and recurrent RL²."""
