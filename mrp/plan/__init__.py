"""How much GPU memory a run will take, and which options fit a card (`mrp plan`): arithmetic alone, nothing loaded."""
