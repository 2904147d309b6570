"""The networks, and how files become networks."""
