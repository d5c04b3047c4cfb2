"""Write run configs from an experiment plan, or check some."""
