"""The OpenAI backend over real sockets: the stub server, and a real vLLM server."""

from __future__ import annotations

import importlib.util
import os
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio
from rollwave.actors.backends.openai import OpenAIBackend
from rollwave.actors.protocol import Completion, Generate, Sampling
from rollwave.benchmarks.stub_server import TEXT, TOKEN_IDS, stub_server
from rollwave.engine.codec import pack_tokens, unpack_floats, unpack_tokens
from rollwave.engine.errors import BackendError
from rollwave.engine.trajectory import ChatMessage


def request(name: str = "r/0", *, seed: int = 11, **sampling: Any) -> Generate:
    messages = (ChatMessage("system", "Be brief."), ChatMessage("user", "where?"))
    return Generate(name, pack_tokens([1, 2, 3]), messages, Sampling(**sampling), seed)


@asynccontextmanager
async def running(backend: OpenAIBackend) -> AsyncIterator[OpenAIBackend]:
    async with trio.open_nursery() as nursery:
        await nursery.start(lambda task_status: backend.run(task_status=task_status))
        yield backend
        nursery.cancel_scope.cancel()


async def ask(backend: OpenAIBackend, message: Generate) -> Completion | BaseException:
    send, receive = trio.open_memory_channel[Completion | BaseException](1)
    backend.submit(message, send.send_nowait)
    return await receive.receive()


@pytest.fixture(scope="module")
def stub() -> Iterator[str]:
    with stub_server(1.0) as url:
        yield url


@pytest.mark.parametrize("tokens", [False, True])
async def test_over_a_real_socket(stub: str, tokens: bool) -> None:
    before = len(os.listdir("/proc/self/fd")) if Path("/proc/self/fd").exists() else 0
    completions: list[Completion | BaseException] = []
    async with running(OpenAIBackend(stub, tokens=tokens)) as backend:

        async def session(k: int) -> None:
            for turn in range(3):
                completions.append(await ask(backend, request(f"{k}/{turn}")))

        async with trio.open_nursery() as nursery:
            for k in range(20):
                nursery.start_soon(session, k)
    assert len(completions) == 60
    for completion in completions:
        assert isinstance(completion, Completion)
        assert completion.text == TEXT
        assert unpack_tokens(completion.token_ids).tolist() == list(TOKEN_IDS if tokens else ())
    if before:
        assert len(os.listdir("/proc/self/fd")) <= before


@pytest.mark.slow
@pytest.mark.vllm
@pytest.mark.learn
@pytest.mark.skipif(
    importlib.util.find_spec("vllm") is None or importlib.util.find_spec("torch") is None,
    reason="needs vLLM and torch",
)
@pytest.mark.timeout(600)
async def test_a_real_vllm_server(tmp_path: Path) -> None:
    """Log-probs are those of transformers, at the temperature of the request."""
    import torch
    from rollwave.learners.model.tiny import make_tiny_model
    from transformers import AutoModelForCausalLM

    words = ["goal", "pos", "walls", "up", "left", "right", "down", "0", "1", "2", "3", "4", "5"]
    directory = await trio.to_thread.run_sync(
        lambda: make_tiny_model(tmp_path / "m", vocabulary=words)
    )
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--enforce-eager"]
    command += [f"--model={directory}", "--served-model-name=tiny", "--host=127.0.0.1"]
    command += [f"--port={port}", "--dtype=float32", "--max-model-len=256"]
    command += ["--logprobs-mode=processed_logprobs"]
    environment = os.environ | {
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "OMP_NUM_THREADS": "1",
        "HF_HUB_OFFLINE": "1",
        "VLLM_NO_USAGE_STATS": "1",
    }
    log = (tmp_path / "log").open("wb")
    server = subprocess.Popen(command, env=environment, stdout=log, stderr=log)  # noqa: ASYNC220
    url = f"http://127.0.0.1:{port}"
    try:
        async with running(OpenAIBackend(url, tokens=True, patience=300.0)) as backend:
            assert backend.model == "tiny"
            message = request(temperature=0.7, max_tokens=12)
            first, again = await ask(backend, message), await ask(backend, message)
            assert isinstance(first, Completion)
            assert isinstance(again, Completion)
            assert first.token_ids == again.token_ids  # the seed decides
            too_long = await ask(backend, request(max_tokens=5000))
            assert isinstance(too_long, BackendError)
            assert "max_tokens=5000" in str(too_long)
        async with running(OpenAIBackend(url)) as chat:
            assert isinstance(await ask(chat, request(max_tokens=4)), Completion)
        async with running(OpenAIBackend(url, model="other")) as wrong:
            error = await ask(wrong, request(max_tokens=4))
            assert isinstance(error, BackendError)
            assert "`other` does not exist" in str(error)
    finally:
        server.terminate()
        server.wait(timeout=60)
        log.close()
    ids = unpack_tokens(first.token_ids).tolist()
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)
    with torch.no_grad():
        logits = model(torch.tensor([[1, 2, 3, *ids]])).logits[0, 2:-1] / 0.7
    expected = torch.log_softmax(logits, -1).gather(1, torch.tensor(ids)[:, None])[:, 0]
    assert unpack_floats(first.logprobs).tolist() == pytest.approx(expected.tolist(), abs=1e-3)
