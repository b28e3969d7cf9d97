"""The cast on a virtual clock: simulated runs, and the faults that are injected into them."""
