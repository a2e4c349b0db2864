"""Reward functions with the signatures that trainers expect: one module per trainer, and `plain` for trainers that call a plain function. No module imports its trainer."""
