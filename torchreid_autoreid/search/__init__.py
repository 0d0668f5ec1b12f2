"""How alphas move, what a network costs, and how an answer is chosen."""
