"""What a model's answers and corrections are worth."""
