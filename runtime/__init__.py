"""Inside the training job: hooks that count, the agent, the expert-parallel layer with live migration."""

from runtime.agent import Agent
from runtime.gradients import average_gradients, clip_gradients
from runtime.hooks import RouterKind
from runtime.migration import migrate
from runtime.moe import ExpertParallelMoe

__all__ = ["Agent", "ExpertParallelMoe", "RouterKind", "average_gradients", "clip_gradients", "migrate"]
