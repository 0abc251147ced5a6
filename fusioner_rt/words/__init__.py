"""Words to vectors (paper 3.1.1)."""
