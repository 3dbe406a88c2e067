"""Does the geometry of the loss landscape explain forgetting?"""
