"""The loss landscape: curvature, paths, alignment, Fisher information."""
