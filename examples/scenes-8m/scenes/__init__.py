"""Synthetic scenes with questions, and the small vision-language model that learns them."""
