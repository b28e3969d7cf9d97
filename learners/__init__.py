"""The evolution steps: pure functions first, then one algorithm a file."""
