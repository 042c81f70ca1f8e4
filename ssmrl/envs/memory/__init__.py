"""Tasks on which world models are trained and judged: layouts to remember, scripted policies that walk in them."""
