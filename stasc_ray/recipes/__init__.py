"""Recipes: what is asked, what is learnt, how questions are answered."""
