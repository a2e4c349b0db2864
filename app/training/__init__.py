"""Trains a reward model on preference pairs or rated groups, and evaluates one: `reward-service train` and `reward-service evaluate`."""
