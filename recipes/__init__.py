"""Train scripts. `python -m loragym.recipes.NAME --help`, or `loragym train NAME --help`."""

RECIPES = {
    "rl_basic": "Reinforcement learning on arithmetic from a short warm-up: the main job, on the trainer.",
    "rl_loop": "The same in one flat file on the primitives alone.",
    "sl_basic": "Supervised learning from conversations or reference answers, on the trainer.",
    "sl_loop": "The same in one flat file on the primitives alone.",
}
"""Recipe modules with a line each."""
