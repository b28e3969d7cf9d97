"""vLLM serves the adapters that were saved: its log-probs are those of the trained policy."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.util import find_spec

import pytest

torch = pytest.importorskip("torch", reason="adapters are torch tensors")
pytestmark = [
    pytest.mark.learn,
    pytest.mark.vllm,
    pytest.mark.slow,
    pytest.mark.skipif(find_spec("vllm") is None, reason="vLLM is not installed"),
]

from rollwave.learners.base import Sample  # noqa: E402
from rollwave.learners.model.adapters import FOLDER  # noqa: E402
from rollwave.learners.model.policy import Policy  # noqa: E402
from rollwave.learners.model.tiny import make_tiny_model  # noqa: E402
from rollwave.learners.settings import LoraSettings  # noqa: E402
from rollwave.learners.training.collate import collate  # noqa: E402

PROMPT = [1, 2, 3, 4, 5]
SERVE = """
import json, sys
from vllm import LLM, SamplingParams
from vllm.lora.request import LoRARequest
base, adapter = sys.argv[1:]
llm = LLM(model=base, dtype="float32", enforce_eager=True, enable_lora=True, max_lora_rank=8,
          max_model_len=64, max_num_seqs=2)
how = SamplingParams(temperature=1.0, max_tokens=6, logprobs=0, seed=1, ignore_eos=True)
said = []
for request in (None, LoRARequest("adapter", 1, adapter)):
    prompt = {"prompt_token_ids": [1, 2, 3, 4, 5]}
    out = llm.generate([prompt], how, lora_request=request, use_tqdm=False)[0].outputs[0]
    values = [entry[token].logprob for token, entry in zip(out.token_ids, out.logprobs)]
    said.append([list(out.token_ids), values])
print(json.dumps(said))
"""


def logprobs(policy: Policy, ids: list[int]) -> list[float]:
    mask = [0] * len(PROMPT) + [1] * (len(ids) - len(PROMPT))
    with torch.no_grad():
        return policy.logprobs(collate([Sample("a", ids, mask)]))[0, len(PROMPT) :].tolist()


def test_vllm_serves_the_saved_adapters(tmp_path):
    base = make_tiny_model(
        tmp_path / "base", vocabulary=[f"w{n}" for n in range(30)], layers=2, context=64
    )
    policy = Policy.load(base, lora=LoraSettings(rank=8), device="cpu")
    noise = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in policy.trainable().values():
            parameter.add_(torch.randn(parameter.shape, generator=noise) * 0.05)
    policy.save(tmp_path / "m")
    quiet = {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind"}
    quiet |= {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_NO_USAGE_STATS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", SERVE, str(base), str(tmp_path / "m" / FOLDER)],
        capture_output=True,
        text=True,
        timeout=220,
        check=False,
        env=os.environ | quiet | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr[-2000:]
    plain, adapted = json.loads(done.stdout.splitlines()[-1])
    assert adapted[1] == pytest.approx(logprobs(policy, PROMPT + adapted[0]), abs=1e-4)
    with policy.without_adapters():
        assert plain[1] == pytest.approx(logprobs(policy, PROMPT + plain[0]), abs=1e-4)
    assert adapted[1] != pytest.approx(plain[1], abs=1e-3)
