"""Chapter 1: what is to be learned. Tasks as arrays, and what can be computed in a known one."""
