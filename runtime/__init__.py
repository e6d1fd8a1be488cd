"""Inside the training job: hooks that count, the agent, the expert-parallel layer."""
