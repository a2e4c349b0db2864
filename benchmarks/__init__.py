"""Load generator, and comparison of reward-service with other reward model servers. `app` does not import it."""
