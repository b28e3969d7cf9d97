"""The options that `rollout` and `evaluate` share, with their help texts.

Not here: what is done with them (`play`).
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Env = Annotated[
    str,
    typer.Option(
        "--env",
        help="Environment id, with options as `name-vN?option=value`, or `module:FAMILY` of your "
        "own; several by comma.",
    ),
]
Tasks = Annotated[
    str | None, typer.Option("--tasks", help="Tasks by number: `A:B` (B excluded), or `3,7,10:20`.")
]
Split = Annotated[
    str | None,
    typer.Option("--split", help="Tasks by split: train, dev, test (default) or unseen."),
]
Limit = Annotated[int | None, typer.Option("--limit", min=1, help="At most this many tasks.")]
Attempts = Annotated[int, typer.Option("--attempts", min=1, help="Episodes a task.")]
PolicyName = Annotated[
    str,
    typer.Option(
        "--policy",
        help="`expert`, `random`, a Hugging Face model directory, or the URL of an "
        "OpenAI-compatible server.",
    ),
]
Backend = Annotated[
    str,
    typer.Option(
        "--backend",
        help="What serves a model directory: auto (vLLM if installed), vllm, transformers.",
    ),
]
Model = Annotated[
    str, typer.Option("--model", help="The model's name on a server; asked if empty.")
]
Tokenizer = Annotated[
    str,
    typer.Option(
        "--tokenizer",
        help="Model directory of a vLLM server's tokenizer: token ids and log-probs are then kept.",
    ),
]
Context = Annotated[
    int,
    typer.Option("--context", min=0, help="Context length to serve, in tokens; 0 = the model's."),
]
Batch = Annotated[int, typer.Option("--batch", min=1, help="Most requests in one inference batch.")]
Temperature = Annotated[
    float, typer.Option("--temperature", min=0.0, help="Sampling temperature; 0 is greedy.")
]
MaxTokens = Annotated[int, typer.Option("--max-tokens", min=1, help="Tokens a turn may take.")]
Concurrency = Annotated[int, typer.Option("--concurrency", min=1, help="Live sessions at most.")]
Workers = Annotated[
    int,
    typer.Option(
        "--workers",
        min=0,
        help="Run environments in this many worker processes each; 0 = as each says itself.",
    ),
]
TurnLimit = Annotated[
    int,
    typer.Option("--turn-limit", min=0, help="Turns an episode may take; 0 = the environment's."),
]
TurnSeconds = Annotated[float, typer.Option("--turn-seconds", help="Deadline of one turn.")]
EpisodeSeconds = Annotated[float, typer.Option("--episode-seconds", help="Deadline of an episode.")]
Seed = Annotated[int, typer.Option("--seed", help="The root of every seed of the run.")]
Out = Annotated[Path, typer.Option("--out", help="Run directory; an unfinished run there goes on.")]
Json = Annotated[
    bool, typer.Option("--json", help="Print one JSON object as the last line of standard output.")
]
