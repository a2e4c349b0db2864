"""Trains a reward model on preference pairs, and evaluates one: `reward-service train` and `reward-service evaluate`."""
