"""From a configuration to a run: one job, a sweep, trials."""
