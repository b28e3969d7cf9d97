"""The swap-point for inference: one file for each backend behind `base.Backend`."""
