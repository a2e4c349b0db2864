"""The servers under test: how each is started, asked and understood, and the two that this package brings."""
