"""Games in which the agent's words are its moves."""
