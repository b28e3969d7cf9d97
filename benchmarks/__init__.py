"""The evidence: each module prints one table and writes one JSON file."""
