"""Trains a small Mixture-of-Experts language model on real text, and records the loads of its experts as a trace.

Run: OMP_NUM_THREADS=1 .venv/bin/python benchmarks/record_trace.py OUT.npz [--steps N]
The trace in profiles/traces was made by it; profiles/traces/README.md says with what.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import torch

from planner.spec.model import MoeFeedForward
from planner.spec.window import Window
from runtime.example import LanguageModel, batches, language_model, library_text, train_step
from runtime.hooks import RouterCounter, attach
from runtime.record import Recorder

SEQUENCE_LENGTH = 128
SAMPLES = 8
EXPERTS = MoeFeedForward(num_experts=32, top_k=2, expert_width=128)
MODEL = language_model(
    hidden_size=96, num_blocks=6, num_heads=4, experts=EXPERTS, sequence_length=SEQUENCE_LENGTH
).model_copy(update={"name": "byte-moe-6x32"})
LEARNING_RATE = 2e-3
SEED = 0
WINDOW_STEPS = 10


def record(path: Path, num_steps: int) -> None:
    torch.manual_seed(SEED)
    torch.set_num_threads(1)
    model = LanguageModel(MODEL)
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE)
    data = batches(library_text(4_000_000), SAMPLES, SEQUENCE_LENGTH, SEED)
    counters = attach(model)
    recorder = Recorder(path, EXPERTS.top_k, MODEL.name)
    losses: list[float] = []
    for step in range(1, num_steps + 1):
        losses.append(train_step(model, optimizer, data, num_micro_batches=1))
        if step % WINDOW_STEPS == 0:
            recorder.append(window(counters, step))
        if step % 100 == 0:
            mean = sum(losses[-100:]) / 100
            print(f"step {step}: {mean:.3f} nats per byte, {time.process_time():.0f} CPU seconds", flush=True)
    recorder.close()


def window(counters: list[RouterCounter], step: int) -> Window:
    """What the routers sent to each expert in the steps since the last window."""
    tokens = tuple(tuple(counter.take(torch.device("cpu")).tolist()) for counter in counters)
    index = step // WINDOW_STEPS - 1
    return Window(index=index, first_step=step - WINDOW_STEPS, num_steps=WINDOW_STEPS, tokens=tokens)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("path", type=Path)
    parser.add_argument("--steps", type=int, default=3000)
    arguments = parser.parse_args()
    record(arguments.path, arguments.steps)
