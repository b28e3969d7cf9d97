"""What may be learned from, and as which tokens."""
