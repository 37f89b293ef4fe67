"""Chapter 2: one learner in one task. A policy, its episodes, and the gradient of its return."""
