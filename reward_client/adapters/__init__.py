"""Reward functions in the shapes that trainers call: `trl`, `verl`, `openrlhf`, `areal`. None imports its trainer."""
