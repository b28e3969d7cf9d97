"""How a model writes an action down: one format a file."""
