"""Training: the recipe, the optimizer and its schedule, the loop, its evaluation and its monitor."""
