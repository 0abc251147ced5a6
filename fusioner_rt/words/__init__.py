"""Words as users give them, to the vectors that pictures are fused with (paper 3.1.1)."""
