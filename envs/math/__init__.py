"""Questions with a number or a formula for an answer."""
