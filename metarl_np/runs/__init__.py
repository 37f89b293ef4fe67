"""Long runs and many machines: files that survive a crash, and studies over seeds."""
