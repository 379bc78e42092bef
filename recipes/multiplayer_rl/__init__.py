"""Games: finding a number, twenty questions, tic-tac-toe by self-play, and any game of TextArena."""
