"""Chapter 5: compared with what? Classical strategies, planners, and the Bayes optimum."""
