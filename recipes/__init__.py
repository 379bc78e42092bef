"""Train scripts. `python -m loragym.recipes.NAME --help`, or `loragym train NAME --help`."""

RECIPES = {
    "rl_basic": "Reinforcement learning on arithmetic from a short warm-up: the main job, on the trainer.",
    "chat_sl": "Supervised learning on chats of several turns, made by a program or your own.",
    "ppo": "The same task by PPO proper: an actor and a critic on one frozen base.",
    "math_rl": "Reinforcement learning on countdown, arithmetic or a data set of word problems.",
    "tool_use": "Search, read, answer: reinforcement learning with tools, after a warm-up on scripted calls.",
    "distillation": "Teachers are trained, then a student learns from them, on its replies or on theirs.",
    "prompt_distillation": "A long instruction with worked examples becomes part of the weights.",
    "dpo": "Direct preference optimisation on pairs of your own.",
    "reward": "A reward model, scalar or judge, from pairs of your own.",
    "preference/shorter": "Replies learn to be short, by comparison with one another.",
    "preference/rlhf": "Warm-up, reward model and RL in one command, held against a gold preference.",
    "preference/dpo": "Direct preference optimisation on the same pairs.",
    "multiplayer_rl/guess_number": "Find a hidden number: reinforcement learning over several turns.",
    "multiplayer_rl/twenty_questions": "Ask yes/no questions and guess what somebody thinks of.",
    "multiplayer_rl/tic_tac_toe": "Self-play: one policy in both seats, and against its own past.",
    "multiplayer_rl/text_arena": "Any game of TextArena, one seat by the policy.",
    "rubric": "Replies learn to meet a rubric's criteria, as a judge sees them.",
    "rl_loop": "The same in one flat file on the primitives alone.",
    "sl_basic": "Supervised learning from conversations or reference answers, on the trainer.",
    "sl_loop": "The same in one flat file on the primitives alone.",
}
"""Recipe modules with a line each."""
