"""Environments in worker processes.

`host.WorkerHost` opens sessions in them, and `limits.WorkerLimits` says what they may use.

On the engine's side `host` chooses a worker, `actor` watches one, `process` is its child
process and `session` one session in it. In the child `main` serves `sessions`. Between them
are `protocol`, what they say, and `page`, what the engine can see when a child says nothing.

Nothing is imported here: `base` needs `limits`, and everything else needs `base`.
"""
