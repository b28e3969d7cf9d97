"""The other side of `training`: TRL's trainers on the very same batches.

Run by `training`, and by the tests against TRL, with the interpreter of the virtual
environment that has TRL; it imports nothing of ours.

    python trl_side.py JOB.json        prints one line of JSON

A job names the model directory, the items as token ids with masks, and one of:

* `sft`, `dpo`: a training run; gives CPU seconds of `train()` (and of the reference pass
  before it), the losses by step, and the high-water mark of memory;
* `sft_numbers`, `dpo_numbers`, `grpo_numbers`: loss and gradient of one batch; gradients go
  into a safetensors file.

Gradient checkpointing is off, in favour of TRL, whose default is on.

Not here: repeats, spread and comparison (`training`).
"""

from __future__ import annotations

import json
import logging
import os
import resource
import sys
import tempfile
import time
import warnings
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from typing import Any

os.environ |= {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error", "TRL_TELEMETRY": "0"}
warnings.simplefilter("ignore")
logging.disable(logging.WARNING)

# By name: they are installed in the other environment, not in ours.
torch: Any = import_module("torch")
datasets: Any = import_module("datasets")
transformers: Any = import_module("transformers")
trl: Any = import_module("trl")

Job = dict[str, Any]


class Meter(transformers.TrainerCallback):  # type: ignore[misc]
    """CPU seconds of the loop and the loss of each step."""

    def __init__(self) -> None:
        self.cpu = 0.0
        self.losses: list[float] = []
        self.gradients: dict[str, Any] = {}
        self.norms: list[float] = []

    def on_train_begin(self, *args: Any, **kwargs: Any) -> None:
        self.began = time.process_time()

    def on_train_end(self, *args: Any, **kwargs: Any) -> None:
        self.cpu = time.process_time() - self.began

    def on_pre_optimizer_step(self, *args: Any, model: Any, **kwargs: Any) -> None:
        if not self.gradients:
            named = model.named_parameters()
            self.gradients = {n: p.grad.clone() for n, p in named if p.grad is not None}

    def on_log(self, args: Any, state: Any, control: Any, logs: Any, **kwargs: Any) -> None:
        if "loss" in logs:
            self.losses.append(float(logs["loss"]))


def common(job: Job, out: str) -> dict[str, Any]:
    """Arguments that all trainers share: plain AdamW, fp32, one thread, nothing written."""
    plain: dict[str, Any] = {
        "output_dir": out,
        "per_device_train_batch_size": job["per_device"],
        "gradient_accumulation_steps": job["batch"] // job["per_device"],
        "learning_rate": job["lr"],
        "lr_scheduler_type": "linear",
        "num_train_epochs": 1,
        "train_sampling_strategy": "sequential",
        "bf16": False,
        "use_cpu": True,
        "gradient_checkpointing": False,
        "logging_steps": 1,
        "disable_tqdm": True,
        "report_to": "none",
        "save_strategy": "no",
        "dataloader_pin_memory": False,
        "length_column_name": "length",
        "remove_unused_columns": job["kind"].startswith("sft"),  # or lengths are lost
        "max_length": job["context"],
    }
    return plain | dict(job.get("options", {}))


def load(job: Job) -> tuple[Any, Any]:
    """The model in float32, and its tokenizer."""
    model = transformers.AutoModelForCausalLM.from_pretrained(job["model"], dtype=torch.float32)
    return model, transformers.AutoTokenizer.from_pretrained(job["model"])


def sft(job: Job, out: str, meter: Meter) -> Any:
    """A trainer over tokens that are ready, with loss where the mask is set."""
    model, tokenizer = load(job)
    rows = [
        {
            "input_ids": item["ids"],
            "labels": [i if m else -100 for i, m in zip(item["ids"], item["mask"], strict=True)],
        }
        for item in job["items"]
    ]
    return trl.SFTTrainer(
        model=model,
        args=trl.SFTConfig(**common(job, out)),
        train_dataset=datasets.Dataset.from_list(rows),
        processing_class=tokenizer,
        callbacks=[meter],
    )


def dpo(job: Job, out: str, meter: Meter) -> Any:
    """A trainer over pairs: ids that both sides begin with carry no loss, the rest does."""
    model, tokenizer = load(job)

    def words(ids: list[int]) -> str:
        return " ".join(tokenizer.convert_ids_to_tokens(ids))

    rows = []
    for item in job["items"]:
        n = item["prompt"]
        rows.append(
            {
                "prompt": words(item["chosen"][:n]),
                "chosen": " " + words(item["chosen"][n:]),
                "rejected": " " + words(item["rejected"][n:]),
                "length": max(len(item["chosen"]), len(item["rejected"])),
            }
        )
    other = job.get("reference")
    return trl.DPOTrainer(
        model=model,
        ref_model=load(job | {"model": other})[0] if other else None,
        args=trl.DPOConfig(beta=job["beta"], **common(job, out)),
        train_dataset=datasets.Dataset.from_list(rows),
        processing_class=tokenizer,
        callbacks=[meter],
    )


def timed_reference() -> list[float]:
    """From now on, CPU seconds of every precomputed reference go into the list."""
    spent: list[float] = []
    plain = trl.DPOTrainer._precompute_ref_logps

    def timed(*args: Any, **kwargs: Any) -> Any:
        began = time.process_time()
        try:
            return plain(*args, **kwargs)
        finally:
            spent.append(time.process_time() - began)

    trl.DPOTrainer._precompute_ref_logps = timed
    return spent


def train(job: Job, out: str) -> dict[str, Any]:
    """One run. Seconds are those of the loop and of the reference pass, not of loading."""
    meter, spent = Meter(), timed_reference()
    trainer = (sft if job["kind"].startswith("sft") else dpo)(job, out, meter)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    trainer.train()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    if "gradients" in job:
        import_module("safetensors.torch").save_file(meter.gradients, job["gradients"])
    return {
        "cpu_seconds": meter.cpu + sum(spent),
        "reference_seconds": sum(spent),
        "losses": meter.losses,
        "peak_mib": peak / 1024,
        "before_mib": before / 1024,
    }


def grpo(job: Job, out: str) -> dict[str, Any]:
    """Loss and gradient of one batch of rollouts, their advantages and log-probs given."""
    model, tokenizer = load(job)
    names = ("loss_type", "epsilon", "epsilon_high", "beta")
    trainer = trl.GRPOTrainer(
        model=model,
        reward_funcs=lambda **_: [0.0],
        args=trl.GRPOConfig(
            output_dir=out,
            use_cpu=True,
            bf16=False,
            gradient_checkpointing=False,
            report_to="none",
            num_generations=2,
            per_device_train_batch_size=2,
            gradient_accumulation_steps=1,
            max_completion_length=job["longest"],
            use_bias_correction_kl=False,  # GRPO as published; on by default here
            **{name: job[name] for name in names},
        ),
        train_dataset=datasets.Dataset.from_list([{"prompt": "a"}] * 2),
        processing_class=tokenizer,
    )
    inputs = {
        name: torch.tensor(job[name], dtype=torch.float32 if name in FLOATS else torch.int64)
        for name in (*FLOATS, "prompt_ids", "prompt_mask", "completion_ids", "completion_mask")
    }
    inputs["tool_mask"] = torch.tensor(job["tool_mask"])
    inputs["num_items_in_batch"] = inputs["tool_mask"].sum()
    trainer.current_gradient_accumulation_steps = 1
    model.train()
    loss = trainer._compute_loss(trainer.model, inputs)
    loss.backward()
    gradients = {n: p.grad.clone() for n, p in trainer.model.named_parameters()}
    import_module("safetensors.torch").save_file(gradients, job["gradients"])
    return {"losses": [float(loss)]}


FLOATS = ("advantages", "old_per_token_logps", "ref_per_token_logps")


def main() -> None:
    """Do the job that the file describes."""
    torch.set_num_threads(1)
    job: Job = json.loads(Path(sys.argv[1]).read_text("utf-8"))
    with tempfile.TemporaryDirectory() as out:
        figures = (grpo if job["kind"].startswith("grpo") else train)(job, out)
    versions = {name: version(name) for name in ("trl", "torch", "transformers")}
    sys.stdout.write(json.dumps(figures | {"versions": versions}) + "\n")


if __name__ == "__main__":
    main()
