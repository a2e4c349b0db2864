"""Load generator and comparison of reward-service with other reward model servers; nothing in `app` imports it."""
