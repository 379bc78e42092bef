"""Prompts whose replies are judged: by a score, by comparisons within a group, or by the criteria of a rubric."""
