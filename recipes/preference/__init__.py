"""Learning from preferences: shorter replies, reward models and RL on them, direct preference optimisation."""
