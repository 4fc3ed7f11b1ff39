"""How near a quantised model is to its float model: distributions, and tasks."""
