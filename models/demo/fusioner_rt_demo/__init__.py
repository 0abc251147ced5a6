"""The demonstration bundle of fusioner-rt, in `bundle/` beside this file where it is installed. Holds no code."""
