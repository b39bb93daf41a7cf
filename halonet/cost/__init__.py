"""What an attention layer or a model costs, counted from shapes alone."""
