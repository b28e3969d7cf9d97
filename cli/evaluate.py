"""`rollwave evaluate`: play episodes and measure how good the policy is.

Not here: what it shares with its sibling (`play`, `options`).
"""

from __future__ import annotations

from . import options
from .output import Output
from .play import PlayOptions, backend_name, play, report


def evaluate(
    env: options.Env,
    out: options.Out,
    tasks: options.Tasks = None,
    split: options.Split = None,
    limit: options.Limit = None,
    attempts: options.Attempts = 1,
    policy: options.PolicyName = "expert",
    backend: options.Backend = "auto",
    model: options.Model = "",
    tokenizer: options.Tokenizer = "",
    context: options.Context = 0,
    batch: options.Batch = 256,
    temperature: options.Temperature = 0.0,
    max_tokens: options.MaxTokens = 256,
    concurrency: options.Concurrency = 64,
    workers: options.Workers = 0,
    turn_limit: options.TurnLimit = 0,
    turn_seconds: options.TurnSeconds = 120.0,
    episode_seconds: options.EpisodeSeconds = 3600.0,
    seed: options.Seed = 0,
    json: options.Json = False,
) -> None:
    """Play episodes and measure how good the policy is.

    Greedy unless told otherwise. Average reward counts every episode, those that broke
    with 0; the interval is the 95 % interval of the success rate. With --attempts N and a
    temperature above 0, pass@k and the best of N are shown too: an oracle's upper bound.
    """
    chosen = PlayOptions(
        env=env,
        tasks=tasks,
        split=split,
        limit=limit,
        attempts=attempts,
        policy=policy,
        backend=backend_name(backend),
        model=model,
        tokenizer=tokenizer,
        context=context,
        batch=batch,
        temperature=temperature,
        max_tokens=max_tokens,
        concurrency=concurrency,
        workers=workers,
        turn_limit=turn_limit,
        turn_seconds=turn_seconds,
        episode_seconds=episode_seconds,
        seed=seed,
        out=out,
    )
    output = Output(json=json)
    report(play(chosen, output, f"evaluate {env}"), output, figures=True)
