"""TensorRT plans of a bundle's graphs.

command_line  the options that commands share
build_plans   builds them, with the shapes of profiles.py, under the bar of progress.py
report        what a plan computes in which type
prove_plans   the gates, on plans as they run on this machine's GPU
"""
