"""The online stage: forecast, placement, policy; pure functions of windows and state."""
